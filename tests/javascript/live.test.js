import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { json } from "../../astra_mesh/web/site/api.js";
import { listen } from "../../astra_mesh/web/site/live.js";

const SECOND = 2; // looks at the silence
const real = { ...Object.fromEntries(["setInterval", "clearInterval", "setTimeout", "fetch"].map((name) => [name, globalThis[name]])) };

let lines = []; // WebSockets, in order
let looks = new Map();
let later = [];
let said = [];

class Line {
  constructor() {
    lines.push(this);
  }

  close() {
    this.closed = true;
  }

  say(type) {
    this.onmessage({ data: JSON.stringify({ type }) });
  }
}

/** Seconds that the page runs. */
function run(seconds) {
  for (let i = 0; i < seconds * SECOND; i++) for (const look of [...looks.values()]) look();
}

beforeEach(() => {
  [lines, looks, later, said] = [[], new Map(), [], []];
  let count = 0;
  Object.assign(globalThis, {
    WebSocket: Line,
    location: { protocol: "http:", host: "peer" },
    localStorage: { getItem: () => null },
    setInterval: (look) => looks.set(++count, look) && count,
    clearInterval: (number) => looks.delete(number),
    setTimeout: (work) => later.push(work),
  });
  listen({ up: () => said.push("up"), down: (why) => said.push(why), mesh: () => said.push("mesh") });
});

afterEach(() => Object.assign(globalThis, real));

test("a peer that says something now and then is there", () => {
  for (let i = 0; i < 10; i++) {
    lines[0].say("beat");
    run(2);
  }
  assert.deepEqual(said, ["up"]);
});

test("a peer without a word is gone after five seconds, and asked again", () => {
  lines[0].say("mesh");
  run(4);
  assert.deepEqual(said, ["up", "mesh"]);
  run(1);
  assert.match(said.pop(), /^The peer does not answer/);
  assert.ok(lines[0].closed);
  assert.equal(looks.size, 0);
  later.pop()();
  run(5); // it does not even open
  assert.match(said.pop(), /^The peer does not answer/);
  later.pop()();
  lines[2].say("mesh");
  assert.deepEqual(said.slice(-2), ["up", "mesh"]);
});

test("a page that slept does not take its own sleep for the peer's silence", (t) => {
  lines[0].say("beat");
  const now = Date.now();
  t.mock.method(Date, "now", () => now + 3_600_000);
  t.mock.method(performance, "now", () => 3_600_000);
  run(1); // timers come before what the socket held back
  lines[0].say("beat");
  run(4);
  assert.deepEqual(said, ["up"]);
});

test("what waits for a peer without a word ends with a sentence", async () => {
  globalThis.fetch = (_, { signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const asked = json("/v1/models");
  run(5);
  await assert.rejects(asked, /^Error: The peer does not answer/);
});
