// A zip whose entries are stored as they are, and the checksums that go with it.

const CRC = Int32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xEDB88320 : n >>> 1;
  return n;
});

export function crc32(bytes) {
  let crc = -1;
  for (let k = 0; k < bytes.length; k++) crc = (crc >>> 8) ^ CRC[(crc ^ bytes[k]) & 255];
  return (crc ^ -1) >>> 0;
}

const DATE = 0x21;  // 1980-01-01, in every entry: when it was made stays with whoever made it
const NAMES_ARE_UTF8 = 0x800;

function numbers(...pairs) {
  const out = new DataView(new ArrayBuffer(pairs.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of pairs) {
    if (size === 2) out.setUint16(at, value, true);
    else out.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(out.buffer);
}

/** A Blob of entries [{name, bytes}], of less than 4 GiB together. */
export function zipOf(entries) {
  const pieces = [], index = [];
  let at = 0;
  for (const {name, bytes} of entries) {
    const called = new TextEncoder().encode(name);
    const about = [[2, 20], [2, NAMES_ARE_UTF8], [2, 0], [2, 0], [2, DATE], [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, called.length], [2, 0]];
    const head = numbers([4, 0x04034b50], ...about);
    index.push(numbers([4, 0x02014b50], [2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]), called);
    pieces.push(head, called, bytes);
    at += head.length + called.length + bytes.length;
  }
  const size = index.reduce((sum, one) => sum + one.length, 0);
  const end = numbers([4, 0x06054b50], [2, 0], [2, 0], [2, entries.length], [2, entries.length], [4, size], [4, at], [2, 0]);
  return new Blob([...pieces, ...index, end], {type: 'application/zip'});
}

const fraction = x => Math.floor((x - Math.floor(x)) * 2 ** 32);
const PRIMES = [];
for (let n = 2; PRIMES.length < 64; n++) if (PRIMES.every(p => n % p)) PRIMES.push(n);
const ROUNDS = Int32Array.from(PRIMES, p => fraction(Math.cbrt(p))), START = Int32Array.from(PRIMES.slice(0, 8), p => fraction(Math.sqrt(p)));
const turned = (x, by) => (x >>> by) | (x << (32 - by));

/** SHA-256 in hexadecimal (FIPS 180-4): a browser has its own only where the page came by https. */
export function sha256(bytes) {
  const whole = new Uint8Array(Math.ceil((bytes.length + 9) / 64) * 64), view = new DataView(whole.buffer);
  whole.set(bytes);
  whole[bytes.length] = 128;
  view.setUint32(whole.length - 8, Math.floor(bytes.length / 2 ** 29));
  view.setUint32(whole.length - 4, bytes.length * 8 % 2 ** 32);
  const sum = START.slice(), w = new Int32Array(64);
  for (let at = 0; at < whole.length; at += 64) {
    for (let k = 0; k < 16; k++) w[k] = view.getInt32(at + 4 * k);
    for (let k = 16; k < 64; k++) {
      const x = w[k - 15], y = w[k - 2];
      w[k] = w[k - 16] + w[k - 7] + (turned(x, 7) ^ turned(x, 18) ^ (x >>> 3)) + (turned(y, 17) ^ turned(y, 19) ^ (y >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = sum;
    for (let k = 0; k < 64; k++) {
      const one = (h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[k] + w[k]) | 0;
      const two = ((turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g; g = f; f = e; e = (d + one) | 0; d = c; c = b; b = a; a = (one + two) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((value, k) => { sum[k] += value; });
  }
  return Array.from(sum, one => (one >>> 0).toString(16).padStart(8, '0')).join('');
}
