"use strict";
// The page itself: one photograph at a time, one key per answer.

const facts = JSON.parse(document.getElementById("facts").textContent);
const server = facts.mode === "server", $ = id => document.getElementById(id);
const CLASS_KEYS = [..."123456789abcdefhijklmopqrstvwy"];  // without n, u, g, x, z, which have other meanings
const AHEAD = 4;  // photographs that are decoded before they are asked for
const chunks = new Map(), decoded = new Map(), items = [], at = new Map();
let lines = [], reviewer = "", place = -1, shownAt = 0, hiddenFor = 0, hiddenAt = 0, seen = new Set(), store, sender, order = 0, unsaved = 0, finished = false, ahead = null;

function chunk(number) {
  if (!chunks.has(number)) {
    if (chunks.size > 8) chunks.delete(chunks.keys().next().value);
    chunks.set(number, $("c" + number).textContent);
  }
  return chunks.get(number);
}

function source(picture) {
  if (picture.src) return picture.src;
  return picture.size ? "data:image/webp;base64," + chunk(picture.chunk).substr(picture.at, picture.size) : "";
}

function addItems(found) {
  for (const item of found) if (!at.has(item.id)) { at.set(item.id, items.length); items.push(item); }
}

function unpack() {  // the columns of the file as objects
  const {pictures, queue} = facts, names = Object.keys(pictures);
  const all = pictures.id.map((_, i) => Object.fromEntries(names.map(name => [name, pictures[name][i]])));
  addItems(queue.picture.map((p, i) => ({...all[p], suggested: queue.suggested[i], chance: queue.chance[i], near: queue.near[i].map(n => all[n]), copies: queue.copies[i].map(n => all[n]), said: queue.said[i]})));
}

const nameOf = label => label < 0 ? "no label" : facts.classes[label];
const mine = () => standing(lines, reviewer);
const answeredBefore = item => lines.some(line => line.image_id === item.id && line.reviewer === reviewer && line.verdict !== "undo");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== false) made.setAttribute(name, value === true ? "" : value);
  made.append(...children);
  return made;
}

// ------------------------------------------------------------------------------------------------ photographs

function load(number) {  // the image of a photograph, decoded and ready to be shown
  const item = items[number];
  if (!item || decoded.has(number)) return;
  const image = new Image();
  image.alt = `photograph ${item.name}, labelled ${nameOf(item.label)}`;
  image.src = source(item) || "data:,";
  decoded.set(number, image);
  image.decode().catch(() => image.classList.add("broken"));
}

function preload() {
  const answered = mine();
  let number = place, left = AHEAD;
  while (left && ++number < items.length) if (!answered.has(items[number].id)) { load(number); left--; }
  load(place - 1);
  for (const known of decoded.keys()) if (Math.abs(known - place) > 60) decoded.delete(known);
}

function show(number, say = true) {
  const started = performance.now();
  place = number;
  const item = items[number];
  load(number);
  seen = new Set(["photo"]);
  shownAt = started; hiddenFor = 0; hiddenAt = document.hidden ? started : 0;
  const image = decoded.get(number);
  $("photo").replaceChildren(image, ...(item.fault ? [element("p", {class: "muted"}, item.fault)] : []));
  const open = facts.show_suggestion || answeredBefore(item);
  if (open && item.suggested >= 0) seen.add("suggestion");
  const said = item.said && item.said.length ? ` Answers so far: ${item.said.join(", ")}.` : "";
  if (said) seen.add("answers");
  $("given").textContent = nameOf(item.label);
  $("suggested").textContent = open && item.suggested >= 0 ? `Suggested by the model: ${nameOf(item.suggested)}.` : "";
  $("said").textContent = said;
  $("file").textContent = item.name;
  const own = mine().get(item.id);
  $("own").textContent = own ? `Your answer: ${words(own)}.` : "";
  for (const button of document.querySelectorAll("#classes button")) button.setAttribute("aria-pressed", String(!!own && own.verdict === "class" && own.label === nameOf(+button.dataset.label)));
  $("near").hidden = true;
  if (say) $("live").textContent = `Photograph ${number + 1}: ${item.name}, labelled ${nameOf(item.label)}.${said}`;
  markTiles();
  requestAnimationFrame(() => { performance.measure("next picture", {start: started}); setTimeout(preload, 0); });
}

function words(line) {
  return {class: line.label, unsure: "cannot tell", drop: "none of the classes"}[line.verdict];
}

// ------------------------------------------------------------------------------------------------ answers

function makeKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map(byte => byte.toString(16).padStart(2, "0")).join("");
}

