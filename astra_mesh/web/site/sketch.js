// The mesh as a picture: this device in the middle, its links to the others. No text lies on another: what has
// no room is left to the list below the picture.

import { clipped, initial, picture, rate, s, seconds } from "./dom.js";

const WIDTH = 320; // of the picture, in its own units; on a small phone about a pixel each
const RADIUS = 22; // of a device
const RING = RADIUS + 5; // around it: its part of the tokens
const NAME = 15; // letters of a name
const NAME_WIDTH = 88;
const LINE = 14; // from one line of text to the next
const PAD = 2; // around a text
const FAR = 108; // of the others from the middle, sideways
const ON_LINKS = 2; // others up to which figures stand on the links; more have them below their names
const MOST = 8; // others whose links bear figures

const pen = document.createElement("canvas").getContext("2d");
pen.font = "12px system-ui, sans-serif"; // that of style.css

const widest = (texts) => Math.max(...texts.map((text) => pen.measureText(text).width));

/** @param shares  peer id -> {start, stop, tokens} */
export function sketch(peers, shares) {
  const others = peers.filter((one) => !one.self);
  const me = peers.find((one) => one.self);
  const { places, height } = placed(me, others);
  const middle = places.get(me.id);
  const room = finder([...places.values()], height);
  const written = peers.map((one) => {
    const place = places.get(one.id);
    const isUpper = others.length > ON_LINKS && place[1] < middle[1] - RING;
    return below(place, texts(one, shares.get(one.id), others.length), isUpper, room);
  });
  const links = drawn(middle, others, places);
  const figures = links.map((one) => label(one, room));
  const lines = links.map(({ from, to, kind }) => s("line", { x1: from[0], y1: from[1], x2: to[0], y2: to[1], class: kind }));
  const nodes = peers.flatMap((one) => node(one, places.get(one.id), shares.get(one.id)));
  const said = others.length === 0 ? "Only this device is here." : peers.map((one) => one.name).join(", ");
  return picture(WIDTH, height, "The mesh", said, ...lines, ...figures, ...nodes, ...written);
}

/** Gives the first of some boxes (their middle and size) that lies on no device and on no box given before. */
function finder(places, height) {
  const taken = places.map(([x, y]) => ({ x, y, width: 2 * RING, height: 2 * RING }));
  const meet = (a, b) => 2 * Math.abs(a.x - b.x) < a.width + b.width && 2 * Math.abs(a.y - b.y) < a.height + b.height;
  const isInside = ({ x, y, width: w, height: h }) => x >= w / 2 && x <= WIDTH - w / 2 && y >= h / 2 && y <= height - h / 2;
  return (boxes) => {
    const found = boxes.find((box) => isInside(box) && !taken.some((one) => meet(one, box)));
    if (found) taken.push(found);
    return found;
  };
}

/** This device in the middle and the others around; two or three devices fit without a ring. */
function placed(me, others) {
  const [left, right, middle] = [54, WIDTH - 54, WIDTH / 2];
  const [one, other] = others;
  if (others.length === 0) return { height: 110, places: new Map([[me.id, [middle, 40]]]) };
  if (others.length === 1) return { height: 110, places: new Map([[me.id, [left, 40]], [one.id, [right, 40]]]) };
  if (others.length === 2) {
    return { height: 218, places: new Map([[me.id, [middle, 32]], [one.id, [left, 156]], [other.id, [right, 156]]]) };
  }
  const far = 110 + 14 * Math.min(others.length - 3, MOST - 3); // up and down: so that texts have room between devices
  const edge = RING + 4 * LINE + 2 * PAD; // of the picture, from the outermost devices: their texts
  const angles = others.map((_, i) => (2 * Math.PI * i) / others.length - Math.PI / 2);
  const [top, bottom] = [far, far * Math.max(...angles.map(Math.sin))]; // of the middle
  const places = new Map([[me.id, [middle, edge + top]]]);
  others.forEach((peer, i) => {
    places.set(peer.id, [middle + FAR * Math.cos(angles[i]), edge + top + far * Math.sin(angles[i])]);
  });
  return { height: 2 * edge + top + bottom, places };
}

