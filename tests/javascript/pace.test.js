// How fast a tab is now: looked at while nothing runs, and told once it is certain. As tests/unit/peer/test_pace.py.

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { poolingOf } from "../../astra_mesh/web/site/peer/layout.js";
import { PULSE_AGAIN_S, PULSE_S, PULSE_SHARE } from "../../astra_mesh/web/site/peer/limits.js";
import { compare } from "../../astra_mesh/web/site/peer/measure.js";
import { Models } from "../../astra_mesh/web/site/peer/models.js";
import { Pulse, learned, shareS, slowed } from "../../astra_mesh/web/site/peer/pace.js";

const ID = "e".repeat(64);
const BOOK = { id: "f".repeat(64), codec: "vq", rates: [16, 32], default_rate: 16 };
const ABOUT = { id: ID, name: "tiny", family: "gpt2", tasks: [], bytes: 1000, codebooks: [BOOK] };
const TIMING = { fixed_s: 1, per_token_s: 2, per_pair_s: 3, encode_token_s: 4, decode_token_s: 5, head_s: 6, step_s: 7 };
const BOOKS = { [BOOK.id]: { encode_token_s: [1, 2], decode_token_s: [3, 4] } };
const yes = () => true;
const realNow = performance.now;
const realTimer = globalThis.setTimeout;
let nowMs = 0;

beforeEach(() => {
  nowMs = 0;
  globalThis.setTimeout = (work, ms) => (ms >= 20_000 ? 0 : realTimer(work, ms)); // nothing is measured again by itself
  performance.now = () => nowMs;
});
afterEach(() => {
  performance.now = realNow;
  globalThis.setTimeout = realTimer;
});

/** A tab with one model in memory, which is measured again until `go()`; `looks`: what each finds, or what happens meanwhile. */
async function made(...looks) {
  const found = { told: [], worked: 0 };
  const measured = new Promise((done) => (found.go = done));
  const engine = {
    load: async () => ({ isLost: false, place: "wasm", why: "" }),
    measure: async (model, worked, again = false) => (again && (await measured), { timing: TIMING, books: BOOKS, sure: again }),
    compare: async (model, timing, undisturbed) => {
      assert.deepEqual(timing, TIMING); // looks are beside what was measured, not what is told
      const look = looks.shift();
      if (typeof look === "number") return look;
      look();
      return undisturbed() ? 9 : null;
    },
  };
  const http = { json: async (path) => (path === "/tab/models" ? [ABOUT] : ABOUT) };
  found.models = new Models({ http, engine, changed: () => found.told.push(1), worked: () => found.worked });
  await found.models.refresh();
  await found.models.load(ID);
  found.step = () => found.models.offer(ID).timing.step_s / TIMING.step_s;
  return found;
}

test("a change is told once two looks saw it", async () => {
  const { models, step, told } = await made(1.1, 4.0, 4.2, 4.0, 1.0, 1.0);
  const [book] = models.offer(ID).codebooks;
  const before = told.length;
  const seen = [];
  for (let i = 0; i < 6; i++) seen.push([await models.feel(yes), step()]);
  assert.deepEqual(seen, [[true, 1], [false, 1], [true, 4.2], [true, 4.2], [false, 4.2], [true, 1]]);
  assert.equal(told.length, before + 2);
  assert.deepEqual(models.offer(ID).codebooks[0], book);
});

test("all that takes time is slowed", async () => {
  const { models } = await made(2, 2);
  await models.feel(yes);
  await models.feel(yes);
  const offer = models.offer(ID);
  assert.deepEqual(offer.timing, { fixed_s: 2, per_token_s: 4, per_pair_s: 6, encode_token_s: 8, decode_token_s: 10, head_s: 12, step_s: 14 });
  assert.deepEqual(offer.codebooks[0], { ...BOOK, encode_token_s: [2, 4], decode_token_s: [6, 8], project_token_s: [] });
  assert.equal(models.states()[0].tokenS, 4);
  assert.equal(slowed(null, 2), null);
});

test("two looks that differ say nothing", async () => {
  const { models, step } = await made(9, 3, 1);
  for (const certain of [false, false, true]) {
    assert.equal(await models.feel(yes), certain);
    assert.equal(step(), 1);
  }
});

test("a request ends a look", async () => {
  let idle = true;
  const both = await made(() => (idle = false), () => both.worked++, 1);
  assert.equal(await both.models.feel(() => idle), false);
  assert.equal(await both.models.feel(() => idle), false); // none is begun while one runs
  idle = true;
  assert.equal(await both.models.feel(() => idle), false);
  assert.equal(await both.models.feel(() => idle), true); // nothing was felt before
  assert.equal(both.step(), 1);
});

test("a model that is measured anew is told as it was measured, and not looked at meanwhile", async () => {
  const timers = [];
  globalThis.setTimeout = (work) => timers.push(work);
  const found = await made(3, 3, 1);
  await found.models.feel(yes);
  await found.models.feel(yes);
  assert.equal(found.step(), 3);
  const again = timers.shift()();
  assert.equal(await found.models.feel(yes), false);
  found.go();
  await again;
  assert.equal(found.step(), 1);
  assert.equal(await found.models.feel(yes), true);
});

// --- what own shares took -------------------------------------------------------------------------

