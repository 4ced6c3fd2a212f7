// What manihot's photos/quality.py measures of a network's input {data: Uint8Array of h*w*3, h, w}.
export function measureQuality({data, h, w}) {
  const grey = new Int32Array(h * w);
  let sum = 0;
  for (let k = 0; k < h * w; k++) {
    grey[k] = Math.floor((299 * data[3 * k] + 587 * data[3 * k + 1] + 114 * data[3 * k + 2] + 500) / 1000);
    sum += grey[k];
  }
  const brightness = rounded(sum / (255 * h * w));
  if (Math.min(h, w) < 3) return {sharpness: 0, brightness, zoom: 0};
  return {sharpness: rounded(sharpnessOf(grey, h, w)), brightness, zoom: rounded(zoomOf(grey, h, w))};
}

const rounded = value => Math.round(value * 1e9) / 1e9;

function sharpnessOf(grey, h, w) {
  const slope = new Int32Array((h - 2) * (w - 2)), bend = new Int32Array(slope.length);
  for (let y = 1, to = 0; y < h - 1; y++) for (let x = 1; x < w - 1; x++, to++) {
    const at = y * w + x, left = grey[at - 1], right = grey[at + 1], above = grey[at - w], below = grey[at + w];
    slope[to] = (right - left) ** 2 + (below - above) ** 2;
    bend[to] = (4 * grey[at] - left - right - above - below) ** 2;
  }
  const count = Math.max(1, Math.floor(0.03 * slope.length)), least = slope.slice().sort()[slope.length - count];
  let n = 0, slopes = 0, bends = 0;
  for (let k = 0; k < slope.length; k++) if (slope[k] >= least) {
    n++;
    slopes += slope[k];
    bends += bend[k];
  }
  return Math.log((bends / n + 1) / (slopes / n + 1));
}

function zoomOf(grey, h, w) {
  const most = 1 << (31 - Math.clz32(Math.min(h, w)));
  const [wide, fine] = [4, 32].map(cells => energyOf(grey, h, w, Math.min(cells, most)) + 0.1);
  return Math.log(wide / fine);
}

/** How much the cells of a grid differ from the mean of their four. */
function energyOf(grey, h, w, cells) {
  const own = new Float64Array(cells * cells), edge = (k, long) => Math.floor(k * long / cells);
  for (let i = 0; i < cells; i++) for (let j = 0; j < cells; j++) {
    const top = edge(i, h), bottom = edge(i + 1, h), left = edge(j, w), right = edge(j + 1, w);
    let sum = 0;
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) sum += grey[y * w + x];
    own[i * cells + j] = sum / ((bottom - top) * (right - left));
  }
  let energy = 0;
  for (let i = 0; i < cells; i += 2) for (let j = 0; j < cells; j += 2) {
    const at = i * cells + j, four = [own[at], own[at + 1], own[at + cells], own[at + cells + 1]];
    const mean = (four[0] + four[1] + four[2] + four[3]) / 4;
    for (const one of four) energy += (one - mean) ** 2;
  }
  return energy / (cells * cells);
}

/** What is wrong with a photograph: names, [] where nothing is. quality: of model.json, null where there are no limits. */
export function qualityFaults(values, quality) {
  const ends = {dark: ['brightness', 'low'], bright: ['brightness', 'high'], blurred: ['sharpness', 'low'], far: ['zoom', 'low']};
  return Object.keys(ends).filter(name => {
    const [measure, end] = ends[name], limit = quality?.measures[measure]?.[end];
    return limit != null && (end === 'low' ? values[measure] < limit : values[measure] > limit);
  });
}
