// What manihot's photos/preprocess.py computes, equal to the bit: area averaging down, bilinear up, on 8-bit RGB.
// Area: opencv's INTER_AREA. Bilinear: its INTER_LINEAR_EXACT. Pictures are {data: Uint8Array of h*w*3, h, w}.
const f32 = Math.fround;

/** Round half to even, as Python's round and C's rint. */
function even(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 ? low : rest > 0.5 ? low + 1 : low % 2 ? low + 1 : low;
}
const byte = x => Math.max(0, Math.min(255, even(x)));

/** Which places of a row of `from` make each place of a row of `to`, and with what weight. */
function areaTable(from, to) {
  const scale = 1 / (to / from), table = [];
  for (let d = 0; d < to; d++) {
    const begin = d * scale, end = begin + scale, width = Math.min(scale, from - begin);
    const last = Math.min(Math.floor(end), from - 1), first = Math.min(Math.ceil(begin), last);
    if (first - begin > 1e-3) table.push([d, first - 1, f32((first - begin) / width)]);
    for (let s = first; s < last; s++) table.push([d, s, f32(1 / width)]);
    if (end - last > 1e-3) table.push([d, last, f32(Math.min(Math.min(end - last, 1), width) / width)]);
  }
  return table;
}

function areaWhole(img, h, w, down, across) {
  const out = new Uint8Array(h * w * 3), scale = f32(1 / (down * across)), two = down === 2 && across === 2;
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) for (let c = 0; c < 3; c++) {
    let sum = 0;
    for (let j = 0; j < down; j++) {
      let at = ((y * down + j) * img.w + x * across) * 3 + c;
      for (let i = 0; i < across; i++, at += 3) sum += img.data[at];
    }
    out[(y * w + x) * 3 + c] = two ? (sum + 2) >> 2 : byte(f32(f32(sum) * scale));
  }
  return {data: out, h, w};
}

/** A table as arrays, which are read many times faster: places and weights, and where each of `to` rows begins. */
function flat(table, to) {
  const first = new Int32Array(to + 1);
  for (const [d] of table) first[d + 1]++;
  for (let d = 0; d < to; d++) first[d + 1] += first[d];
  return {first, from: Int32Array.from(table, row => row[1] * 3), share: Float32Array.from(table, row => row[2])};
}

/** One row of pixels, from `start` on, to one of w. */
function areaRow(data, start, {first, from, share}, line, w) {
  for (let d = 0; d < w; d++) {
    let red = 0, green = 0, blue = 0;
    for (let k = first[d]; k < first[d + 1]; k++) {
      const at = start + from[k], weight = share[k];
      red = f32(red + f32(data[at] * weight));
      green = f32(green + f32(data[at + 1] * weight));
      blue = f32(blue + f32(data[at + 2] * weight));
    }
    line[3 * d] = red;
    line[3 * d + 1] = green;
    line[3 * d + 2] = blue;
  }
}

function area(img, h, w) {
  if (img.h % h === 0 && img.w % w === 0) return areaWhole(img, h, w, img.h / h, img.w / w);
  const columns = flat(areaTable(img.w, w), w), rows = areaTable(img.h, h);
  const sum = new Float32Array(h * w * 3), line = new Float32Array(w * 3);
  let done = -1;
  for (const [d, s, weight] of rows) {
    if (s !== done) areaRow(img.data, s * img.w * 3, columns, line, w);
    done = s;
    const at = d * w * 3;
    for (let k = 0; k < w * 3; k++) sum[at + k] = f32(sum[at + k] + f32(line[k] * weight));
  }
  return {data: Uint8Array.from(sum, byte), h, w};
}

/** Where one edge grows while the picture shrinks, opencv takes two neighbours, weighted by the area they share. */
function sharedTable(from, to) {
  const inverse = to / from, scale = 1 / inverse, table = [];
  for (let d = 0; d < to; d++) {
    let s = Math.floor(d * scale), share = f32((d + 1) - (s + 1) * inverse);
    share = share <= 0 ? 0 : f32(share - Math.floor(share));
    if (s >= from - 1) { s = from - 1; share = 0; }
    table.push([s, Math.min(s + 1, from - 1), even(f32(f32(1 - share) * 2048)), even(f32(share * 2048))]);
  }
  return table;
}

