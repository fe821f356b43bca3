// What each device did for a request, block by block, while it runs.

import { afterLost } from "./cost.js";
import { $, bytes, choices, clipped, h, labels, picture, s, say, seconds, steps } from "./dom.js";
import { showShares } from "./mesh.js";

const KINDS = [
  ["compute", "own tokens"],
  ["encode", "making codes"],
  ["decode", "reading others' codes"],
  ["wait", "waiting for codes"],
];
const [ENCODED, SENT, LOCAL, ARRIVED, ATTENDED, DONE] = [0, 1, 2, 3, 4, 5]; // marks, as the peer counts them
const KIND_OF = { [ENCODED]: "encode", [LOCAL]: "compute", [ATTENDED]: "decode", [DONE]: "compute" };
const [RIGHT, TOP, WIDTH] = [16, 18, 720];
const NARROW = 480; // of less room the names take too much: they stand above their lanes
const LEAST = 240;
const STEP = 72; // at least between two figures of the axis
const KEPT = 8;
const NAME = 17; // letters beside a lane
const LETTER = 7; // of a name above one
const [DIGIT, GAP] = [6.5, 3]; // of a block's number, as wide as it is drawn
const EACH = [1, 2, 5, 10, 20, 50, 100];
const UNSEEN = "Its steps were not recorded, because no page was open when it began.";

const requests = new Map(); // key -> {about, marks: peer id -> {start_us, marks}}
let chosen = null; // a key; null: always the newest
let due = false;

