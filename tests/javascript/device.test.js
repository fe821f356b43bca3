// How a tab's device is called where nobody named it.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { device, deviceName, giveName, kindOf } from "../../astra_mesh/web/site/device.js";

const KIT = "AppleWebKit/537.36 (KHTML, like Gecko)";
const AGENTS = {
  "Chrome on Android device": `Mozilla/5.0 (Linux; Android 10; K) ${KIT} Chrome/131.0.0.0 Mobile Safari/537.36`,
  "Chrome on Pixel 7": `Mozilla/5.0 (Linux; Android 13; Pixel 7 Build/TQ3A.230805) ${KIT} Chrome/108.0.0.0 Mobile Safari/537.36`,
  "Samsung Internet on SM-G991B": `Mozilla/5.0 (Linux; Android 13; SM-G991B) ${KIT} SamsungBrowser/20.0 Chrome/106.0.0.0 Mobile Safari/537.36`,
  "Firefox on Android device": "Mozilla/5.0 (Android 14; Mobile; rv:132.0) Gecko/132.0 Firefox/132.0",
  "Safari on iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
  "Chrome on iPhone": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/126.0 Mobile/15E148 Safari/604.1",
  "Edge on Windows computer": `Mozilla/5.0 (Windows NT 10.0; Win64; x64) ${KIT} Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0`,
  "Chrome on Linux computer": `Mozilla/5.0 (X11; Linux x86_64) ${KIT} HeadlessChrome/131.0.0.0 Safari/537.36`,
  "Firefox on Mac": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:132.0) Gecko/20100101 Firefox/132.0",
  "browser on a device": "",
};
const AGENT = AGENTS["Safari on iPhone"];

/** What a browser keeps. */
function freshBrowser() {
  const kept = new Map();
  globalThis.localStorage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value), removeItem: (key) => kept.delete(key) };
}

beforeEach(() => {
  Object.defineProperty(globalThis, "navigator", { value: { userAgent: AGENT, hardwareConcurrency: 4 }, configurable: true });
  freshBrowser();
});

for (const [name, agent] of Object.entries(AGENTS)) test(name, () => assert.equal(kindOf(agent), name));

test("two phones of one kind have two names, and keep them", () => {
  const first = deviceName();
  assert.match(first, /^Safari on iPhone [0-9a-f]{4}$/);
  assert.equal(deviceName(), first);
  assert.equal(giveName(first), first);
  assert.equal(device().host.slice(0, 4), first.slice(-4));
  const names = new Set([first]);
  for (let i = 0; i < 3; i++) {
    freshBrowser();
    names.add(deviceName());
  }
  assert.ok(names.size > 2);
});

test("a name that a person gave stays, until it is taken back", () => {
  const own = deviceName();
  assert.equal(giveName(" Ada's phone "), "Ada's phone");
  assert.equal(deviceName(), "Ada's phone");
  assert.equal(giveName(""), own);
  assert.equal(deviceName(), own);
});

test("the name that all phones had was given by nobody", () => {
  localStorage.setItem("astra-mesh-device-name", "browser on iPhone");
  assert.match(deviceName(), /^Safari on iPhone [0-9a-f]{4}$/);
});
