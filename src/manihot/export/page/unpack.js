// Bytes out of what `export/pack.py` packs: 15 bits in each character of a page, gzip, and LZMA, which browsers lack.

/** Bytes of a text whose characters, from U+0100 on, hold 15 bits each. */
export function fromText(text, length) {
  const out = new Uint8Array(length);
  for (let k = 0, to = 0, held = 0, bits = 0; to < length; k++) {
    held = (held << 15) | (text.charCodeAt(k) - 256);
    for (bits += 15; bits >= 8 && to < length; held &= (1 << bits) - 1) out[to++] = held >> (bits -= 8);
  }
  return out;
}

export async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const FIRST = -0x80000000;  // turns unsigned numbers into signed ones in the same order

/** Reads bits of a range coder (Martin 1979), as LZMA has it; numbers stay whole and signed, which is fast. */
class Bits {
  constructor(bytes, at) {
    this.bytes = bytes;
    this.at = at + 5;
    this.range = -1;
    this.code = 0;
    for (let k = 1; k < 5; k++) this.code = (this.code << 8) | bytes[at + k];
  }

  renew() {
    if (this.range & 0xff000000) return;
    this.range <<= 8;
    this.code = (this.code << 8) | this.bytes[this.at++];
  }

  /** A bit that is 0 with the probability chances[k] / 2048, which learns from it. */
  bit(chances, k) {
    const chance = chances[k], bound = Math.imul(this.range >>> 11, chance);
    let found = 0;
    if ((this.code ^ FIRST) < (bound ^ FIRST)) {
      this.range = bound;
      chances[k] = chance + ((2048 - chance) >> 5);
    } else {
      this.range = (this.range - bound) | 0;
      this.code = (this.code - bound) | 0;
      chances[k] = chance - (chance >> 5);
      found = 1;
    }
    this.renew();
    return found;
  }

  even(count) {
    let value = 0;
    while (count--) {
      this.range >>>= 1;
      let one = 0;
      if ((this.code ^ FIRST) >= (this.range ^ FIRST)) {
        this.code = (this.code - this.range) | 0;
        one = 1;
      }
      this.renew();
      value = value * 2 + one;
    }
    return value;
  }

  tree(chances, from, bits) {
    let at = 1;
    for (let k = 0; k < bits; k++) at = at * 2 + this.bit(chances, from + at);
    return at - (1 << bits);
  }

  backwards(chances, from, bits) {
    let at = 1, value = 0;
    for (let k = 0; k < bits; k++) {
      const one = this.bit(chances, from + at);
      at = at * 2 + one;
      value |= one << k;
    }
    return value;
  }
}

const fresh = count => new Uint16Array(count).fill(1024);

function lengths() {
  const choice = fresh(2), low = fresh(128), middle = fresh(128), high = fresh(256);
  return (bits, place) => {
    if (!bits.bit(choice, 0)) return 2 + bits.tree(low, place * 8, 3);
    return bits.bit(choice, 1) ? 18 + bits.tree(high, 0, 8) : 10 + bits.tree(middle, place * 8, 3);
  };
}

/** A literal; after a match, bits that follow the byte at the same distance have chances of their own. */
function literal(bits, chances, from, state, before) {
  let at = 1;
  if (state >= 7) for (let beside = before; at < 256;) {
    beside <<= 1;
    const expected = beside & 256, one = bits.bit(chances, from + 256 + expected + at);
    at = at * 2 + one;
    if ((expected !== 0) !== (one === 1)) break;
  }
  while (at < 256) at = at * 2 + bits.bit(chances, from + at);
  return at;
}

/** How far back a match of a length lies, counted from 0. */
function distance(bits, slots, far, near, length) {
  const slot = bits.tree(slots, Math.min(length - 2, 3) * 64, 6);
  if (slot < 4) return slot;
  const few = (slot >> 1) - 1, base = (2 | (slot & 1)) << few;
  if (slot < 14) return base + bits.backwards(far, base - slot, few);
  return base + bits.even(few - 4) * 16 + bits.backwards(near, 0, 4);
}

/** The `size` bytes of an .lzma file (Pavlov's LZMA specification). */
export function unlzma(bytes, size) {
  const lc = bytes[0] % 9, lp = Math.floor(bytes[0] / 9) % 5, pb = Math.floor(bytes[0] / 45);
  const out = new Uint8Array(size), bits = new Bits(bytes, 13), literals = fresh(0x300 << (lc + lp));
  const match = fresh(192), rep = fresh(12), rep0 = fresh(12), short = fresh(192), rep1 = fresh(12), rep2 = fresh(12);
  const slots = fresh(256), far = fresh(128), near = fresh(16), ofMatch = lengths(), ofRep = lengths();
  let state = 0, to = 0, a = 0, b = 0, c = 0, d = 0;
  while (to < size) {
    const place = to & ((1 << pb) - 1), both = state * 16 + place;
    if (!bits.bit(match, both)) {
      const before = to ? out[to - 1] : 0;
      const from = 0x300 * (((to & ((1 << lp) - 1)) << lc) + (before >> (8 - lc)));
      out[to] = literal(bits, literals, from, state, state >= 7 ? out[to - a - 1] : 0);
      to++;
      state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
      continue;
    }
    let length;
    if (!bits.bit(rep, state)) {
      [b, c, d] = [a, b, c];
      length = ofMatch(bits, place);
      state = state < 7 ? 7 : 10;
      a = distance(bits, slots, far, near, length);
    } else {
      if (!bits.bit(rep0, state)) {
        if (!bits.bit(short, both)) {
          state = state < 7 ? 9 : 11;
          out[to] = out[to - a - 1];
          to++;
          continue;
        }
      } else if (!bits.bit(rep1, state)) [a, b] = [b, a];
      else if (!bits.bit(rep2, state)) [a, b, c] = [c, a, b];
      else [a, b, c, d] = [d, a, b, c];
      length = ofRep(bits, place);
      state = state < 7 ? 8 : 11;
    }
    if (a >= to) throw new Error('damaged');
    for (const end = Math.min(size, to + length); to < end; to++) out[to] = out[to - a - 1];
  }
  return out;
}