const range = (start, stop) => ({ start, stop, length: stop - start });
/** Two shards of 4 and 6 tokens in three blocks of a causal model. */
const LAYOUT = {
  blocks: 3, firstBlock: 1, causal: true, pooling: poolingOf("generate"),
  localRows: (shard) => [4, 6][shard],
  wanted: (shard) => (shard ? range(5, 6) : range(0, 0)),
  sources: (shard) => (shard ? [0] : []),
  sent: (shard) => range(...[[0, 4], [4, 10]][shard]),
};

test("what a shard takes is predicted as planners do", () => {
  const { fixed_s: fixed, per_token_s: token, per_pair_s: pair } = TIMING;
  assert.equal(shareS(TIMING, LAYOUT, 0), 2 * (fixed + 4 * token + 16 * pair));
  const known = 4 * (0.3 * token + 6 * pair);
  assert.ok(Math.abs(shareS(TIMING, LAYOUT, 1) - (2 * (fixed + 6 * token + 36 * pair) + known + fixed + 1.8 * token + 6 * pair)) < 1e-9);
});

test("what own shares took is told at once, and a look takes it back", async () => {
  const { models, step } = await made(1, 1);
  const said = shareS(TIMING, LAYOUT, 0);
  models.took(ID, LAYOUT, 0, 1.4 * said);
  assert.equal(step(), 1);
  models.took(ID, LAYOUT, 0, 9 * said);
  const slow = step();
  assert.ok(slow > 3 && slow < 4, `${slow}`); // half of the way, in logarithms
  models.took(ID, LAYOUT, 0, slow * said);
  assert.equal(step(), slow); // as it says now
  models.took(ID, LAYOUT, 0, 1e9 * said);
  assert.equal(step(), 64);
  assert.equal(await models.feel(yes), false);
  assert.equal(await models.feel(yes), true);
  assert.equal(step(), 1);
  models.took("0".repeat(64), LAYOUT, 0, 1);
});

test("a share too short to say anything teaches nothing", () => {
  assert.equal(learned(1, 0.001, 1), 1);
  assert.equal(learned(1, 1, 0.001), 1);
  assert.equal(learned(1, 1, NaN), 1);
  assert.equal(learned(1, 1, 4), 2);
  assert.equal(learned(2, 1, 2), 2);
});

// --- when it looks --------------------------------------------------------------------------------

/** Lets the pulse's timer run out, again and again; when it looked, in seconds. */
async function looked(times, { wanted = yes, feel = yes, threads = 1 } = {}) {
  const timers = [];
  globalThis.setTimeout = (work, ms) => timers.push([work, ms]);
  const at = [];
  const pulse = new Pulse({ threads, wanted: () => wanted(nowMs / 1000), feel: async () => (at.push(nowMs / 1000), feel(at.length)) });
  pulse.start();
  for (let i = 0; i < times; i++) {
    const [work, ms] = timers.shift();
    nowMs += ms;
    await work();
  }
  pulse.stop();
  return at;
}

test("it looks every 20 s, and soon where it is not certain", async () => {
  const at = await looked(4, { feel: (count) => count !== 2 });
  assert.deepEqual(at, [PULSE_S, 2 * PULSE_S, 2 * PULSE_S + PULSE_AGAIN_S, 3 * PULSE_S + PULSE_AGAIN_S]);
});

test("it looks only while somebody wants to know", async () => {
  assert.deepEqual(await looked(5, { wanted: (now) => now > 3.5 * PULSE_S }), [4 * PULSE_S, 5 * PULSE_S]);
});

test("it takes a small share of the time of a weak device, on all its threads", async () => {
  const feel = () => {
    nowMs += 600;
    return true;
  };
  for (const threads of [1, 4]) {
    const [first, second] = await looked(2, { feel, threads });
    assert.ok(Math.abs(second - first - 0.6 - Math.max(PULSE_S, (0.6 * threads) / PULSE_SHARE)) < 1e-6);
  }
});

test("a look that outlives the pulse begins no other", async () => {
  const timers = [];
  globalThis.setTimeout = (work) => timers.push(work);
  let go;
  const pulse = new Pulse({ threads: 1, wanted: yes, feel: () => new Promise((done) => (go = done)) });
  pulse.start();
  const look = timers.shift()();
  pulse.stop();
  go(true);
  await look;
  assert.equal(timers.length, 0);
});

// --- a look ---------------------------------------------------------------------------------------

/** A model whose blocks take these milliseconds, the last one on and on. */
function timed(...ms) {
  const model = { spec: { hidden_size: 4, max_tokens: 64, causal: true }, blocks: 1, calls: 0 };
  model.runBlock = async (block, { rows }) => {
    assert.equal(rows, 64);
    nowMs += ms[Math.min(model.calls++, ms.length - 1)];
  };
  return model;
}
const SAID = { fixed_s: 0.01, per_token_s: 0, per_pair_s: 0 };

test("a look is the best of three blocks: the first one wakes the processor", async () => {
  const model = timed(90, 21, 20);
  assert.ok(Math.abs((await compare(model, SAID, yes)) - 2) < 1e-9);
  assert.equal(model.calls, 3);
  const small = timed(4, 1);
  assert.ok(Math.abs((await compare(small, SAID, yes)) - 0.1) < 1e-9);
  assert.equal(small.calls, 17); // 20 ms of them
});

test("a look that is disturbed says nothing, and stops", async () => {
  const model = timed(20);
  assert.equal(await compare(model, SAID, () => model.calls < 2), null);
  assert.equal(model.calls, 2);
});