function betweenTable(from, to) {
  const scale = 1 / (to / from), table = [];
  for (let d = 0; d < to; d++) {
    const place = (d + 0.5) * scale - 0.5;
    let s = Math.floor(place), share = place - s;
    if (s < 0) { s = 0; share = 0; }
    if (s >= from - 1) { s = from - 1; share = 0; }
    const right = even(share * 256);
    table.push([s, Math.min(s + 1, from - 1), 256 - right, right]);
  }
  return table;
}

function weighted(img, h, w, table, join) {
  const columns = table(img.w, w), rows = table(img.h, h), out = new Uint8Array(h * w * 3);
  const across = (y, [a, b, p, q], c) => img.data[(y * img.w + a) * 3 + c] * p + img.data[(y * img.w + b) * 3 + c] * q;
  for (let y = 0; y < h; y++) {
    const [above, below, p, q] = rows[y];
    for (let x = 0; x < w; x++) for (let c = 0; c < 3; c++)
      out[(y * w + x) * 3 + c] = Math.max(0, Math.min(255, join(across(above, columns[x], c), across(below, columns[x], c), p, q)));
  }
  return {data: out, h, w};
}
const joinShared = (a, b, p, q) => (((p * (a >> 4)) >> 16) + ((q * (b >> 4)) >> 16) + 2) >> 2;
const joinBetween = (a, b, p, q) => Math.floor((p * a + q * b + 32768) / 65536);

function resize(img, h, w) {
  if (img.h === h && img.w === w) return img;
  if (h * w >= img.h * img.w) return weighted(img, h, w, betweenTable, joinBetween);
  return img.h >= h && img.w >= w ? area(img, h, w) : weighted(img, h, w, sharedTable, joinShared);
}

function cut(img, top, left, h, w) {
  const data = new Uint8Array(h * w * 3);
  for (let y = 0; y < h; y++) {
    const start = ((top + y) * img.w + left) * 3;
    data.set(img.data.subarray(start, start + w * 3), y * w * 3);
  }
  return {data, h, w};
}

/** One step of a Preprocess: to [height, width] by 'squash', 'crop' or 'pad'. */
function fitted(img, [height, width], fit) {
  if (fit === 'crop') {
    const scale = Math.max(height / img.h, width / img.w);
    const h = Math.max(1, Math.min(img.h, even(height / scale))), w = Math.max(1, Math.min(img.w, even(width / scale)));
    return resize(cut(img, Math.floor((img.h - h) / 2), Math.floor((img.w - w) / 2), h, w), height, width);
  }
  if (fit === 'pad') {
    const scale = Math.min(height / img.h, width / img.w);
    const h = Math.max(1, even(img.h * scale)), w = Math.max(1, even(img.w * scale));
    const small = resize(img, h, w), data = new Uint8Array(height * width * 3).fill(128);
    const top = Math.floor((height - h) / 2), left = Math.floor((width - w) / 2);
    for (let y = 0; y < h; y++) data.set(small.data.subarray(y * w * 3, (y + 1) * w * 3), ((top + y) * width + left) * 3);
    return {data, h: height, w: width};
  }
  return resize(img, height, width);
}

/** The first step where the photograph keeps its own proportions: it covers [height, width], and is never enlarged. */
function kept(img, [height, width]) {
  const scale = Math.min(1, Math.max(height / img.h, width / img.w), Math.sqrt(2 * height * width / (img.h * img.w)));
  return resize(img, Math.max(1, even(img.h * scale)), Math.max(1, even(img.w * scale)));
}

/** A decoded photograph to the network's input, by way of the stored size, as in training. */
export function prepare(img, preprocess) {
  const stored = preprocess.stored || preprocess.size;
  const first = preprocess.own ? kept(img, stored) : fitted(img, stored, preprocess.fit);
  return fitted(first, preprocess.size, preprocess.fit);
}
