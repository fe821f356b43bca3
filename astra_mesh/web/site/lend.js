// "Lend this device": this browser computes a share of requests, in a worker. See peer/ and docs/browser-peer.md.

import { json, token } from "./api.js";
import { device, deviceName, giveName } from "./device.js";
import { $, bytes, h, named, picture, s, say, seconds } from "./dom.js";
import { labelOf, markOwn } from "./mesh.js";
import { placed, sharedReason } from "./place.js";

const LENT_KEY = "astra-mesh-lent"; // of this tab: a page that is loaded again goes on lending
const AWAKE_S = 5; // a wake lock outlives the computing: the next request may follow at once
const LEAVE_MS = 500;
const GOODBYE_MS = 100;
const SHOWN = { connecting: "Joining", waiting: "Not connected", left: "Left" };

let worker = null;
let last = null; // what the worker told last
let lock = null; // of the screen; "asked": the browser has not answered yet
let awake = false; // whether it is wanted
let release = 0; // a timer

export function startLending(asked) {
  $("lend-name").value = deviceName();
  $("lend-form").onsubmit = (event) => {
    event.preventDefault();
    join();
  };
  $("lend-leave").onclick = leave;
  $("lend-invite").onclick = invite;
  document.addEventListener("visibilitychange", () => {
    tellVisible();
    if (document.visibilityState === "visible") hurry();
  });
  // Only some browsers tell that they are about to stop a page; to the others it is a lost peer.
  document.onfreeze = freeze;
  document.onresume = hurry;
  addEventListener("online", hurry);
  addEventListener("pageshow", hurry);
  addEventListener("pagehide", () => worker?.postMessage({ type: "leave" }));
  if (asked) ask();
  checkRuntime();
  if (sessionStorage.getItem(LENT_KEY)) join();
}

/** The worker is stopped together with this page, so the page waits until the goodbyes are out. */
function freeze() {
  if (!worker) return;
  worker.postMessage({ type: "sleep" });
  for (const until = performance.now() + GOODBYE_MS; performance.now() < until; );
}

/** A peer that was installed from a clone may lack what a tab runs on: said before somebody tries. */
async function checkRuntime() {
  const found = await fetch("/page/vendor/versions.json").catch(() => null);
  if (!found || found.ok) return;
  $("lend-join").disabled = true;
  say($("lend-problem"), "The peer that serves this page was installed without the browser's runtime: run `make runtime` in its clone and install it again.");
}

/** The address said #lend: whoever opened the page is asked at once. */
export function ask() {
  if (worker) return $("lend").scrollIntoView();
  say($("lend-asked"), "You were asked to lend this device. Nothing is installed, and it ends when you close the page.");
  $("lend").scrollIntoView();
  // Browsers take the focus away when they go to the part of a page that its address names, at the end of loading.
  const focus = () => setTimeout(() => $("lend-join").focus());
  if (document.readyState === "complete") focus();
  else addEventListener("load", focus, { once: true });
}

function join() {
  const focused = $("lend-form").contains(document.activeElement);
  const name = giveName($("lend-name").value);
  $("lend-name").value = name;
  sessionStorage.setItem(LENT_KEY, "yes");
  say($("lend-problem"), "");
  say($("lend-asked"), "");
  show({ phase: "connecting", why: "", models: [], linked: [], now: null, done: 0, newest: null, problem: "", leftOut: null });
  if (focused) $("lend-leave").focus({ preventScroll: true });
  worker = new Worker("/page/peer/worker.js", { type: "module" });
  worker.onmessage = (event) => show(event.data);
  worker.onerror = () => broken("This browser cannot run the page's compute peer, or the peer was installed without it (`make runtime` there adds it).");
  worker.postMessage({ type: "join", base: location.origin, token: token(), name, device: device() });
  tellVisible();
}

/** Who sees nothing needs no measurements: see peer/pace.js. */
const tellVisible = () => worker?.postMessage({ type: "visible", visible: document.visibilityState === "visible" });

function broken(why) {
  sessionStorage.removeItem(LENT_KEY);
  end();
  say($("lend-problem"), why);
}

function leave() {
  sessionStorage.removeItem(LENT_KEY);
  const ending = worker;
  worker = null;
  if (ending) {
    ending.onmessage = ending.onerror = null;
    ending.postMessage({ type: "leave" });
    setTimeout(() => ending.terminate(), LEAVE_MS); // the goodbyes are out by then
  }
  end();
}

function end() {
  const focused = $("lend-on").contains(document.activeElement);
  worker?.terminate();
  worker = null;
  last = null;
  sleep();
  draw();
  if (focused) $("lend-join").focus({ preventScroll: true });
}

/** Join again now, with the token that the page has now. */
export const hurry = () => worker?.postMessage({ type: "hurry", token: token() });

function show(state) {
  last = state;
  if (state.phase === "broken") broken(state.why);
  else draw();
  if (state.now) keepAwake();
  else if (lock) release ||= setTimeout(sleep, 1000 * AWAKE_S);
}

// --- what it says ---------------------------------------------------------------------------------

