// Elements, and numbers as people read them.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An HTML element. Text is always text, whatever a peer called itself. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((one) => one !== null && one !== undefined));
  return element;
}

/** A picture with a name and a description for those who do not see it. */
export function picture(width, height, title, description, ...children) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}. ${description}` }, ...children);
}

/** Text, set only if it changed, so that selections stay. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = text === "";
}

/** The choices of a select; what was chosen stays if it is still there, else `first` is taken. */
export function choices(select, options, first = null) {
  const wanted = JSON.stringify(options);
  if (select.dataset.options === wanted) return;
  const before = select.value;
  select.dataset.options = wanted;
  select.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
  const wish = [before, first].find((one) => options.some(([value]) => value === one));
  if (wish !== undefined) select.value = wish;
}

const STEER = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu; // change the direction of what follows, and are not seen
const LEFTWARDS = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u; // letters
const [ISOLATE, END] = ["\u2068", "\u2069"];

/** A device's name, for a place in a sentence: it changes the order of nothing but itself. */
export function named(name) {
  const clean = name.replace(STEER, "");
  return LEFTWARDS.test(clean) ? `${ISOLATE}${clean}${END}` : clean;
}

/** The same without what keeps it to itself. */
const bare = (text) => (text.startsWith(ISOLATE) ? text.replace(STEER, "") : text);

export const initial = (name) => [...bare(name)][0]?.toUpperCase() ?? "?";

const TAG = 4; // digits of an id: enough to tell a few of the same name apart

/** Names by id, as `named`; where two have the same, with the first digits of the id. */
export function labels(peers) {
  const known = peers.map(({ id, name }) => [id, named(name)]);
  const count = (name) => known.filter(([, one]) => one === name).length;
  return new Map(known.map(([id, name]) => [id, count(name) > 1 ? `${name} (${id.slice(0, TAG)})` : name]));
}

/** A label in so many letters; digits at its end, which tell it from others alike, stay. */
export function clipped(label, most) {
  const shown = bare(label);
  const letters = [...shown];
  if (letters.length <= most) return label;
  const [tag] = shown.match(/ (\([0-9a-f]{4}\)|\d{4})$/) ?? [""];
  return `${named(`${letters.slice(0, Math.max(0, most - 1 - tag.length)).join("")}…`)}${tag}`;
}

const three = (value) => (value >= 100 ? Math.round(value) : Number(value.toPrecision(3))).toString();

const PARTS = 100; // of a millisecond: what is less says nothing

export function seconds(value) {
  if (value === null || value === undefined) return "?";
  return value < 1 ? `${three(Math.round(value * 1000 * PARTS) / PARTS)} ms` : `${three(value)} s`;
}

export function bytes(value) {
  if (value < 1000) return `${value} B`;
  return value < 1e6 ? `${three(value / 1e3)} kB` : `${three(value / 1e6)} MB`;
}

/** Bits per second. Within one machine links are as fast as memory: their number says nothing. */
export function rate(value) {
  if (value === null || value === undefined) return "rate not measured yet";
  if (value >= 1e10) return "over 10 Gbit/s";
  return value < 1e6 ? `${three(value / 1e3)} kbit/s` : value < 1e9 ? `${three(value / 1e6)} Mbit/s` : `${three(value / 1e9)} Gbit/s`;
}

const hundredths = (value) => (value * 100).toFixed(value < 0.1 ? 1 : 0);

export const percent = (value) => `${hundredths(value)} %`;

/** A loss of quality: of accuracy in points, of anything else in percent. */
export const lossOf = (measure, value) => `${hundredths(value)} ${measure === "accuracy" ? "points" : "%"}`;

/** Round steps of an axis from 0 to `most`, about `count` of them. */
export function steps(most, count) {
  const rough = most / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => i * step);
}
