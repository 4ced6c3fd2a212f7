"use strict";
// What the page computes, apart from what it shows: the stop rule, which answers stand, and decisions.csv. The same as
// forecast.py and answers.py, which tests compare with it.

const PRIOR = [-1, 0.9], SPREAD = [1, 0.25], WIDTH = 1.96;

function logit(p) {
  p = Math.min(Math.max(p, 1e-4), 1 - 1e-4);
  return Math.log(p / (1 - p));
}

function solve(m, v) {  // symmetric 2 x 2
  const det = m[0] * m[2] - m[1] * m[1];
  return [(m[2] * v[0] - m[1] * v[1]) / det, (m[0] * v[1] - m[1] * v[0]) / det];
}

// chance: of the photographs answered so far; wrong: whether the answer differs from the label; ahead: chances to come.
function forecast(chance, wrong, ahead) {
  const known = chance.map(logit), next = ahead.map(logit), precision = SPREAD.map(s => 1 / (s * s));
  let at = [...PRIOR], curve;
  const cost = where => {
    let sum = 0;
    for (const k of [0, 1]) sum += precision[k] * (where[k] - PRIOR[k]) ** 2 / 2;
    known.forEach((x, i) => {
      const odds = where[0] + where[1] * x;
      sum += Math.max(odds, 0) + Math.log1p(Math.exp(-Math.abs(odds))) - (wrong[i] ? odds : 0);
    });
    return sum;
  };
  for (let turn = 0; turn < 60; turn++) {
    curve = [precision[0], 0, precision[1]];
    const slope = [0, 1].map(k => -precision[k] * (at[k] - PRIOR[k]));
    known.forEach((x, i) => {
      const p = 1 / (1 + Math.exp(-at[0] - at[1] * x)), w = p * (1 - p), off = (wrong[i] ? 1 : 0) - p;
      slope[0] += off; slope[1] += off * x;
      curve[0] += w; curve[1] += w * x; curve[2] += w * x * x;
    });
    let step = solve(curve, slope);
    const small = () => Math.max(Math.abs(step[0]), Math.abs(step[1])) < 1e-9, before = cost(at);
    if (small()) break;
    while (cost([at[0] + step[0], at[1] + step[1]]) > before && !small()) step = [step[0] / 2, step[1] / 2];
    at = [at[0] + step[0], at[1] + step[1]];
  }
  let expected = 0, spread = 0;
  const pull = [0, 0];
  for (const x of next) {
    const p = 1 / (1 + Math.exp(-at[0] - at[1] * x)), w = p * (1 - p);
    expected += p; spread += w; pull[0] += w; pull[1] += w * x;
  }
  const back = solve(curve, pull), half = WIDTH * Math.sqrt(spread + pull[0] * back[0] + pull[1] * back[1]);
  const low = Math.max(0, Math.ceil(expected - half - 0.5)), high = Math.floor(expected + half + 0.5);
  return {photographs: next.length, expected, low, high: Math.min(next.length, high)};
}

// The answers of one person that stand: photograph -> line. An undo takes back the last one of its photograph.
function standing(lines, reviewer) {
  const stacks = new Map();
  for (const line of lines) {
    if (line.reviewer !== reviewer) continue;
    if (!stacks.has(line.image_id)) stacks.set(line.image_id, []);
    const stack = stacks.get(line.image_id);
    if (line.verdict === "undo") stack.pop(); else stack.push(line);
  }
  const found = new Map();
  for (const [id, stack] of stacks) if (stack.length) found.set(id, stack[stack.length - 1]);
  return found;
}

function saysWrong(line, given) {
  return line.verdict === "drop" || (line.verdict === "class" && line.label !== given);
}

const COLUMNS = ["image_id", "action", "given_label", "new_label", "weight", "reason", "verdict", "reviewer",
  "answered_at", "seconds", "seen", "round", "run"];
const ACTIONS = {keep: ["keep", "1.0"], drop: ["drop", "1.0"], down_weight: ["down_weight", "0.5"]};

function decide(line, given, about) {
  const who = line.reviewer;
  let action = "keep", weight = "1.0", label = "", reason;
  if (line.verdict === "unsure") {
    [action, weight] = ACTIONS[about.unsure];
    reason = `reviewed by ${who}: cannot tell`;
  } else if (line.verdict === "drop") {
    action = "drop";
    reason = `reviewed by ${who}: none of the classes`;
  } else if (line.label === given) {
    reason = `reviewed by ${who}: label confirmed`;
  } else {
    [action, label] = ["relabel", line.label];
    reason = `reviewed by ${who}: ${line.label} instead of ${given}`;
  }
  return [line.image_id, action, given, label, weight, reason, line.verdict, who, line.at,
    (line.ms / 1000).toFixed(1), line.seen.join(" "), String(about.round), about.run];
}

function csvCell(text, safe) {
  if (safe && /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text)) text = "'" + text;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function decisionsCsv(lines, reviewer, given, about) {
  const rows = [...standing(lines, reviewer)].filter(([id]) => given.has(id));
  const cells = rows.map(([id, line]) => decide(line, given.get(id), about));
  return [COLUMNS, ...cells].map(row => row.map(text => csvCell(text, about.safe)).join(",") + "\n").join("");
}
