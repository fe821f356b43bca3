// The page of one peer: puts the parts together.

import { ask, setToken, takeToken, token, typedToken } from "./api.js";
import * as askPart from "./ask.js";
import { $, named, say } from "./dom.js";
import { ask as askToLend, drawState, hurry, startLending } from "./lend.js";
import { listen } from "./live.js";
import { showMesh } from "./mesh.js";
import { refresh, startPairing } from "./pair.js";
import * as photoPart from "./photo.js";
import * as qualityPart from "./quality.js";
import { forgetRequests, showMarks, showRequest, startTimeline } from "./timeline.js";

let me = ""; // id of the peer that serves this page
let members = ""; // ids of all peers and paired devices as last told
let unlock = null; // where the page waits for a token: goes on with the one that is known now

const lending = new URLSearchParams(location.hash.slice(1)).has("lend");
takeToken();
askPart.startAsk();
photoPart.startPhoto();
qualityPart.startQuality();
startTimeline();
startPairing();
startLending(lending);

/** An address with a token in the page that is open already: a code that was scanned, a line that was pasted. */
addEventListener("hashchange", () => {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("token")) return; // a part of the page
  takeToken();
  if (unlock) unlock();
  else hurry();
  if (given.has("lend")) askToLend();
});

listen({
  mesh(message) {
    const self = message.peers.find((one) => one.self);
    if (self.id !== me) forgetRequests();
    me = self.id;
    say($("me"), named(self.name));
    document.title = `${named(self.name)} · astra_mesh`;
    const count = message.peers.length;
    state(count === 1 ? "1 device" : `${count} devices`, false);
    showMesh(message);
    drawState();
    const ids = [...message.peers.map((one) => one.id).sort(), ...message.paired].join();
    if (ids !== members) refresh();
    members = ids;
    for (const part of [askPart, photoPart, qualityPart]) part.showModels(message.models);
  },
  request: showRequest,
  marks: showMarks,
  up() {
    unlock = null;
    members = "";
    $("token").hidden = true;
    $("main").inert = false;
    $("metrics").hidden = false;
    if ($("state").classList.contains("bad")) state("connected", false);
  },
  down(why) {
    state(why, true);
  },
  locked(again) {
    state("locked", true);
    $("main").inert = true;
    $("metrics").hidden = true;
    $("token").hidden = false;
    $("token-text").focus();
    say($("token-problem"), token() ? "This is not the token of this peer, or not any more." : "");
    unlock = () => {
      unlock = null;
      hurry();
      $("token-text").value = "";
      state("connecting", false);
      again();
    };
    $("token").onsubmit = (event) => {
      event.preventDefault();
      setToken(typedToken($("token-text").value));
      unlock?.();
    };
  },
});

/** A link shows no token: where the peer wants one, the page asks for the figures itself. */
$("metrics").onclick = async (event) => {
  if (!token()) return;
  event.preventDefault();
  try {
    const figures = await (await ask("/metrics")).text();
    location.assign(URL.createObjectURL(new Blob([figures], { type: "text/plain;charset=utf-8" })));
  } catch (error) {
    state(error.message, true);
  }
};

function state(text, bad) {
  say($("state"), text);
  $("state").classList.toggle("bad", bad);
}
