// The mesh as a picture, and the same as a list: this device in the middle, its links to the others.

import { $, clipped, h, labels, picture, rate, s, say, seconds } from "./dom.js";

const WIDTH = 360;
const RADIUS = 24;
const LINKS = 8; // of a device to others that are listed

let mesh = null;
let shares = new Map(); // peer id -> {start, stop, tokens} of the request that is shown

export function showMesh(message) {
  const names = labels(message.peers);
  mesh = { ...message, peers: message.peers.map((one) => ({ ...one, name: names.get(one.id) })) };
  draw();
}

/** Which tokens each peer holds of the request that the timeline shows. */
export function showShares(shards) {
  const tokens = Math.max(0, ...shards.map((one) => one.stop));
  shares = new Map(shards.map((one) => [one.id, { ...one, tokens }]));
  draw();
}

function draw() {
  if (mesh === null) return;
  const { peers } = mesh;
  $("mesh-picture").replaceChildren(sketch(peers));
  $("devices").replaceChildren(...peers.map(entry));
  say($("mesh-problem"), mesh.problem ? `Others are not found by themselves (${mesh.problem}): pair with their address.` : "");
}

function sketch(peers) {
  const others = peers.filter((one) => !one.self);
  const height = others.length === 0 ? 110 : others.length === 1 ? 130 : others.length === 2 ? 230 : 320;
  const places = placed(peers, others, height);
  const between = [];
  for (let i = 0; i < others.length; i++)
    for (let j = i + 1; j < others.length; j++) between.push(...linkOfOthers(others[i], others[j], places, others.length > 2));
  const me = places.get(peers.find((one) => one.self).id);
  const own = others.flatMap((one) => link(me, places.get(one.id), one, others.length > 8));
  const said = others.length === 0 ? "Only this device is here." : peers.map((one) => one.name).join(", ");
  return picture(WIDTH, height, "The mesh", said, ...between, ...own, ...peers.flatMap((one) => node(one, places.get(one.id))));
}

/** This device in the middle and the others around; two or three devices fit without a ring. */
function placed(peers, others, height) {
  const me = peers.find((one) => one.self);
  if (others.length === 0) return new Map([[me.id, [WIDTH / 2, 40]]]);
  if (others.length === 1) return new Map([[me.id, [60, 50]], [others[0].id, [WIDTH - 60, 50]]]);
  if (others.length === 2) {
    return new Map([[me.id, [WIDTH / 2, 40]], [others[0].id, [60, 160]], [others[1].id, [WIDTH - 60, 160]]]);
  }
  const middle = [WIDTH / 2, height / 2 - 8];
  const places = new Map([[me.id, middle]]);
  others.forEach((one, i) => {
    const angle = (2 * Math.PI * i) / others.length - Math.PI / 2;
    places.set(one.id, [middle[0] + 128 * Math.cos(angle), middle[1] + 112 * Math.sin(angle)]);
  });
  return places;
}

const line = ([x1, y1], [x2, y2], kind) => s("line", { x1, y1, x2, y2, class: kind });

/** A link from this device. Where it is crowded the list has the figures. */
function link(from, to, peer, crowded) {
  const drawn = [line(from, to, "link")];
  return crowded ? drawn : [...drawn, ...label(from, to, 0.58, peer)]; // clear of the name in the middle
}

function linkOfOthers(one, other, places, crowded) {
  const [from, to] = [places.get(one.id), places.get(other.id)];
  const drawn = [line(from, to, "link thin")];
  const told = toldBy(one, other) ?? toldBy(other, one);
  return crowded || !told ? drawn : [...drawn, ...label(from, to, 0.5, told)];
}

/** What a device tells of its link to another one. */
const toldBy = (one, other) => one.links.find((link) => link.id === other.id);

function label(from, to, part, { send_bps: bps, round_trip_s: trip }) {
  const x = from[0] + part * (to[0] - from[0]);
  const y = from[1] + part * (to[1] - from[1]);
  const texts = [rate(bps).replace(" measured yet", "?"), seconds(trip)];
  return [
    s("rect", { x: x - 38, y: y - 16, width: 76, height: 32, rx: 5, class: "label-back" }),
    ...texts.map((text, i) => s("text", { x, y: y - 3 + 14 * i, "text-anchor": "middle", class: i ? "soft" : "" }, text)),
  ];
}

function node(peer, [x, y]) {
  const share = shares.get(peer.id);
  const parts = [s("circle", { cx: x, cy: y, r: RADIUS, class: peer.self ? "node me" : "node" })];
  if (share) parts.push(arc(x, y, (share.stop - share.start) / Math.max(1, share.tokens)));
  parts.push(s("text", { x, y: y + 4, "text-anchor": "middle" }, share ? `${share.stop - share.start}` : initial(peer.name)));
  parts.push(s("text", { x, y: y + RADIUS + 17, "text-anchor": "middle" }, clipped(peer.name, NAME)));
  if (share) parts.push(s("text", { x, y: y + RADIUS + 31, "text-anchor": "middle", class: "soft" }, "tokens"));
  return parts;
}

/** The part of the tokens that a peer holds, as a part of a ring. */
function arc(x, y, part) {
  const around = 2 * Math.PI * (RADIUS + 5);
  return s("circle", {
    cx: x, cy: y, r: RADIUS + 5, class: "share", transform: `rotate(-90 ${x} ${y})`,
    "stroke-dasharray": `${around * part} ${around}`,
  });
}

const initial = (name) => [...name][0]?.toUpperCase() ?? "?";
const NAME = 15; // letters under a node

function entry(peer) {
  const cores = `${Number(peer.cores.toPrecision(3))} ${peer.cores === 1 ? "core" : "cores"}`;
  const about = [peer.system, cores];
  const host = mesh.peers.find((one) => one.id === peer.via);
  if (peer.via) about.unshift(`tab of ${host ? host.name : peer.via.slice(0, 8)}`);
  const mine = mesh.peers.find((one) => one.self);
  if (!peer.self) {
    about.push(`${seconds(peer.round_trip_s)} there and back`);
    about.push(`${rate(peer.send_bps)} to it`, `${rate(peer.receive_bps)} from it`);
    if (peer.host && peer.host === mine.host) about.push("on the same machine");
  }
  const share = shares.get(peer.id);
  if (share) about.push(`tokens ${share.start} to ${share.stop} of ${share.tokens}`);
  return h("li", {}, h("b", {}, peer.name), peer.self ? " (this device)" : "", h("small", {}, about.join(" · ")), further(peer));
}

/** The links of a device to others than this one, as it tells of them. */
function further(peer) {
  const found = mesh.peers.filter((one) => !one.self).map((one) => [one, toldBy(peer, one)]).filter(([, link]) => link);
  if (!found.length) return null;
  const texts = found.slice(0, LINKS).map(([one, link]) => `to ${one.name} ${rate(link.send_bps)}, ${seconds(link.round_trip_s)}`);
  if (found.length > LINKS) texts.push(`and ${found.length - LINKS} more`);
  return h("small", {}, texts.join(" · "));
}
