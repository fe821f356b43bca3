// What fewer bits cost in quality, as `astra-mesh eval --save` measured it.

import { json } from "./api.js";
import { $, choices, h, picture, s, steps } from "./dom.js";

const [NARROW, WIDE] = [300, 420]; // of the picture: narrow on a phone, so that its text stays large
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [250, 52, 16, 24, 42];
const MEASURES = {
  perplexity: ["more perplexity than one device", "%"],
  accuracy: ["accuracy lost", "points"],
  agreement: ["other answers than one device", "%"],
  cosine: ["distance from one device's vectors", "%"],
};
const TOO = { perplexity: " (as does the KL divergence from one device's answers)" };
const COLOURS = 4;

let chosen = false; // whether a person chose the model

export function startQuality() {
  $("quality-model").onchange = () => {
    chosen = true;
    load();
  };
}

export function showModels(found) {
  const here = found.filter((one) => one.here).map((one) => one.name);
  const [before, listed] = [$("quality-model").value, $("quality-model").dataset.options];
  choices($("quality-model"), here.map((name) => [name, name]));
  $("quality-model").parentElement.hidden = here.length === 0;
  if (here.length === 0) $("quality-body").replaceChildren(h("p", {}, "No model is here."));
  else if (!chosen && listed !== $("quality-model").dataset.options) openMeasured(here);
  else if ($("quality-model").value !== before) load();
}

const figuresOf = (name) => json(`/v1/models/${encodeURIComponent(name)}/quality`);

/** The first model that was measured, unless a person chooses one meanwhile. */
async function openMeasured(names) {
  for (const name of names) {
    const { tasks } = await figuresOf(name).catch(() => ({ tasks: {} })); // load says what is wrong
    if (chosen) return;
    if (!Object.keys(tasks).length) continue;
    $("quality-model").value = name;
    break;
  }
  load();
}

async function load() {
  const name = $("quality-model").value;
  const body = $("quality-body");
  try {
    const { tasks } = await figuresOf(name);
    if (name !== $("quality-model").value) return;
    const parts = Object.entries(tasks).flatMap(([task, found]) => ofTask(task, found));
    body.replaceChildren(...(parts.length ? parts : [unmeasured(name)]));
  } catch (error) {
    body.replaceChildren(h("p", { class: "problem", role: "alert" }, error.message));
  }
}

function unmeasured(name) {
  return h("p", {}, `Nothing is measured yet. On a device with test data: `, h("code", {}, `astra-mesh eval ${name} --data FOLDER --save`));
}

function ofTask(task, found) {
  const [what, unit] = MEASURES[found.measure] ?? [found.measure, "%"];
  const said = [`${task}: ${what}, ${found.sequences} inputs of ${found.data}.`];
  if (found.recommended_bits) said.push(`${found.recommended_bits} bits stay within ${show(found.limit * 100)} ${unit}${TOO[found.measure] ?? ""}, and are taken unless another loss is asked for.`);
  const most = Math.max(...found.measured.map((one) => one.peers));
  const rows = found.measured.filter((one) => one.peers === most).sort((a, b) => a.bits - b.bits);
  return [
    h("p", {}, said.join(" ")),
    h("figure", { "aria-label": what }, plot(rows, found.limit, what, unit, most)),
    h("details", {}, h("summary", {}, "The figures"), h("div", { class: "scroll" }, table(found.measured, unit))),
  ];
}

const show = (value) => `${Number(value.toPrecision(3))}`;

/** As wide as there is room: a unit of the picture is about a pixel. */
const room = () => Math.min(WIDE, Math.max(NARROW, $("quality-body").clientWidth || WIDE));

function plot(rows, limit, what, unit, peers) {
  const width = room();
  const bits = [...new Set(rows.map((one) => one.bits))].sort((a, b) => a - b);
  const [low, high] = [Math.log2(bits[0]), Math.log2(bits.at(-1))];
  const top = 1.15 * Math.max(limit, ...rows.map((one) => one.loss));
  const x = (value) => (high > low ? LEFT + 12 + ((Math.log2(value) - low) / (high - low)) * (width - LEFT - RIGHT - 24) : (LEFT + width) / 2);
  const y = (value) => HEIGHT - BOTTOM - (Math.max(0, value) / top) * (HEIGHT - TOP - BOTTOM);
  const parts = [];
  for (const value of steps(top * 100, 4).map((one) => one / 100)) {
    parts.push(s("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "axis" }));
    parts.push(s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end", class: "soft" }, `${Number((value * 100).toPrecision(3))}`));
  }
  let last = -99;
  for (const value of bits) {
    if (x(value) - last < 26) continue;
    last = x(value);
    parts.push(s("text", { x: last, y: HEIGHT - BOTTOM + 16, "text-anchor": "middle", class: "soft" }, `${value}`));
  }
  parts.push(s("text", { x: (LEFT + width) / 2, y: HEIGHT - 6, "text-anchor": "middle", class: "soft" }, "bits per token and block"));
  parts.push(s("text", { x: 4, y: 13, class: "soft" }, `${what}, ${unit} (${peers} peers)`));
  parts.push(s("line", { x1: LEFT, x2: width - RIGHT, y1: y(limit), y2: y(limit), class: "limit" }));
  parts.push(s("text", { x: width - RIGHT, y: y(limit) - 5, "text-anchor": "end", class: "limit-text" }, "limit"));
  [...new Set(rows.map((one) => one.codec))].forEach((codec, i) => parts.push(...curve(rows.filter((one) => one.codec === codec), codec, i, x, y, unit)));
  const said = rows.map((one) => `${one.codec} at ${one.bits} bits: ${show(one.loss * 100)} ${unit}`).join("; ");
  return picture(width, HEIGHT, `Quality against bits: ${what}`, said, ...parts);
}

function curve(rows, codec, i, x, y, unit) {
  const colour = `c${i % COLOURS}`;
  const points = rows.map((one) => `${x(one.bits)},${y(one.loss)}`).join(" ");
  const dots = rows.map((one) => s("circle", { cx: x(one.bits), cy: y(one.loss), r: 4, class: colour },
    s("title", {}, `${codec}, ${one.bits} bits: ${show(one.loss * 100)} ${unit}`)));
  const first = rows[0];
  const name = s("text", { x: x(first.bits) + 8, y: y(first.loss) - 6 }, codec);
  return [s("polyline", { points, class: `line ${colour}` }), ...dots, name];
}

function table(rows, unit) {
  const metrics = [...new Set(rows.flatMap((one) => Object.keys(one.metrics)))].filter((name) => name !== "loss_error");
  const head = ["codec", "bits", "peers", `loss, ${unit}`, ...metrics.map((name) => name.replaceAll("_", " "))];
  const body = rows.map((one) => h("tr", {}, ...[one.codec, one.bits, one.peers, show(one.loss * 100), ...metrics.map((name) => (name in one.metrics ? show(one.metrics[name]) : ""))].map((text) => h("td", {}, `${text}`))));
  return h("table", {}, h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, ...body));
}
