// Letting devices into the mesh, and shutting them out.

import { json } from "./api.js";
import { isHere } from "./device.js";
import { $, h, named, picture, s, say } from "./dom.js";
import { startScan } from "./scan.js";

const KEPT = "astra-mesh-window"; // the window that this page opened, until its tab is closed
const REFRESH_MS = 1000;
const RETRY_MS = 5000; // after an answer that did not come, where no window is shown
const SHORT_ID = 8; // digits of an id, as the command line shows it

let timer = 0;
let turn = 0; // counts what was asked and shown: an answer that was overtaken says nothing any more
let own = ""; // how the device is called whose peer serves this page
let left = 0; // seconds that the open window still had

export function startPairing() {
  $("pair-open").onclick = () => act(async () => {
    const found = await json("/v1/pairing/open", {});
    keep(found);
    showStatus(found);
  });
  $("pair-close").onclick = () => act(async () => {
    showStatus(await json("/v1/pairing/close", {}));
    say($("pair-state"), "Closed: the code holds no more.");
  });
  $("pair-leave").onclick = () => {
    if (confirm(`Take ${isHere() ? "this device" : own} out of the mesh? It has to be paired again to come back.`)) act(leave);
  };
  $("pair-form").onsubmit = (event) => {
    event.preventDefault();
    act(join);
  };
  startScan((text) => {
    $("pair-code").value = text;
    act(join);
  });
}

/** The devices of the mesh as the peer lists them. What was said stays, errors too. It is told once that they changed, so
 *  this tries until it knows them. */
export async function refresh() {
  const asked = ++turn;
  clearTimeout(timer);
  try {
    const found = await json("/v1/pairing");
    if (asked === turn) showStatus(found);
  } catch (error) {
    if (asked === turn) later(error); // the top of the page says that the peer is gone
  }
}

function later({ status }) {
  if (status === 401) return; // a token has to be given first, and then this is called
  timer = setTimeout(refresh, $("pair-window").hidden ? RETRY_MS : REFRESH_MS);
}

/** Something that a person asked for. */
async function act(work) {
  turn += 1;
  clearTimeout(timer);
  say($("pair-problem"), "");
  try {
    await work();
  } catch (error) {
    say($("pair-problem"), error.message);
    later(error);
  }
}

async function join() {
  say($("pair-state"), "Looking for the other device…");
  $("pair-join").disabled = true;
  try {
    const at = $("pair-at").value.trim();
    const found = await json("/v1/pairing/join", { code: $("pair-code").value, at: at ? [at] : [] });
    $("pair-code").value = "";
    showStatus(found);
    say($("pair-state"), `Paired with ${called({ name: found.paired, id: found.paired_id })}.`);
  } catch (error) {
    say($("pair-state"), "");
    throw error;
  } finally {
    $("pair-join").disabled = false;
  }
}

async function leave() {
  say($("pair-state"), "Telling the others…");
  $("pair-leave").disabled = true;
  const who = isHere() ? "This device" : own;
  try {
    const found = await json("/v1/pairing/leave", {});
    showStatus(found);
    $("pair-open").focus(); // a button that was disabled has lost it
    say($("pair-state"), [`${who} has left the mesh`, ...found.said].join("; ") + ".");
  } catch (error) {
    say($("pair-state"), "");
    throw error;
  } finally {
    $("pair-leave").disabled = false;
  }
}

/** The code is told once, so a page that is loaded again needs a note of it. */
function keep({ code, qr, addresses, note, window: state }) {
  sessionStorage.setItem(KEPT, JSON.stringify({ code, qr, addresses, note, until: state.until }));
}

function showCode(until) {
  const kept = JSON.parse(sessionStorage.getItem(KEPT));
  const known = kept?.until === until;
  if (known && $("pair-shown").textContent === kept.code) return;
  if (known) say($("pair-state"), instructions(kept));
  say($("pair-shown"), known ? kept.code : "A window is open; its code is shown where it was opened.");
  $("pair-qr").replaceChildren(...(known && !kept.note ? [drawing(kept)] : [])); // no phone gets here by it else
}

function instructions({ code, addresses: [address], note }) {
  const where = address ? ` If it finds nobody, it wants this address too: ${address}.` : "";
  const further = note ? ` But ${note}.` : where;
  return `On the other device: astra-mesh pair ${code}. It holds for two minutes.${further}`;
}

function drawing({ code, qr: { size, path } }) {
  return picture(size, size, "QR code", `It holds the code ${code}`,
    s("rect", { width: size, height: size, fill: "#fff" }), s("path", { d: path, fill: "#000" }));
}

function showStatus({ devices, window: state }) {
  const open = Boolean(state?.open);
  const was = !$("pair-window").hidden;
  turn += 1;
  clearTimeout(timer);
  if (open) {
    showCode(state.until);
    left = state.seconds_left;
    timer = setTimeout(refresh, REFRESH_MS);
  } else {
    sessionStorage.removeItem(KEPT);
    if (was) say($("pair-state"), ended(state));
    if ($("pair-window").contains(document.activeElement)) $("pair-open").focus(); // not lost
  }
  $("pair-window").hidden = !open;
  list($("pair-devices"), devices);
  own = called(devices.find((one) => one.self));
  const alone = devices.length === 1;
  if (alone && document.activeElement === $("pair-leave")) $("pair-open").focus();
  $("pair-leave").hidden = alone;
}

function ended(state) {
  if (state?.came.length) return `Paired with ${called({ name: state.came[0], id: state.came_ids[0] ?? "" })}.`;
  if (state && !state.tries_left) return "Three wrong codes were given, so the window is closed.";
  return state || left > 2 ? "The window was closed; the code holds no more." : "Its time was over before a device was paired; the code holds no more.";
}

/** Made anew only if something changed; the focus stays with its device. */
function list(element, devices) {
  const wanted = JSON.stringify(devices);
  if (element.dataset.devices === wanted) return;
  element.dataset.devices = wanted;
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.device : "";
  element.replaceChildren(...devices.map(item));
  if (focused) element.querySelector(`[data-device="${focused}"]`)?.focus();
}

/** Its name with the first digits of its id: names may be equal, and devices choose theirs. */
function called({ name, id }) {
  return id ? `${named(name)} (${id.slice(0, SHORT_ID)})` : named(name);
}

/** What runs on a device, where its name does not say it. */
function running({ name, peers }) {
  const others = peers.length > 1 || (peers.length === 1 && peers[0] !== name);
  return others ? h("small", {}, `runs ${peers.map(named).join(", ")}`) : "";
}

function item(device) {
  if (device.self) return h("li", {}, `${called(device)}, ${isHere() ? "this one" : "which serves this page"} `, running(device));
  const button = h("button", { type: "button", "data-device": device.id, "aria-label": `Unpair ${called(device)}` }, "Unpair");
  button.onclick = () => {
    if (!confirm(`Shut ${called(device)} out of the mesh, on all devices?`)) return;
    act(async () => showStatus(await json("/v1/pairing/unpair", { id: device.id })));
  };
  return h("li", {}, `${called(device)} `, button, running(device));
}
