// A photograph's file without what it says of time, place and device, and with the same pixels.

export function kindOf(bytes) {
  const is = (at, ...wanted) => wanted.every((value, k) => bytes[at + k] === value);
  if (is(0, 0xff, 0xd8, 0xff)) return 'jpg';
  if (is(0, 0x89, 0x50, 0x4e, 0x47)) return 'png';
  return is(0, 0x52, 0x49, 0x46, 0x46) && is(8, 0x57, 0x45, 0x42, 0x50) ? 'webp' : '';
}

const starts = (bytes, at, text) => [...text].every((letter, k) => bytes[at + k] === letter.charCodeAt(0));

/** How an Exif segment, whose content begins at `at`, says that the picture is turned; 1 for upright. */
function orientationOf(bytes, at, end) {
  if (!starts(bytes, at, 'Exif\0\0')) return 1;
  const view = new DataView(bytes.buffer, bytes.byteOffset + at + 6, end - at - 6);
  try {
    const little = view.getUint16(0) === 0x4949, from = view.getUint32(4, little), count = view.getUint16(from, little);
    for (let k = 0; k < count; k++) {
      const entry = from + 2 + 12 * k;
      if (view.getUint16(entry, little) === 0x0112) return view.getUint16(entry + 8, little);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;  // cut off: upright, as browsers take it
  }
  return 1;
}

function turnedSegment(orientation) {
  const tiff = [0x4d, 0x4d, 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0];
  return Uint8Array.from([0xff, 0xe1, 0, 2 + 6 + tiff.length, 0x45, 0x78, 0x69, 0x66, 0, 0, ...tiff]);
}

/** Where the next marker stands, past the packed pixels that begin at `at`. */
function markerAfter(bytes, at) {
  for (; at < bytes.length - 1; at++) {
    const next = bytes[at + 1];
    if (bytes[at] === 0xff && next !== 0 && next !== 0xff && (next < 0xd0 || next > 0xd7)) return at;
  }
  return bytes.length;
}

/** A JPEG with its pixels, colour profile and orientation, and nothing else; null where it is not understood. */
export function withoutFacts(bytes) {
  const pieces = [bytes.subarray(0, 2)];
  let at = 2, orientation = 1, place = 1;
  while (at + 2 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1];
    if (marker === 0xff) { at++; continue; }
    if (marker === 0xd9) {
      pieces.push(bytes.subarray(at, at + 2));
      break;
    }
    const content = at + 4, end = at + 2 + (bytes[at + 2] << 8 | bytes[at + 3]);
    if (!(end <= bytes.length)) return null;
    const profile = marker === 0xe2 && starts(bytes, content, 'ICC_PROFILE\0'), jfif = marker === 0xe0, adobe = marker === 0xee;
    if (marker === 0xe1 && orientation === 1) orientation = orientationOf(bytes, content, end);
    const kept = marker < 0xe0 || (marker > 0xef && marker !== 0xfe) || profile || jfif || adobe;
    const next = marker === 0xda ? markerAfter(bytes, end) : end;
    if (kept) pieces.push(bytes.subarray(at, next));
    if (jfif) place = pieces.length;
    at = next;
  }
  if (orientation > 1 && orientation < 9) pieces.splice(place, 0, turnedSegment(orientation));
  return pieces.length > 2 ? joined(pieces) : null;
}

function joined(pieces) {
  const out = new Uint8Array(pieces.reduce((sum, one) => sum + one.length, 0));
  let at = 0;
  for (const one of pieces) {
    out.set(one, at);
    at += one.length;
  }
  return out;
}