export function startTimeline() {
  $("request-legend").replaceChildren(...KINDS.map(([kind, text]) => h("li", {},
    s("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, s("rect", { width: 12, height: 12, rx: 2, class: `k-${kind}` })), text)));
  // Another room, another picture; not while nothing is drawn, and not for a scroll bar's width.
  new ResizeObserver(() => {
    const svg = $("request-picture").firstElementChild;
    if (svg && Math.abs(svg.viewBox.baseVal.width - room()) > 1) drawSoon();
  }).observe($("request-picture"));
  $("request-choice").onchange = (event) => {
    chosen = event.target.value === "newest" ? null : Number(event.target.value);
    drawSoon();
  };
}

/** A peer that started anew counts its requests anew. */
export function forgetRequests() {
  requests.clear();
  chosen = null;
}

export function showRequest(message) {
  const known = requests.get(message.key);
  const again = known && known.about.attempt !== message.attempt;
  requests.set(message.key, { about: message, marks: known && !again ? known.marks : new Map() });
  while (requests.size > KEPT) requests.delete(Math.min(...[...requests.keys()].filter((key) => key !== newestKey())));
  drawSoon();
}

export function showMarks(message) {
  const request = requests.get(message.key);
  if (!request) return;
  const row = request.marks.get(message.peer) ?? { marks: [] };
  row.start_us = message.start_us;
  for (let i = 0; i < message.marks.length; i += 4) row.marks.push(message.marks.slice(i, i + 4));
  request.marks.set(message.peer, row);
  drawSoon();
}

/** At most one drawing for each picture that the screen shows. */
function drawSoon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
  });
}

/** One that was never planned (a picture that nobody can read) has nothing to show: the one before it stays. */
function newestKey() {
  const planned = [...requests.keys()].filter((key) => requests.get(key).about.shards.length > 0);
  return Math.max(...(planned.length > 0 ? planned : requests.keys()));
}

function draw() {
  const newest = newestKey();
  const request = requests.get(chosen ?? newest) ?? requests.get(newest);
  if (!request) return;
  $("request-none").hidden = true;
  $("request-body").hidden = false;
  choices($("request-choice"), [["newest", "the newest"], ...[...requests.keys()].reverse().map((key) => [`${key}`, named(requests.get(key).about)])]);
  const { about } = request;
  say($("request-said"), sentence(about));
  showShares(about.shards);
  const unseen = about.attempt > 0 && !about.noted;
  say($("request-unseen"), unseen ? UNSEEN : "");
  $("request-picture").hidden = $("request-legend").hidden = unseen;
  const names = labels(about.shards);
  const rows = about.shards.map((shard) => ({ ...shard, name: names.get(shard.id), ...spansOf(request.marks.get(shard.id)) }));
  $("request-picture").replaceChildren(drawn(rows));
  $("request-table").replaceChildren(...table(about));
}

const named = (about) => `${new Date(about.began_s * 1000).toLocaleTimeString()} ${about.task} with ${about.model}`;

function sentence(about) {
  const { cost, outcome } = about;
  const parts = [`${about.task} with ${about.model}: ${outcome || "running"}.`];
  if (!cost) return parts[0];
  if (about.attempt > 1) parts.push(`Planned ${about.attempt} times, because a peer was lost.`);
  if (cost.plan.bits_per_token) parts.push(`${cost.plan.bits_per_token} bits per token and block (${cost.plan.codec}).`);
  parts.push(`Predicted ${seconds(cost.predicted_s)}${cost.actual_s === undefined ? "" : `, took ${seconds(cost.actual_s)}${afterLost(cost)}`}; one device ${seconds(cost.predicted_solo_s)}.`);
  if (about.new_tokens) parts.push(`${about.new_tokens} new token${about.new_tokens === 1 ? "" : "s"}${cost.total_s === undefined ? "" : ` in ${seconds(cost.total_s - cost.actual_s)}`}.`);
  parts.push(`Plan: ${cost.plan.reason}.`);
  return parts.join(" ");
}

/** Marks as pieces of time: each step ends at its mark and began where the one before ended. */
export function spansOf(row) {
  if (!row) return { spans: [], ends: [] };
  const spans = [];
  const ends = []; // [microseconds, block] where a block's output was there
  const arrived = new Map();
  let at = row.start_us;
  for (const [time, mark, block, part] of [...row.marks].sort((a, b) => a[0] - b[0])) {
    if (mark === SENT) continue; // beside the other steps
    if (mark === ARRIVED) {
      arrived.set(`${block} ${part}`, time);
      continue;
    }
    const came = mark === ATTENDED ? arrived.get(`${block} ${part}`) : undefined;
    if (came > at) {
      spans.push({ kind: "wait", from: at, to: came, block });
      at = came;
    }
    spans.push({ kind: KIND_OF[mark], from: at, to: time, block });
    if (mark === DONE) ends.push([time, block]);
    at = time;
  }
  return { spans, ends };
}

/** As wide as there is room: a unit of the picture is about a pixel, so that its text stays large. */
const room = () => Math.min(WIDTH, Math.max(LEAST, $("request-picture").clientWidth || WIDTH));

/** Where the lanes begin, how high each is, and how much of that is above its bars. */
const places = (width) => (width < NARROW ? { left: 6, row: 54, above: 18 } : { left: 144, row: 38, above: 0 });

function drawn(rows) {
  const width = room();
  const { left, row: high, above } = places(width);
  const height = TOP + rows.length * high + 22;
  const most = Math.max(1000, ...rows.flatMap((row) => row.spans.map((one) => one.to)));
  const x = (us) => left + (us / most) * (width - left - RIGHT);
  const unit = most < 2e6 ? [1e3, "ms"] : [1e6, "s"];
  const axis = steps(most / unit[0], Math.min(8, Math.floor((width - left) / STEP))).flatMap((value) => [
    s("line", { x1: x(value * unit[0]), x2: x(value * unit[0]), y1: TOP - 4, y2: height - 18, class: "axis" }),
    s("text", { x: x(value * unit[0]), y: height - 5, "text-anchor": value || !above ? "middle" : "start", class: "soft" }, `${Number(value.toPrecision(4))}${value ? "" : ` ${unit[1]}`}`),
  ]);
  const lanes = rows.flatMap((row, i) => [
    ...(above ? nameAbove(row, TOP + i * high, left, width) : nameBeside(row, TOP + i * high, left)),
    ...lane(row, TOP + i * high + above, x),
  ]);
  const said = rows.map((row) => `${row.name}: tokens ${row.start} to ${row.stop}, ${row.ends.length} blocks done`).join("; ");
  return picture(width, height, "Timeline of the request", said, ...axis, ...lanes);
}

const plural = (tokens) => `${tokens} ${tokens === 1 ? "token" : "tokens"}`;

function nameBeside(row, y, left) {
  return [
    s("text", { x: left - 8, y: y + 13, "text-anchor": "end" }, clipped(row.name, NAME), s("title", {}, row.name)),
    s("text", { x: left - 8, y: y + 27, "text-anchor": "end", class: "soft" }, plural(row.stop - row.start)),
  ];
}

function nameAbove(row, y, left, width) {
  const tokens = plural(row.stop - row.start);
  const letters = Math.floor((width - left - RIGHT) / LETTER) - tokens.length - 2;
  return [
    s("text", { x: left, y: y + 13 }, clipped(row.name, letters), s("title", {}, row.name)),
    s("text", { x: width - RIGHT, y: y + 13, "text-anchor": "end", class: "soft" }, tokens),
  ];
}

function lane(row, y, x) {
  const parts = [];
  for (const { kind, from, to, block } of row.spans) {
    const width = Math.max(0.4, x(to) - x(from));
    const title = s("title", {}, `${row.name}, block ${block}: ${kind}, ${seconds((to - from) / 1e6)}`);
    parts.push(s("rect", { x: x(from), y: y + 3, width, height: 20, class: `k-${kind}` }, title));
  }
  for (const [time] of row.ends) parts.push(s("line", { x1: x(time), x2: x(time), y1: y + 1, y2: y + 27, stroke: "currentColor" }));
  for (const [time, block] of numbered(row.ends, x)) {
    parts.push(s("text", { x: x(time) - 2, y: y + 34, "text-anchor": "end", class: "soft number" }, `${block}`));
  }
  return parts;
}

/** The blocks whose number is written: all, or each second, fifth, ... where these have no room. */
export function numbered(ends, x) {
  const room = ([, block]) => DIGIT * `${block}`.length + GAP;
  const fit = (some) => some.every((one, i) => i === 0 || x(one[0]) - x(some[i - 1][0]) >= room(one));
  const some = EACH.map((step) => ends.filter(([, block]) => block % step === 0));
  return some.find(fit) ?? [];
}

function table({ cost }) {
  if (!cost?.peers) return [];
  const head = ["peer", "tokens", "numbers", "compute", "encode", "decode", "wait", "sent"];
  const rows = cost.peers.map((one) => {
    const sent = Object.values(one.sent_bytes).reduce((sum, size) => sum + size, 0);
    const times = [one.compute_s, one.encode_s, one.decode_s, one.wait_s].map(seconds);
    const cells = [one.tokens, one.precision || "?", ...times, bytes(sent)];
    return h("tr", {}, h("th", { scope: "row" }, one.peer), ...cells.map((text, i) => h("td", { "data-head": head[i + 1] }, `${text}`)));
  });
  const caption = h("caption", {}, "What each peer did. The figures under the bars are the blocks that end there.");
  return [caption, h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, ...rows)];
}