// --- links ------------------------------------------------------------------------------------------

/** Links between others, then those of this device. Figures stand on them where the picture has few. */
function drawn(me, others, places) {
  const isRoomy = others.length <= ON_LINKS;
  const found = [];
  for (let i = 0; i < others.length; i++)
    for (let j = i + 1; j < others.length; j++) {
      const told = toldBy(others[i], others[j]) ?? toldBy(others[j], others[i]);
      const [from, to] = [places.get(others[i].id), places.get(others[j].id)];
      found.push({ from, to, kind: "link thin", part: 0.5, figures: isRoomy ? told : undefined });
    }
  const part = others.length === 1 ? 0.5 : 0.6; // clear of the name in the middle
  for (const one of others) found.push({ from: me, to: places.get(one.id), kind: "link", part, figures: isRoomy ? one : undefined });
  return found;
}

/** What a device tells of its link to another one. */
export const toldBy = (one, other) => one.links.find((link) => link.id === other.id);

const measured = ({ send_bps: bps, round_trip_s: trip }) => [
  { text: bps === null ? "rate ?" : rate(bps), kind: "rate" },
  { text: seconds(trip), kind: "soft" },
];

/** Rate and delay of a link, on it. */
function label({ from, to, part: best, figures }, room) {
  if (!figures) return null;
  const lines = measured(figures);
  const [width, height] = [widest(lines.map((one) => one.text)) + 4 * PAD, 2 * LINE + 2 * PAD];
  const at = (part) => ({ x: from[0] + part * (to[0] - from[0]), y: from[1] + part * (to[1] - from[1]), width, height });
  const box = room([0, 0.05, -0.05, 0.1, -0.1].map((more) => at(best + more)));
  if (!box) return null;
  const back = s("rect", { x: box.x - width / 2, y: box.y - height / 2, width, height, rx: 5, class: "label-back" });
  return s("g", { class: "label" }, back, ...column(lines, box));
}

/** Lines of text in the middle of a box. */
function column(lines, { x, y, height }) {
  const first = y - height / 2 + LINE - 1;
  return lines.map(({ text, kind }, i) => s("text", { x, y: first + LINE * i, "text-anchor": "middle", class: kind }, text));
}

// --- devices ----------------------------------------------------------------------------------------

function node(peer, [x, y], share) {
  const parts = [s("circle", { cx: x, cy: y, r: RADIUS, class: peer.self ? "node me" : "node" })];
  if (share) parts.push(arc(x, y, (share.stop - share.start) / Math.max(1, share.tokens)));
  parts.push(s("text", { x, y: y + 4, "text-anchor": "middle" }, share ? `${share.stop - share.start}` : initial(peer.name)));
  return parts;
}

/** What stands below a device. */
function texts(peer, share, others) {
  const lines = [{ text: fitting(peer.name), kind: "" }];
  if (share) lines.push({ text: "tokens", kind: "soft" });
  if (!peer.self && others > ON_LINKS && others <= MOST) lines.push(...measured(peer));
  return lines;
}

function fitting(name) {
  let text = clipped(name, NAME);
  for (let most = NAME - 1; widest([text]) > NAME_WIDTH && most > 1; most--) text = clipped(name, most);
  return text;
}

/** Below a device, or above it where it is one of the upper ones; the name alone where there is no room for all. */
function below([x, y], lines, isUpper, room) {
  for (const some of [lines, lines.slice(0, 1)]) {
    const [width, height] = [widest(some.map((one) => one.text)) + 2 * PAD, LINE * some.length + PAD];
    const away = RING + height / 2 + 1;
    const box = room((isUpper ? [-away, away] : [away, -away]).map((far) => ({ x, y: y + far, width, height })));
    if (box) return s("g", { class: "label name" }, ...column(some, box));
  }
  return null;
}

/** The part of the tokens that a peer holds, as a part of a ring. */
function arc(x, y, part) {
  const around = 2 * Math.PI * RING;
  return s("circle", {
    cx: x, cy: y, r: RING, class: "share", transform: `rotate(-90 ${x} ${y})`,
    "stroke-dasharray": `${around * part} ${around}`,
  });
}