function append(verdict, item, label) {
  const now = performance.now(), hidden = hiddenFor + (hiddenAt ? now - hiddenAt : 0);
  const line = {key: makeKey(), image_id: item.id, verdict, label, reviewer, at: new Date().toISOString(), ms: Math.max(0, Math.round(now - shownAt - hidden)), seen: [...seen].sort(), round: facts.round, review: facts.review, order: ++order};
  lines.push(line);
  unsaved++;
  store.append(line).then(() => { if (server) { sender.waiting++; sender.send(); } unsaved--; notice(); }, () => { store.lasting = false; notice(); });
  notice();
}

function answer(verdict, label = "") {
  if (place < 0 || finished || !reviewer) return;
  const item = items[place];
  append(verdict, item, label);
  const differs = item.suggested >= 0 && (verdict !== "class" || label !== nameOf(item.suggested));
  const hint = item.suggested >= 0 ? (differs ? ` The model suggests ${nameOf(item.suggested)}.` : " The model suggests the same.") : "";
  $("last").textContent = `${item.name}: ${words({verdict, label})}.${hint} `;
  next();
  $("stage").focus({preventScroll: true});
}

function undo() {
  const answered = mine();
  const last = [...lines].reverse().find(line => answered.get(line.image_id) === line && at.has(line.image_id));
  if (!last) { $("last").textContent = "There is nothing to undo."; return; }
  const number = at.get(last.image_id);
  seen = new Set(["photo"]);
  append("undo", items[number], "");
  end(false);
  show(number);
  $("last").textContent = `Taken back: ${words(last)} for ${items[number].name}.`;
  progress();
}

function next() {
  const answered = mine();
  const open = number => !answered.has(items[number].id);
  let number = place + 1;
  while (number < items.length && !open(number)) number++;
  if (number >= items.length) number = items.findIndex((_, i) => open(i));
  if (server && remaining(answered) < facts.batch / 2) more();
  else if (server && answered.size % 10 === 0) ask(`api/progress?round=${facts.round}`).then(found => { ahead = found; progress(); }, () => {});
  if (number < 0) end(true); else show(number);
  setTimeout(progress, 0);
}

const remaining = answered => items.reduce((sum, item) => sum + !answered.has(item.id), 0);

function end(yes) {
  finished = yes;
  $("done").hidden = !yes;
  $("work").hidden = yes;
  if (yes) $("live").textContent = "Every photograph here is answered.";
}

function browse(step) {
  const number = place + step;
  if (number >= 0 && number < items.length) { end(false); show(number); progress(); }
}

// ------------------------------------------------------------------------------------------------ progress

function expectation() {
  const answered = mine();
  if (server) return ahead && {...ahead, answered: answered.size};
  const known = items.filter(item => answered.has(item.id) && answered.get(item.id).verdict !== "unsure");
  const chance = known.map(item => item.chance), wrong = known.map(item => saysWrong(answered.get(item.id), nameOf(item.label)));
  const rest = items.filter(item => !answered.has(item.id)).map(item => item.chance);
  return {...forecast(chance, wrong, rest.slice(0, facts.batch)), left: forecast(chance, wrong, rest).expected + facts.left, answered: answered.size, total: items.length};
}

function progress() {
  const found = expectation(), answered = mine();
  if (!found) return;
  const {photographs: n, expected, low, high} = found, whole = x => x < 10 ? x.toFixed(1).replace(/\.0$/, "") : x.toFixed(0);
  $("count").textContent = `${found.answered.toLocaleString("en")} of ${found.total.toLocaleString("en")} answered`;
  $("bar").max = Math.max(found.total, 1); $("bar").value = found.answered;
  const changed = items.filter(item => answered.has(item.id) && saysWrong(answered.get(item.id), nameOf(item.label))).length;
  $("changed").textContent = `${changed.toLocaleString("en")} labels corrected by you`;
  $("forecast").textContent = n ? `The next ${n} are expected to hold ${whole(expected)} wrong labels (${low} to ${high}); all that is left, ${whole(found.left)}.` : "";
  $("stop").hidden = !(n && expected < facts.stop && found.answered);
  tiles();
}

function tiles() {  // the batch that the photograph is in
  const first = Math.floor(Math.max(place, 0) / facts.batch) * facts.batch;
  if ($("batch").dataset.first !== String(first) || $("batch").dataset.n !== String(items.length)) {
    $("batch").dataset.first = first; $("batch").dataset.n = items.length;
    $("batch").replaceChildren(...items.slice(first, first + facts.batch).map((item, i) => {
      const button = element("button", {type: "button", "data-number": first + i}, element("img", {src: source(item) || "data:,", alt: "", loading: "lazy"}));
      button.addEventListener("click", () => { end(false); show(first + i); $("stage").focus({preventScroll: true}); progress(); });
      return element("li", {}, button);
    }));
    $("batch-name").textContent = `Photographs ${first + 1} to ${Math.min(first + facts.batch, items.length)}`;
  }
  markTiles();
}

