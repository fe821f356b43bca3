// The mesh as a picture, and the same as a list.

import { isHere } from "./device.js";
import { $, h, labels, rate, say, seconds } from "./dom.js";
import { sketch, toldBy } from "./sketch.js";

const LINKS = 8; // of a device to others that are listed

let mesh = null;
let own = ""; // id of the tab that this page itself is
let shares = new Map(); // peer id -> {start, stop, tokens} of the request that is shown

export function showMesh(message) {
  const names = labels(message.peers);
  mesh = { ...message, peers: message.peers.map((one) => ({ ...one, name: names.get(one.id) })) };
  draw();
}

/** Mark the tab that this page itself is; "": it is none. */
export function markOwn(id) {
  if (own === id) return;
  own = id;
  draw();
}

/** A peer's name as it is shown here; undefined where it is not in the mesh. */
export const labelOf = (id) => mesh?.peers.find((one) => one.id === id)?.name;

/** Which tokens each peer holds of the request that the timeline shows. */
export function showShares(shards) {
  const tokens = Math.max(0, ...shards.map((one) => one.stop));
  shares = new Map(shards.map((one) => [one.id, { ...one, tokens }]));
  draw();
}

function draw() {
  if (mesh === null) return;
  const { peers } = mesh;
  $("mesh-picture").replaceChildren(sketch(peers, shares));
  $("devices").replaceChildren(...peers.map(entry));
  say($("mesh-problem"), mesh.problem ? `Others are not found by themselves (${mesh.problem}): pair with their address.` : "");
}

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
  return h("li", {}, h("b", {}, peer.name), mark(peer), h("small", {}, about.join(" · ")), further(peer));
}

function mark({ id, self }) {
  if (id === own) return " (this browser)";
  if (!self) return "";
  return isHere() ? " (this device)" : " (it serves this page)";
}

/** The links of a device to others than this one, as it tells of them. */
function further(peer) {
  const found = mesh.peers.filter((one) => !one.self).map((one) => [one, toldBy(peer, one)]).filter(([, link]) => link);
  if (!found.length) return null;
  const texts = found.slice(0, LINKS).map(([one, link]) => `to ${one.name} ${rate(link.send_bps)}, ${seconds(link.round_trip_s)}`);
  if (found.length > LINKS) texts.push(`and ${found.length - LINKS} more`);
  return h("small", {}, texts.join(" · "));
}
