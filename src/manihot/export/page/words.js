// The page's text in the language that is chosen.
import {facts} from './model.js';
import {remember, remembered} from './store.js';

export const languages = Object.keys(facts.words);
let language = [remembered('language'), ...(navigator.languages || [navigator.language || 'en'])]
  .map(one => String(one).slice(0, 2).toLowerCase()).find(one => languages.includes(one)) || 'en';

export const chosenLanguage = () => language;
export function chooseLanguage(name) {
  language = name;
  remember('language', name);
}

/** A text by its key; {name} in it stands for a value. */
export function say(key, values = {}, of = language) {
  const text = facts.words[of][key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** One of the keys KEY.one and KEY.other, by a count. */
export const sayCount = (key, n, values = {}) =>
  say(`${key}.${new Intl.PluralRules(language).select(n) === 'one' ? 'one' : 'other'}`, {n, ...values});

export const anyOf = names => new Intl.ListFormat(language, {type: 'disjunction'}).format(names);

export function percent(share) {
  const text = value => new Intl.NumberFormat(language, {style: 'percent'}).format(value);
  return share >= 0.995 ? say('over', {share: text(0.99)}) : share < 0.01 ? say('under', {share: text(0.01)}) : text(share);
}

/** A text of the advice, which may lack a language: in the chosen one, in English, or in the first. */
export const inLanguage = texts => texts && (texts[language] ?? texts.en ?? Object.values(texts)[0]);

export const nameOf = name => inLanguage(facts.advice?.classes[name]?.name) || name;