function markTiles() {
  const answered = mine();
  for (const button of $("batch").querySelectorAll("button")) {
    const item = items[+button.dataset.number], line = answered.get(item.id);
    const state = !line ? "" : saysWrong(line, nameOf(item.label)) ? "changed" : line.verdict === "unsure" ? "unsure" : "kept";
    button.dataset.state = state;
    button.setAttribute("aria-label", `${item.name}, labelled ${nameOf(item.label)}${line ? ", answered " + words(line) : ""}`);
    if (+button.dataset.number === place) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
  }
}

function notice() {
  const texts = [];
  if (!store.lasting) texts.push("This browser keeps nothing for this page: answers are lost when the tab closes. Save your answers (answers.jsonl) before you close it.");
  if (server && sender.problem) texts.push(`${sender.waiting} answers are not on the server yet: ${sender.problem}. They are ${store.lasting ? "kept in this browser and " : ""}sent again by themselves; leave the page open.`);
  $("notice").hidden = !texts.length;
  if ($("notice").textContent !== texts.join(" ")) $("notice").textContent = texts.join(" ");
  $("saved").textContent = server ? (sender.waiting || unsaved ? "saving" : "all answers are saved") : unsaved ? "saving" : store.lasting ? "saved in this browser" : "not saved";
}

// ------------------------------------------------------------------------------------------------ more to see

function neighbours() {
  if (!$("near").hidden) { $("near").hidden = true; return; }
  const item = items[place];
  seen.add("neighbours");
  const figures = (title, pictures) => pictures.length ? [element("h3", {}, title), element("div", {class: "row"}, ...pictures.map(picture => element("figure", {}, element("img", {src: source(picture) || "data:,", alt: `photograph ${picture.name}`}), element("figcaption", {}, nameOf(picture.label), element("br"), element("small", {class: "muted"}, picture.name)))))] : [];
  const found = [...figures("Other files of the same picture", item.copies), ...figures("Most similar photographs, with their labels", item.near)];
  $("near").replaceChildren(...(found.length ? found : [element("p", {class: "muted"}, "No neighbours or duplicates are known.")]));
  $("near").hidden = false;
  $("near").scrollIntoView({block: "nearest"});
}

function zoom() {
  if ($("zoom").open) { $("zoom").close(); return; }
  const item = items[place], image = new Image();
  image.alt = `photograph ${item.name}, original size`;
  image.onload = () => { seen.add("original"); $("zoom-says").textContent = `${image.naturalWidth} x ${image.naturalHeight} pixels`; };
  image.onerror = () => { image.onload = image.onerror = null; image.src = source(item); $("zoom-says").textContent = "The original isn't at hand: this is the picture in the page, enlarged. Keep the page in its folder beside the photographs to see them."; };
  $("zoom-says").textContent = "";
  image.src = item.href || "data:,";
  $("zoom-photo").replaceChildren(image);
  $("zoom").showModal();
}

// ------------------------------------------------------------------------------------------------ files

function save(name, text, type) {
  const link = element("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const fileName = (stem, suffix) => `${stem}${reviewer.replace(/[^\p{L}\p{N}_-]+/gu, "-").replace(/^-+|-+$/g, "").replace(/^(.)/, "-$1")}.${suffix}`;

function saveDecisions() {
  save(fileName("decisions", "csv"), decisionsCsv(lines, reviewer, new Map(items.map(item => [item.id, nameOf(item.label)])), facts), "text/csv");
}

function saveLines() {
  save(fileName("answers", "jsonl"), lines.map(({order, ...line}) => JSON.stringify(line) + "\n").join(""), "application/x-ndjson");
}

async function readLines(file) {
  const known = new Set(lines.map(line => line.key));
  let added = 0, others = 0;
  for (const text of (await file.text()).split("\n")) {
    let line = null;
    try { line = JSON.parse(text); } catch { continue; }
    if (!line || typeof line.key !== "string" || !Array.isArray(line.seen) || line.review !== facts.review) { others++; continue; }
    if (known.has(line.key)) continue;
    known.add(line.key);
    line.order = ++order;
    lines.push(line);
    await store.append(line);
    added++;
  }
  $("read-says").textContent = `${added} answers read.` + (others ? ` ${others} lines are of another review, or not readable.` : "");
  begin(reviewer);
}

// ------------------------------------------------------------------------------------------------ server

async function ask(path) {
  const found = await fetch(path, {headers: {Accept: "application/json"}});
  if (!found.ok) throw new Error(`${path}: ${found.status}`);
  return found.json();
}

let asking = false;
async function more() {
  if (asking) return;
  asking = true;
  try {
    const found = await ask(`api/next?round=${facts.round}`);
    addItems(found.items);
    ahead = found.progress;
    if ((finished || place < 0) && found.items.length) { const answered = mine(); const number = items.findIndex(item => !answered.has(item.id)); if (number >= 0) { end(false); show(number); } }
    progress(); preload();
  } catch (error) { sender.problem = sender.problem || "the server can't be reached"; notice(); setTimeout(more, 3000); }
  asking = false;
}

// ------------------------------------------------------------------------------------------------ start

const DO = {" ": () => { const item = items[place]; if (item && item.label >= 0) answer("class", nameOf(item.label)); }, n: () => answer("unsure"), x: () => answer("drop"), u: undo, g: neighbours, z: zoom, ArrowLeft: () => browse(-1), ArrowRight: () => browse(1), "?": () => { $("help").open = !$("help").open; }};

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !$("keys").checked || !reviewer) return;
  const inside = event.target.closest("input, select, textarea, summary, a, button, label");
  if (inside && (event.key === " " || event.key === "Enter" || inside.matches("input, select, textarea"))) return;
  if ($("zoom").open && event.key !== "z") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, label = CLASS_KEYS.indexOf(key);
  if (DO[key]) DO[key]();
  else if (label >= 0 && label < facts.classes.length) answer("class", facts.classes[label]);
  else if (key === "/" && !$("find").hidden) $("find").focus();
  else return;
  event.preventDefault();
}

