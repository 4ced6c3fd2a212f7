// What is seen of an answer: the classes, how far to trust them, where the model looked, the photographs, the advice.
import {ordered} from './answer.js';
import {facts} from './model.js';
import {anyOf, inLanguage, nameOf, percent, say, sayCount} from './words.js';

export const place = id => document.getElementById(id);

/** An element with its attributes (`text`, event handlers `onclick` among them) inside a parent. */
export function element(kind, about = {}, parent = null) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(about)) {
    if (name === 'text') made.textContent = value;
    else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== false) made.setAttribute(name, value === true ? '' : value);
  }
  parent?.append(made);
  return made;
}

/** What a photograph's faults mean, and what to do. */
export const wrongWith = photo => [...photo.faults.map(name => say(`fault.${name}`)), ...(photo.strange && !photo.faults.length ? [say('fault.strange')] : [])];

const EXPERT = {several: 'answer.several', all: 'answer.all', none: 'answer.none'};

const MOST_NAMED = 3;  // classes in the headline
const named = answer => anyOf(answer.could.map(k => nameOf(facts.classes[k])));
const many = answer => answer.kind === 'several' && answer.could.length > MOST_NAMED;

function headline(answer) {
  if (answer.kind === 'unusable') return say('answer.again');
  return answer.kind === 'all' || answer.kind === 'none' || many(answer) ? say('answer.expert') : named(answer);
}

export function showAnswer(answer, photos, toggle) {
  const box = place('answer');
  box.replaceChildren();
  box.hidden = place('again').hidden = !photos.length;
  if (!photos.length) return;
  box.className = answer.kind === 'one' ? 'sure' : 'unsure';
  element('h2', {text: headline(answer), id: 'headline'}, box);
  if (many(answer)) element('p', {text: say('answer.could', {names: named(answer)})}, box);
  if (EXPERT[answer.kind]) element('p', {text: say(EXPERT[answer.kind])}, box);
  if (answer.kind === 'unmeasured') element('p', {text: say('answer.unmeasured')}, box);
  if (answer.kind === 'unusable') {
    for (const text of new Set(photos.flatMap(wrongWith))) element('p', {text}, box);
    return;
  }
  if (EXPERT[answer.kind] && facts.advice?.expert) element('p', {text: inLanguage(facts.advice.expert), class: 'contact'}, box);
  showShares(answer, box);
  element('p', {text: sayCount('photos', answer.used), class: 'small'}, box);
  if (answer.used < answer.of) element('p', {text: say('photos.unused', {n: answer.of - answer.used, of: answer.of}), class: 'small'}, box);
  if (photos.some(one => one.used && one.activation)) {
    const shown = place('photographs').classList.contains('looked');
    element('button', {type: 'button', id: 'look', class: 'quiet', 'aria-pressed': String(shown), text: say('look.show'), onclick: toggle}, box);
    element('p', {class: 'small', id: 'look-note', hidden: !shown, text: say('look.note', {name: nameOf(facts.classes[shownClass(answer)])})}, box);
  }
  showTrust(answer, box);
}

const shownClass = answer => answer.could.length ? answer.could[0] : ordered(answer.probabilities)[0];

function showShares(answer, box) {
  const table = element('table', {class: 'shares'}, box);
  element('caption', {text: say('shares'), class: 'unseen'}, table);
  for (const k of ordered(answer.probabilities).slice(0, 5)) {
    const row = element('tr', {class: answer.could.includes(k) ? 'could' : ''}, table);
    element('th', {text: nameOf(facts.classes[k]), scope: 'row'}, row);
    const bar = element('td', {class: 'share', 'aria-hidden': 'true'}, row);
    element('i', {}, bar).style.width = `${Math.round(100 * answer.probabilities[k])}%`;
    element('td', {text: percent(answer.probabilities[k])}, row);
  }
}

/** The promise of the prediction sets, and what it was measured to be for the classes that are named. */
function showTrust(answer, box) {
  if (!facts.sets || answer.kind === 'none') return;
  const hundred = share => Math.round(100 * share), more = element('details', {}, box);
  element('summary', {text: say('trust.title')}, more);
  element('p', {text: say(facts.sets.per_class ? 'promise.each' : 'promise', {share: hundred(facts.sets.coverage)})}, more);
  for (const k of answer.could) {
    const row = facts.coverage?.find(one => one.class === facts.classes[k]);
    if (!row || row.coverage === null) continue;
    const values = {name: nameOf(row.class), share: hundred(row.coverage), n: row.photographs, low: hundred(row.low), high: hundred(row.high)};
    element('p', {text: say('trust.class', values)}, more);
  }
  element('p', {text: say('trust.limits'), class: 'small'}, more);
}

/** Where the picture that the network sees lies on the photograph: shares of its width and height. */
function seenPart({size, input}, fit) {
  const wide = size.w * input.h / (size.h * input.w);  // above 1: the photograph is wider
  if (fit === 'squash') return [0, 0, 1, 1];
  const across = fit === 'crop' ? Math.min(1, 1 / wide) : Math.max(1, 1 / wide);
  const down = fit === 'crop' ? Math.min(1, wide) : Math.max(1, wide);
  return [(1 - across) / 2, (1 - down) / 2, across, down];
}

function heatOf(photo, k) {
  const {data, h, w} = photo.activation, canvas = document.createElement('canvas'), image = new ImageData(w, h);
  const map = data.subarray(k * h * w, (k + 1) * h * w), most = Math.max(...map, 1e-12);
  map.forEach((value, at) => image.data.set([255, 106, 0, Math.round(215 * value / most)], 4 * at));
  canvas.width = w;
  canvas.height = h;
  canvas.getContext('2d').putImageData(image, 0, 0);
  canvas.className = 'heat';
  const [left, top, across, down] = seenPart(photo, facts.preprocess.fit);
  Object.assign(canvas.style, {left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * across}%`, height: `${100 * down}%`});
  return canvas;
}

export function showPhotographs(photos, answer) {
  const list = place('photographs');
  list.replaceChildren();
  photos.forEach((photo, number) => {
    const item = element('li', {class: photo.used ? '' : 'unused'}, list), frame = element('div', {class: 'frame'}, item);
    photo.preview.setAttribute('role', 'img');
    photo.preview.setAttribute('aria-label', say('photo', {n: number + 1}));
    frame.append(photo.preview);
    if (photo.used && photo.activation) frame.append(heatOf(photo, shownClass(answer)));
    for (const text of wrongWith(photo)) element('p', {text, class: 'wrong'}, item);
  });
}

export function showAdvice(answer) {
  const box = place('advice'), written = answer.could.map(k => facts.classes[k]).filter(name => facts.advice?.classes[name]?.text);
  box.replaceChildren();
  box.hidden = !written.length || !['one', 'several', 'unmeasured'].includes(answer.kind);
  if (box.hidden) return;
  element('h2', {text: say('advice.title')}, box);
  for (const name of written) {
    const own = written.length > 1 ? element('details', {}, box) : box;
    if (own !== box) element('summary', {text: nameOf(name)}, own);
    const {text, pictures} = facts.advice.classes[name];
    for (const words of inLanguage(text).trim().split(/\n\s*\n/)) element('p', {text: words}, own);
    for (const one of pictures) {
      const figure = element('figure', {}, own), words = inLanguage(one.text) || '';
      element('img', {src: one.uri, alt: words, width: one.width, height: one.height}, figure);
      if (words) element('figcaption', {text: words}, figure);
    }
  }
}
