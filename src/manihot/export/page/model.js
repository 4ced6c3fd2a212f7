// The network on this device: its parts, photographs to numbers, and the self-test.
import {fromText, gunzip, unlzma} from './unpack.js';
import {prepare} from './pixels.js';
import {measureQuality} from './quality.js';
import {judge} from './answer.js';
import {crc32} from './zip.js';

export const facts = JSON.parse(document.getElementById('facts').textContent);
const PREVIEW = 720;  // pixels of the longer edge of what the page shows of a photograph
let session, ort;

/** A part of the page: out of its own text, or a file beside it. */
async function part(name) {
  const {way, packed, bytes} = facts.parts[name], place = document.getElementById(`part-${name}`);
  const found = place ? fromText(place.textContent, packed) : await fetched(`parts/${name}`);
  place?.remove();
  return way === 'lzma' ? unlzma(found, bytes) : way === 'gzip' ? gunzip(found) : found;
}

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

export async function startModel() {
  const url = URL.createObjectURL(new Blob([await part('runtime')], {type: 'text/javascript'}));
  ort = await import(url);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await part('wasm')).buffer;
  session = await ort.InferenceSession.create(await part('model'), {executionProviders: ['wasm']});
  return selfTest(new Blob([await part('test')], {type: 'image/jpeg'}));
}

/** A bitmap's pixels, over white; read in strips, as some devices limit the size of a canvas. */
function pixelsOf(bitmap) {
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
  return {data, h, w};
}

/** A file's pixels, upright, in sRGB. */
export async function decode(file) {
  const bitmap = await createImageBitmap(file, {imageOrientation: 'from-image'});
  try {
    return pixelsOf(bitmap);
  } finally {
    bitmap.close();
  }
}

function previewOf(bitmap) {
  const canvas = document.createElement('canvas'), scale = Math.min(1, PREVIEW / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext('2d').drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** All that the model says of a photograph; `activation` is {data, classes, h, w} or null. */
export async function classify(file) {
  const bitmap = await createImageBitmap(file, {imageOrientation: 'from-image'});
  let input, preview, size;
  try {
    size = {h: bitmap.height, w: bitmap.width};
    preview = previewOf(bitmap);
    input = prepare(pixelsOf(bitmap), facts.preprocess);
  } finally {
    bitmap.close();
  }
  const tensor = new ort.Tensor('uint8', input.data, [1, input.h, input.w, 3]), out = await session.run({photos: tensor});
  const map = out.activation ? {data: out.activation.data, classes: out.activation.dims[1], h: out.activation.dims[2], w: out.activation.dims[3]} : null;
  const found = {
    input, preview, size, activation: map, quality: measureQuality(input),
    probabilities: Array.from(out.probabilities.data), raw: Array.from(out.logits.data, Math.exp),
    embeddings: out.embeddings.data, strangeness: out.strangeness ? out.strangeness.data[0] : null,
  };
  return {...found, ...judge(found, facts)};
}

/** Does this device compute what the computer did that made the page? */
async function selfTest(photo) {
  const found = await classify(photo), known = facts.test;
  const differs = Math.max(...found.probabilities.map((p, k) => Math.abs(p - known.probabilities[k])));
  const largest = Math.max(...known.embeddings.map(Math.abs));
  const embeddings = Math.max(...known.embeddings.map((e, k) => Math.abs(e - found.embeddings[k]))) / largest;
  return {
    good: differs <= known.bound && embeddings <= 10 * known.bound,
    same: crc32(found.input.data) === known.checksum, differs, embeddings,
  };
}