function buttons() {
  $("classes").replaceChildren(...facts.classes.map((name, label) => {
    const button = element("button", {type: "button", "data-label": label, "aria-pressed": "false", "aria-keyshortcuts": CLASS_KEYS[label] || false}, ...(CLASS_KEYS[label] ? [element("kbd", {"aria-hidden": "true"}, CLASS_KEYS[label])] : []), " ", name);
    button.addEventListener("click", () => answer("class", name));
    return button;
  }));
  $("find").hidden = facts.classes.length <= CLASS_KEYS.length;
  $("find-label").hidden = $("find").hidden;
  $("class-names").replaceChildren(...facts.classes.map(name => element("option", {value: name})));
  $("find").addEventListener("change", () => { if (facts.classes.includes($("find").value)) { answer("class", $("find").value); $("find").value = ""; } });
}

function begin(name) {
  reviewer = name;
  $("who").hidden = true;
  $("stage").hidden = false;
  $("me").textContent = name;
  const answered = mine(), number = items.findIndex(item => !answered.has(item.id));
  if (number < 0) end(true); else { end(false); show(number, false); }
  progress(); notice();
  $("stage").focus({preventScroll: true});
}

async function start() {
  buttons();
  const home = `manihot-review-${facts.review}-${facts.round}`;
  if (server) {
    const state = await ask(`api/state?round=${facts.round}`);
    store = await openStore(`${home}-${state.reviewer}`);
    sender = new Sender(store, notice);
    addItems(state.items);
    lines = state.answers;
    const known = new Set(lines.map(line => line.key));
    lines.push(...(await store.all()).filter(line => !known.has(line.key)));
    order = lines.length;
    ahead = state.progress;
    begin(state.reviewer);
    await more();
    await sender.send();
  } else {
    store = await openStore(home);
    unpack();
    lines = await store.all();
    order = lines.reduce((most, line) => Math.max(most, line.order), 0);
    notice();
    let name = "";
    try { name = localStorage.getItem("manihot-reviewer") || ""; } catch { /* blocked */ }
    $("name").value = name;
    if (name && lines.some(line => line.reviewer === name)) begin(name); else { $("who").hidden = false; $("name").focus(); }
  }
  document.documentElement.dataset.ready = "1";
}

$("who").addEventListener("submit", event => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (!name) return;
  try { localStorage.setItem("manihot-reviewer", name); } catch { /* blocked */ }
  begin(name);
});
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now(); else if (hiddenAt) { hiddenFor += performance.now() - hiddenAt; hiddenAt = 0; }
});
window.addEventListener("beforeunload", event => {
  const lost = unsaved || (!store.lasting && lines.length) || (server && sender.waiting);
  if (lost) event.preventDefault();
});
for (const [id, key] of [["keep", " "], ["unsure", "n"], ["drop", "x"], ["undo", "u"], ["neighbours", "g"], ["enlarge", "z"], ["back", "ArrowLeft"], ["forward", "ArrowRight"]]) $(id).addEventListener("click", () => DO[key]());
$("change-name").addEventListener("click", () => { $("stage").hidden = true; $("who").hidden = false; reviewer = ""; $("name").focus(); });
$("zoom-close").addEventListener("click", () => $("zoom").close());
$("save-decisions").addEventListener("click", saveDecisions);
$("save-lines").addEventListener("click", saveLines);
$("read-lines").addEventListener("change", event => { if (event.target.files[0]) readLines(event.target.files[0]); });
start();
