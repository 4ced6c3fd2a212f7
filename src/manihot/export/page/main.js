// The page: one plant at a time, from photographs to an answer.
import {answerOf, poolPlant, predictionSet} from './answer.js';
import {correctionForm, forgetAll, handOut, newId, recordOf, showHistory, whereNow} from './history.js';
import {classify, decode, facts, startModel} from './model.js';
import {MOST_PHOTO} from './returns.js';
import {openStore, remember, remembered} from './store.js';
import {place, element, showAdvice, showAnswer, showPhotographs} from './view.js';
import {crc32, sha256} from './zip.js';
import {chooseLanguage, chosenLanguage, languages, percent, say} from './words.js';

const plant = {id: newId(), photos: [], records: []};
let store, tested = null, status = null;  // status: [key, values, bad] of what is said at the top

function tell(key, values = {}, bad = false) {
  status = key && [key, values, bad];
  const box = place('start');
  box.hidden = !key;
  box.classList.toggle('bad', bad);
  if (key) box.textContent = say(key, values);
}

/** All text of the page, in the chosen language. */
function translate() {
  document.documentElement.lang = chosenLanguage();
  document.title = place('title').textContent = facts.title ?? say('title');
  for (const one of document.querySelectorAll('[data-say]')) one.textContent = say(one.dataset.say);
  place('language').setAttribute('aria-label', say('language.choose'));
  place('about').textContent = say('about', facts.about);
  if (status) tell(...status);
  showCheck();
  show();
}

function showCheck() {
  const box = place('check');
  box.classList.toggle('bad', tested !== null && !tested.good);
  if (tested === null) return;
  const words = tested.good ? say('device.good') : say('device.differs', {share: percent(tested.differs)});
  box.textContent = tested.same ? words : `${words} ${say('device.decodes')}`;
}

function show() {
  const {photos, records} = plant, answer = poolPlant(photos, facts), box = place('correct');
  showAnswer(answer, photos, toggleLook);
  showPhotographs(photos, answer);
  showAdvice(answer);
  box.hidden = !records.length;
  box.querySelector('form')?.remove();
  if (records.length) box.append(correctionForm(records, store, () => showHistory(store)));
  place('take-words').textContent = say(photos.length ? 'take.another' : 'take');
  place('how').hidden = photos.length > 0;
  if (store) return showHistory(store);
}

function toggleLook() {
  const looked = place('photographs').classList.toggle('looked'), button = place('look');
  button.setAttribute('aria-pressed', String(looked));
  place('look-note').hidden = !looked;
  if (looked) place('photographs').scrollIntoView({block: 'nearest'});
}

/** Keeps a photograph with its answer; the answer to the plant changes with each. */
async function keep(found, file, spot) {
  if (file.size > MOST_PHOTO) throw new Error(say('keep.large'));
  const answer = poolPlant(plant.photos, facts), record = recordOf(found, file, plant.id, spot, answerOf(found, facts));
  await store.add(record, await file.arrayBuffer());
  plant.records.push(record);
  const said = ['one', 'several', 'unmeasured'].includes(answer.kind) ? answer.could : [];
  for (const one of plant.records) one.plantAnswer = said.map(k => facts.classes[k]);
  await store.change(plant.records);
}

async function add(files, taken) {
  usable(false);
  const spot = taken ? await whereNow() : null;
  let failed = null;
  for (const [number, file] of [...files].entries()) {
    tell('looking', {n: number + 1, of: files.length});
    await new Promise(go => setTimeout(go));
    let found;
    try {
      found = await classify(file);
    } catch (error) {
      failed = ['unreadable', {name: file.name || '?', error: error.message || error}, true];
      continue;
    }
    plant.photos.push(found);
    tell(null);
    show();
    try {
      await keep(found, file, spot);
    } catch (error) {
      failed = ['keep.failed', {error: error.message || error}, true];
    }
  }
  tell(null);
  await show();
  if (failed) tell(...failed);
  usable(true);
  place('answer').scrollIntoView({block: 'start'});
}

function usable(yes) {
  for (const id of ['camera', 'gallery']) {
    place(id).disabled = !yes;
    place(id).parentElement.classList.toggle('off', !yes);
    if (yes) place(id).value = '';
  }
}

function nextPlant() {
  Object.assign(plant, {id: newId(), photos: [], records: []});
  place('photographs').classList.remove('looked');
  tell(null);
  window.scrollTo(0, 0);
  return show();
}

function wire() {
  for (const name of languages) element('option', {value: name, text: say('language', {}, name), lang: name, selected: name === chosenLanguage()}, place('language'));
  place('language').addEventListener('change', event => {
    chooseLanguage(event.target.value);
    translate();
  });
  for (const id of ['camera', 'gallery']) place(id).addEventListener('change', event => add(event.target.files, id === 'camera'));
  place('again').addEventListener('click', nextPlant);
  place('hand-out').addEventListener('click', () => handOut(store));
  place('forget-all').addEventListener('click', () => forgetAll(store));
  for (const id of ['allow-time', 'allow-place']) {
    place(id).checked = remembered(id) === 'yes';
    place(id).addEventListener('change', event => {
      remember(id, event.target.checked ? 'yes' : '');
      if (id === 'allow-place') whereNow();
    });
  }
}

/** Where the page is a folder on an https host, a service worker keeps it for when there is no network. */
async function install() {
  if (!facts.app || !navigator.serviceWorker) return;
  const kept = await navigator.serviceWorker.register('sw.js');
  const told = key => { place('installed').textContent = say(key); };
  const watch = worker => {
    const key = kept.active ? 'updated' : 'installed';
    worker.addEventListener('statechange', () => { if (worker.state === 'installed') told(key); });
  };
  if (kept.waiting) told('updated');
  else if (kept.installing) watch(kept.installing);
  kept.addEventListener('updatefound', () => watch(kept.installing));
}

async function begin() {
  wire();
  tell('ready.wait');
  translate();
  store = await openStore();
  await new Promise(go => setTimeout(go, 30));  // so that the words are seen before the work begins
  tested = await startModel();
  tell(null);
  translate();
  usable(true);
  install().catch(error => { place('installed').textContent = String(error.message || error); });
  return tested;
}

const ready = begin();
ready.catch(error => tell('ready.failed', {error: error.message || error}, true));
const given = {ready, plant, facts, decode, classify, predictionSet, answerOf, poolPlant, crc32, sha256};  // for tests, the certificate and benchmarks
Object.assign(globalThis, {manihot: given, ready, decode, classify});
