// What a model's numbers mean: prediction sets, refusals, several photographs of one plant as one answer.
// The same as manihot's trust/conformal.py, export/bundle.py and infer/pool.py. `about`: the page's facts.
import {qualityFaults} from './quality.js';

const mean = rows => rows[0].map((_, k) => rows.reduce((sum, row) => sum + row[k], 0) / rows.length);

/** Classes by falling probability. */
export const ordered = probabilities => probabilities.map((_, k) => k).sort((a, b) => probabilities[b] - probabilities[a] || a - b);

/** Classes that can't be ruled out. Ties and the random share of APS are decided for the larger set. */
export function predictionSet(raw, sets) {
  const order = ordered(raw), scores = [], limit = sets.thresholds;
  let above = 0;
  order.forEach((k, rank) => {
    const {penalty = 0, free = 0} = sets.settings;
    scores[k] = sets.kind === 'lac' ? 1 - raw[k] : above + penalty * Math.max(rank + 1 - free, 0);
    above += raw[k];
  });
  return order.filter(k => limit[k] === null || Math.round(scores[k] * 1e9) / 1e9 <= limit[k]);
}

/** One photograph: what is wrong with it, and whether it is of the kind that the model knows. */
export function judge(found, about) {
  const faults = qualityFaults(found.quality, about.quality);
  const strange = about.unknown !== null && found.strangeness !== null && found.strangeness > about.unknown.limit;
  return {faults, strange, used: !faults.length && !strange, held: about.sets ? predictionSet(found.raw, about.sets) : null};
}

/** The answer to one photograph, as `manihot predict` writes it. */
export function answerOf(photo, about) {
  if (photo.faults.length) return 'poor photograph';
  if (photo.strange) return 'not a photograph of this kind';
  if (photo.held && photo.held.length !== 1) return 'ask an expert';
  return about.classes[photo.held ? photo.held[0] : ordered(photo.probabilities)[0]];
}

/** The answer to a plant: `kind` is unusable, unmeasured, one, several, all or none; `could` are its classes. */
export function poolPlant(photos, about) {
  const used = photos.filter(one => one.used), count = {used: used.length, of: photos.length};
  if (!used.length) return {kind: 'unusable', could: [], probabilities: null, ...count};
  const probabilities = mean(used.map(one => one.probabilities)), top = ordered(probabilities)[0];
  if (!about.sets) return {kind: 'unmeasured', could: [top], probabilities, ...count};
  const held = predictionSet(mean(used.map(one => one.raw)), about.sets);
  const could = ordered(probabilities).filter(k => held.includes(k));
  const kind = could.length === 1 ? 'one' : !could.length ? 'none' : could.length === about.classes.length ? 'all' : 'several';
  return {kind, could, probabilities, ...count};
}
