// returns.zip: photographs, answers and corrections for whoever made the page; manihot's photos/returns.py reads it.
import {decode} from './model.js';
import {kindOf, withoutFacts} from './jpeg.js';
import {sha256, zipOf} from './zip.js';

const MOST_PHOTOS = 2000, MOST_BYTES = 2 ** 29;  // of one zip, which has to pass through a messenger
export const MOST_PHOTO = 2 ** 26;  // bytes; the reader takes no larger ones

/** The bytes that are handed out: as the camera wrote them, or without what they say of time and place. */
async function handedOut(bytes, all) {
  const kind = kindOf(bytes);
  if (kind === 'jpg' || (all && kind)) {
    const found = all ? bytes : withoutFacts(bytes);
    if (found) return {bytes: found, kind};
  }
  return {bytes: await asPng(bytes), kind: 'png'};
}

async function asPng(bytes) {
  const {data, h, w} = await decode(new Blob([bytes])), image = new ImageData(w, h), canvas = document.createElement('canvas');
  for (let k = 0; k < h * w; k++) image.data.set([data[3 * k], data[3 * k + 1], data[3 * k + 2], 255], 4 * k);
  canvas.width = w;
  canvas.height = h;
  canvas.getContext('2d').putImageData(image, 0, 0);
  const blob = await new Promise(resolve => canvas.toBlob(resolve, 'image/png'));
  if (!blob) throw new Error('toBlob');
  return new Uint8Array(await blob.arrayBuffer());
}

function row(record, file, digest, {time, place}) {
  const said = record.correction;
  return {
    file, sha256: digest, taken: time ? record.taken : null, plant: record.plant, probabilities: record.probabilities,
    held: record.held, answer: record.answer, faults: record.faults, strangeness: record.strangeness,
    correction: said ? {label: said.label, who: said.who, when: time ? said.when : null} : null,
    place: place ? record.place : null,
  };
}

/** Zips [{name, blob, count}] of records, one or more for each model. allowed: {time, place}; tell(n) hears of progress. */
export async function makeReturns(records, store, allowed, tell) {
  const made = [], now = new Date().toISOString();
  let waiting = [], model = '', size = 0, seen = 0;
  const finish = () => {
    if (!waiting.length) return;
    const about = {
      format: 'manihot-returns', version: 1, made: allowed.time ? now : `${now.slice(0, 10)}T00:00:00.000Z`,
      model: {sha256: model}, classes: waiting[0].record.classes, photographs: waiting.map(one => one.row),
    };
    const index = new TextEncoder().encode(JSON.stringify(about));
    const entries = [{name: 'returns.json', bytes: index}, ...waiting.map(one => ({name: one.row.file, bytes: one.bytes}))];
    made.push({name: made.length ? `returns-${made.length + 1}.zip` : 'returns.zip', blob: zipOf(entries), count: waiting.length});
    waiting = [];
    size = 0;
  };
  for (const record of [...records].sort((a, b) => a.model < b.model ? -1 : a.model > b.model ? 1 : a.added - b.added)) {
    if (record.model !== model || waiting.length >= MOST_PHOTOS || size > MOST_BYTES) finish();
    model = record.model;
    const own = await store.file(record.id);
    if (!own) continue;  // deleted on another page in the meantime
    const {bytes, kind} = await handedOut(new Uint8Array(own), allowed.time && allowed.place);
    waiting.push({record, bytes, row: row(record, `photos/${record.id}.${kind}`, sha256(bytes), allowed)});
    size += bytes.length;
    tell(++seen);
    await new Promise(go => setTimeout(go));
  }
  finish();
  return made;
}