function draw() {
  const on = last !== null;
  markOwn(last?.id ?? "");
  $("lend-form").hidden = on;
  $("lend-on").hidden = !on;
  if (!on) return;
  drawState();
  $("lend-state").classList.toggle("bad", last.phase === "waiting" || (last.phase === "joined" && Boolean(last.why)));
  const shared = sharedReason(last.models);
  $("lend-models").replaceChildren(...last.models.map((one) => model(one, shared)));
  say($("lend-why"), shared && `On the processor (${shared}).`);
  say($("lend-now"), last.phase === "joined" ? doing() : "");
  say($("lend-done"), last.done ? `${last.done} ${last.done === 1 ? "share" : "shares"} computed so far.` : "");
  say($("lend-problem"), last.problem ? `${last.newest === "refused" ? "It did not take the last one" : "The last one was not finished"}: ${last.problem}` : "");
}

/** Where it stands, and its name: others of the same name may come, which makes that longer. */
export function drawState() {
  if (last === null) return;
  const joined = () => `Joined through ${named(last.host)} as ${labelOf(last.id) ?? named(last.name)}`;
  const where = last.phase === "joined" ? joined() : SHOWN[last.phase];
  say($("lend-state"), last.why ? `${where}: ${last.why}` : where);
}

function model({ name, state, done, total, why, tokenS, place, coming }, shared) {
  const ready = last.phase === "joined" ? "ready" : "loaded"; // nobody can use it now
  const more = further(coming);
  const said = {
    offered: `offered (up to ${bytes(total)}, and some MB for its codes and, once, the program; fetched when somebody needs it)`,
    loading: total ? (done < total ? `fetching ${bytes(done)} of ${bytes(total)}` : "preparing") : "asking for its files",
    measuring: "ready in a moment: measuring",
    ready: (tokenS ? `${ready}: ${seconds(tokenS)} a token and block, ${placed({ place, why }, shared)}` : ready) + more.said,
    failed: `cannot be used here: ${why}`,
    interrupted: `not fetched: ${why}; offered again soon`,
  }[state];
  const part = state === "loading" ? { done, total } : more;
  const bar = state === "loading" || more.said ? h("progress", { ...(part.total ? { max: part.total, value: part.done } : {}), "aria-label": `Fetching ${name}` }) : null;
  return h("li", {}, `${name} `, h("small", {}, said), bar);
}

/** What is loaded in the background of a model that is ready: further rates of its codebooks. */
function further(coming) {
  if (!coming.length) return { said: "" };
  const [done, total] = ["done", "total"].map((name) => coming.reduce((sum, one) => sum + one[name], 0));
  const bits = `${coming.map((one) => one.bits).join(" and ")} bits`;
  return { done, total, said: done < total ? `; fetching ${bits}: ${bytes(done)} of ${bytes(total)}` : `; preparing ${bits}` };
}

function doing() {
  if (last.now) {
    const { model, block, blocks, tokens, of, peers } = last.now;
    return `Computing: ${model}, block ${block + 1} of ${blocks}, ${tokens} of ${of} tokens, with ${peers - 1} other ${peers === 2 ? "device" : "devices"}.`;
  }
  return `Nothing to compute now. ${idle()}`;
}

/** Why nothing comes. */
function idle() {
  if (!last.linked.length) return "It has no link to another device yet.";
  if (!last.models.length) return "The peer has no model that a browser can compute.";
  if (last.models.every((one) => one.state === "failed")) return "None of the models can be used here.";
  if (last.leftOut) return `The newest request went without this device. ${named(last.leftOut.by)} planned it: ${last.leftOut.why}.`;
  return NEWEST[last.newest] ?? "No request came since it joined.";
}

/** How the newest request ended here: see Ended in peer/part.js, and Since in peer/peer.js. */
const NEWEST = {
  done: "It took part in the newest request.",
  lost: "It was lost midway through the newest request: the others did that without it.",
  stopped: "It took part in the newest request until that was stopped.",
  failed: "The newest request went on without it.",
  refused: "The newest request went on without it.",
  "since-joined": "Since it joined again no request came.",
  "since-woke": "Since it woke no request came.",
};

// --- the screen ------------------------------------------------------------------------------------

/** The screen stays on while something is computed, where the browser allows it: a locked phone computes nothing. */
async function keepAwake() {
  clearTimeout(release);
  release = 0;
  awake = true;
  if (lock || !navigator.wakeLock) return;
  lock = "asked";
  try {
    const given = await navigator.wakeLock.request("screen");
    given.onrelease = () => (lock = lock === given ? null : lock);
    lock = given;
    if (!awake) sleep(); // it is over by now
  } catch {
    lock = null; // a battery that is low, or a page in the background
  }
}

function sleep() {
  clearTimeout(release);
  release = 0;
  awake = false;
  if (lock === null || lock === "asked") return;
  lock.release();
  lock = null;
}

// --- inviting another device ----------------------------------------------------------------------

async function invite() {
  say($("lend-problem"), "");
  try {
    const { address, qr } = await json("/tab/invitation");
    $("lend-qr").replaceChildren(picture(qr.size, qr.size, "QR code", `It holds ${address}`,
      s("rect", { width: qr.size, height: qr.size, fill: "#fff" }), s("path", { d: qr.path, fill: "#000" })));
    say($("lend-address"), address);
  } catch (error) {
    $("lend-qr").replaceChildren();
    say($("lend-address"), "");
    say($("lend-problem"), error.message);
  }
}
