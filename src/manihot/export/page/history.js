// Earlier plants on this device, what people say they really are, and handing them out.
import {facts} from './model.js';
import {makeReturns} from './returns.js';
import {remember, remembered} from './store.js';
import {element, place} from './view.js';
import {chosenLanguage, nameOf, say, sayCount} from './words.js';

let sequence = 0;  // makes ids of form fields

/** A form with which a person says what photographs really show. saved: called after the records are kept. */
export function correctionForm(records, store, saved) {
  const form = element('form', {class: 'correction'}), known = records[0].correction, id = `correction-${++sequence}`;
  element('label', {text: say('correct.label'), for: `${id}-class`}, form);
  const choice = element('select', {id: `${id}-class`, required: true}, form);
  element('option', {value: '', text: say('correct.choose')}, choice);
  records[0].classes.forEach((name, k) => element('option', {value: String(k), text: nameOf(name), selected: known?.label === name}, choice));
  element('option', {value: 'other', text: say('correct.other'), selected: known?.label === ''}, choice);
  element('label', {text: say('correct.who'), for: `${id}-who`}, form);
  const who = element('input', {id: `${id}-who`, type: 'text', maxlength: '200', autocomplete: 'name', value: known?.who ?? remembered('who')}, form);
  element('button', {text: say('correct.save'), class: 'quiet'}, form);
  const told = element('p', {role: 'status', class: 'small'}, form);
  form.addEventListener('submit', async event => {
    event.preventDefault();
    remember('who', who.value.trim());
    const label = choice.value === 'other' ? '' : records[0].classes[Number(choice.value)];
    for (const one of records) one.correction = {label, who: who.value.trim(), when: new Date().toISOString()};
    await store.change(records);
    told.textContent = say('correct.saved');
    saved();
  });
  return form;
}

const answerText = record => record.plantAnswer.length ? record.plantAnswer.map(nameOf).join(' / ') : say('answer.expert');

function plantsOf(records) {
  const plants = new Map();
  for (const one of [...records].sort((a, b) => b.added - a.added)) plants.set(one.plant, [...(plants.get(one.plant) ?? []), one]);
  return [...plants.values()];
}

function showPlant(records, store, again, list) {
  const item = element('li', {}, list), strip = element('div', {class: 'strip'}, item), words = {dateStyle: 'medium', timeStyle: 'short'};
  for (const one of records) element('img', {src: one.thumbnail, alt: ''}, strip);
  element('p', {text: answerText(records[0]), class: 'name'}, item);
  element('p', {text: new Intl.DateTimeFormat(chosenLanguage(), words).format(new Date(records[0].taken)), class: 'small'}, item);
  const said = records[0].correction;
  if (said) element('p', {text: say('correct.said', {name: said.label ? nameOf(said.label) : say('correct.other')}), class: 'small'}, item);
  const more = element('details', {}, item);
  element('summary', {text: say('correct.title')}, more);
  more.addEventListener('toggle', () => {
    if (more.open && !more.querySelector('form')) more.append(correctionForm(records, store, again));
  });
  element('button', {text: say('history.forget'), 'aria-label': `${say('history.forget')}: ${answerText(records[0])}`, type: 'button', class: 'quiet', onclick: async () => {
    await store.remove(records.map(one => one.id));
    again();
  }}, item);
}

export async function showHistory(store) {
  const records = await store.all(), plants = plantsOf(records), list = place('plants'), again = () => showHistory(store);
  const box = place('history');
  box.hidden = !records.length;
  place('history-title').textContent = say('history.title', {n: plants.length});
  place('history-note').hidden = !store.lasting;
  place('not-kept').hidden = store.lasting;
  list.replaceChildren();
  for (const one of plants) showPlant(one, store, again, list);
  for (const id of ['hand-out', 'forget-all']) place(id).disabled = !records.length;
}

/** Gives a file to the user. */
function save(blob, name) {
  const url = URL.createObjectURL(blob);
  element('a', {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export async function handOut(store) {
  const told = place('hand-told'), button = place('hand-out'), records = await store.all();
  const allowed = {time: place('allow-time').checked, place: place('allow-place').checked};
  button.disabled = true;
  told.classList.remove('bad');
  try {
    const made = await makeReturns(records, store, allowed, n => { told.textContent = say('looking', {n, of: records.length}); });
    for (const {blob, name} of made) save(blob, name);
    told.textContent = made.map(({name, count}) => sayCount('hand.done', count, {name})).join(' ');
  } catch (error) {
    told.classList.add('bad');
    told.textContent = say('hand.failed', {error: error.message || error});
  }
  button.disabled = false;
}

export async function forgetAll(store) {
  const records = await store.all();
  if (!confirm(sayCount('history.sure', records.length))) return;
  await store.remove(records.map(one => one.id));
  await showHistory(store);
}

/** Where the device is, {latitude, longitude, accuracy}; null, with the reason shown, where it doesn't say. */
export async function whereNow() {
  if (!place('allow-place').checked) return null;
  try {
    const {coords} = await new Promise((resolve, reject) => {
      if (!navigator.geolocation) reject(new Error('geolocation'));
      navigator.geolocation.getCurrentPosition(resolve, reject, {maximumAge: 60_000, timeout: 10_000, enableHighAccuracy: true});
    });
    place('place-told').textContent = '';
    return {latitude: coords.latitude, longitude: coords.longitude, accuracy: coords.accuracy};
  } catch (error) {
    place('place-told').textContent = say('place.refused', {error: error.message || error});
    return null;
  }
}

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), one => one.toString(16).padStart(2, '0')).join('');

/** What is kept of a photograph; `added` orders the records. */
export function recordOf(photo, file, plant, spot, answer) {
  const canvas = document.createElement('canvas'), scale = 160 / Math.max(photo.preview.width, photo.preview.height);
  canvas.width = Math.max(1, Math.round(photo.preview.width * scale));
  canvas.height = Math.max(1, Math.round(photo.preview.height * scale));
  canvas.getContext('2d').drawImage(photo.preview, 0, 0, canvas.width, canvas.height);
  return {
    id: newId(), plant, added: Date.now() + performance.now() % 1, taken: new Date(file.lastModified || Date.now()).toISOString(),
    thumbnail: canvas.toDataURL('image/jpeg', 0.7), model: facts.model, classes: facts.classes,
    probabilities: photo.probabilities.map(p => Math.min(1, Math.max(0, p))), held: photo.held && photo.held.map(k => facts.classes[k]),
    answer, faults: photo.faults, strangeness: photo.strangeness, plantAnswer: [], correction: null, place: spot,
  };
}
