const place = id => document.getElementById(id);
const facts = JSON.parse(place('facts').textContent);
const plant = [];  // of the photographs of one plant: {name, probabilities, raw, pixels}
let session, ort;

function bytes(id) {
  const text = atob(place(id).textContent), out = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) out[k] = text.charCodeAt(k);
  place(id).textContent = '';
  return out;
}
async function unpacked(id) {
  const stream = new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A file's pixels, upright, in sRGB, over white; read in strips, as some devices limit the size of a canvas. */
async function decode(file) {
  const bitmap = await createImageBitmap(file, {imageOrientation: 'from-image'});
  const {width: w, height: h} = bitmap, data = new Uint8Array(h * w * 3), strip = Math.min(h, 256);
  const canvas = document.createElement('canvas');
  canvas.width = w;
  canvas.height = strip;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  for (let top = 0, to = 0; top < h; top += strip) {
    const rows = Math.min(strip, h - top);
    context.fillStyle = '#fff';
    context.fillRect(0, 0, w, strip);
    context.drawImage(bitmap, 0, -top);
    const rgba = context.getImageData(0, 0, w, rows).data;
    for (let from = 0; from < rgba.length; from += 4) {
      data[to++] = rgba[from];
      data[to++] = rgba[from + 1];
      data[to++] = rgba[from + 2];
    }
  }
  bitmap.close();
  return {data, h, w};
}

async function classify(file) {
  const input = prepare(await decode(file), facts.preprocess);
  const tensor = new ort.Tensor('uint8', input.data, [1, input.h, input.w, 3]);
  const found = await session.run({photos: tensor});
  return {
    name: file.name || '', input, probabilities: Array.from(found.probabilities.data),
    raw: Array.from(found.logits.data, Math.exp), embeddings: found.embeddings.data,
  };
}

const mean = rows => rows[0].map((_, k) => rows.reduce((sum, row) => sum + row[k], 0) / rows.length);

/** Classes that can't be ruled out. Ties and the random share of APS are decided for the larger set. */
function predictionSet(raw) {
  const order = raw.map((_, k) => k).sort((a, b) => raw[b] - raw[a] || a - b), scores = [];
  let above = 0;
  order.forEach((k, rank) => {
    const {penalty = 0, free = 0} = facts.sets.settings;
    scores[k] = facts.sets.kind === 'lac' ? 1 - raw[k] : above + penalty * Math.max(rank + 1 - free, 0);
    above += raw[k];
  });
  const limit = facts.sets.thresholds;
  return order.filter(k => limit[k] === null || Math.round(scores[k] * 1e9) / 1e9 <= limit[k]);
}

const percent = share => share >= 0.995 ? 'over 99 %' : share < 0.01 ? 'under 1 %' : Math.round(share * 100) + ' %';

function element(kind, text, parent) {
  const made = document.createElement(kind);
  made.textContent = text;
  parent.append(made);
  return made;
}

function verdict(probabilities, raw) {
  const names = facts.classes, top = probabilities.indexOf(Math.max(...probabilities));
  if (!facts.sets) return [names[top], 'Most likely. How far to trust it was not measured for this model.', false, false];
  const could = predictionSet(raw);
  if (could.length === 1 && could[0] === top) return [names[top], '', false, true];
  if (!could.length) return ['Ask an expert', 'This looks like nothing that the model knows.', true, false];
  if (could.length === names.length) return ['Ask an expert', 'The model cannot rule anything out. Try closer, sharper photographs.', true, false];
  return [could.map(k => names[k]).join(' or '), 'The model cannot decide. Show the plant to an expert.', true, true];
}

function show() {
  const box = place('answer');
  box.replaceChildren();
  box.hidden = place('again').hidden = !plant.length;
  if (!plant.length) return;
  const probabilities = mean(plant.map(one => one.probabilities)), raw = mean(plant.map(one => one.raw));
  const [answer, remark, unsure, promised] = verdict(probabilities, raw);
  box.className = unsure ? 'unsure' : '';
  element('h2', answer, box);
  if (remark) element('p', remark, box);
  const table = element('table', '', box), order = probabilities.map((_, k) => k).sort((a, b) => probabilities[b] - probabilities[a]);
  for (const k of order.slice(0, 5)) {
    const row = element('tr', '', table);
    element('td', facts.classes[k], row);
    element('td', percent(probabilities[k]), row);
  }
  const count = plant.length === 1 ? 'From 1 photograph. More photographs of this plant make the answer better.' : `From ${plant.length} photographs of this plant.`;
  element('p', count, box).className = 'small';
  if (promised) element('p', facts.promise, box).className = 'small';
}

function picture(input) {
  const canvas = element('canvas', '', place('photographs'));
  canvas.width = input.w;
  canvas.height = input.h;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `Photograph ${plant.length}`);
  const image = new ImageData(input.w, input.h);
  for (let k = 0; k < input.w * input.h; k++) {
    image.data.set(input.data.subarray(3 * k, 3 * k + 3), 4 * k);
    image.data[4 * k + 3] = 255;
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
}

async function add(files) {
  const status = place('start');
  usable(false);
  for (const [number, file] of [...files].entries()) {
    status.hidden = false;
    status.className = '';
    status.textContent = files.length > 1 ? `Looking at photograph ${number + 1} of ${files.length}.` : 'Looking at the photograph.';
    await new Promise(go => setTimeout(go));
    try {
      const found = await classify(file);
      plant.push(found);
      picture(found.input);
      status.hidden = true;
    } catch (error) {
      status.className = 'bad';
      status.textContent = `${file.name || 'This file'} could not be read as a photograph (${error.message || error}).`;
      break;
    }
  }
  show();
  usable(true);
}

function usable(yes) {
  for (const id of ['camera', 'gallery']) {
    place(id).disabled = !yes;
    place(id).parentElement.classList.toggle('off', !yes);
    if (yes) place(id).value = '';
  }
}

function checksum(data) {
  let crc = -1;
  for (const value of data) {
    crc ^= value;
    for (let k = 0; k < 8; k++) crc = crc & 1 ? (crc >>> 1) ^ 0xEDB88320 : crc >>> 1;
  }
  return (crc ^ -1) >>> 0;
}

/** Does this device compute what the computer did that made the page? */
async function selfTest() {
  const found = await classify(new Blob([bytes('test')], {type: 'image/jpeg'})), known = facts.test;
  const differs = Math.max(...found.probabilities.map((p, k) => Math.abs(p - known.probabilities[k])));
  const same = checksum(found.input.data) === known.checksum;
  const largest = Math.max(...known.embeddings.map(Math.abs));
  const embeddings = Math.max(...known.embeddings.map((e, k) => Math.abs(e - found.embeddings[k]))) / largest;
  const good = differs <= known.bound && embeddings <= 10 * known.bound;
  const words = good ? 'Self-test passed: this device gives the answers that the model was tested with.'
    : `Self-test: this device differs from the computer that made this page, by ${percent(differs)} in a probability. Take its answers with care.`;
  place('check').textContent = words + (same ? '' : ' Its browser decodes photographs slightly differently.');
  place('check').classList.toggle('bad', !good);
  return {good, same, differs, embeddings};
}

async function begin() {
  const url = URL.createObjectURL(new Blob([bytes('runtime')], {type: 'text/javascript'}));
  ort = await import(url);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await unpacked('wasm')).buffer;
  session = await ort.InferenceSession.create(await unpacked('model'), {executionProviders: ['wasm']});
  const tested = await selfTest();
  place('start').hidden = true;
  usable(true);
  return tested;
}

for (const id of ['camera', 'gallery']) place(id).addEventListener('change', event => add(event.target.files));
place('again').addEventListener('click', () => {
  plant.length = 0;
  place('photographs').replaceChildren();
  place('start').hidden = true;
  show();
});
const ready = begin();
ready.catch(error => {
  place('start').className = 'bad';
  place('start').textContent = `This browser cannot run the page (${error.message || error}). A newer browser can: Chrome 80, Firefox 113, Safari 16.4 or later.`;
});
