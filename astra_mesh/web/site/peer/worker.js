// The worker in which a tab is a peer: the page says join, leave, sleep, hurry and visible, and is told what a person may see.

import { socket } from "../api.js";
import { loadModel } from "./engine.js";
import { hostAt } from "./host.js";
import { compare, measure } from "./measure.js";
import { TabPeer } from "./peer.js";
import { threads } from "./runtime.js";
import { openStore } from "./store.js";

const TOLD_MS = 100; // between two tellings of the page

let peer = null;
let wanted = null; // the token that the page has now
let visible = true; // whether a person can see the page
let news = null;
let timer = 0;

/** Not more often than a person can see, but at once when something begins: the screen is to stay on. */
function show(state) {
  if (state.now && !news?.now) postMessage(state);
  news = state;
  timer ||= setTimeout(() => {
    timer = 0;
    postMessage(news);
  }, TOLD_MS);
}

async function join({ base, token, name, device }) {
  wanted = token;
  const http = hostAt(base, () => wanted);
  const store = await openStore(http);
  const used = await threads();
  peer = new TabPeer({
    makeSocket: () => socket("/tab", "astra-mesh.tab", wanted),
    http,
    engine: { load: (manifest, progress, insist) => loadModel(manifest, (...file) => insist(() => store.get(...file)), progress), measure, compare },
    device: {
      host: device.host, cores: used, host_cores: device.cores, threads: used, system: device.system,
      memory_bytes: device.memory * 2 ** 30, software: "browser",
    },
    name,
    show,
  });
  peer.visible = visible;
  peer.start();
}

onmessage = async ({ data }) => {
  if (data.type === "leave") peer?.leave();
  else if (data.type === "sleep") peer?.sleep();
  else if (data.type === "visible") {
    ({ visible } = data);
    if (peer) peer.visible = visible;
  } else if (data.type === "hurry") {
    wanted = data.token;
    peer?.hurry();
  } else {
    try {
      await join(data);
    } catch (error) {
      postMessage({ phase: "broken", why: error.message });
    }
  }
};
