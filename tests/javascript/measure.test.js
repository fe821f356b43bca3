// What a tab says of its speed: no token is free, and a figure that was disturbed is not sure.

import assert from "node:assert/strict";
import { test } from "node:test";

import { fit, inRounds, measure, parts } from "../../astra_mesh/web/site/peer/measure.js";
import { Turns } from "../../astra_mesh/web/site/peer/pipeline.js";

const SIZES = [8, 64, 197];
const PAIRS = SIZES.map((size) => size * size);
const TRUE = SIZES.map((size, i) => 2e-4 + 3e-5 * size + 2e-8 * PAIRS[i]);
const near = (a, b) => Math.abs(a / b - 1) < 0.01;

test("a fit without a time for tokens is not believed", () => {
  for (const times of [[3e-3, 3.1e-3, 6e-3], [1e-3, 1.0001e-3, 9e-3], [5e-3, 5e-3, 5e-3], [6e-3, 5e-3, 4e-3]]) {
    assert.ok(fit(SIZES, PAIRS, times)[1] * 197 < 0.1 * times[2], times.join(" "));
    const { found: [fixed, perToken, perPair], sound } = parts(SIZES, PAIRS, times);
    assert.ok(perToken * 197 >= 0.0999 * times[2], times.join(" "));
    assert.ok(fixed >= 0 && near(fixed + 197 * perToken + perPair * PAIRS[2], times[2]), times.join(" "));
    assert.equal(sound, times[2] <= times[0]); // a block too small for its tokens to be seen is no disturbance
  }
  const { found, sound } = parts(SIZES, PAIRS, TRUE);
  assert.ok(sound && near(found[1], 3e-5));
  assert.deepEqual(parts([8], [64], [8e-3]).found, [0, 1e-3, 0]); // a model of eight tokens at most
});

/** Rounds that give these times, one after the other, the last one on and on. */
async function rounds(times, worked = () => 0) {
  let asked = 0;
  const found = await inRounds(SIZES, PAIRS, async () => times[Math.min(asked++, times.length - 1)], worked);
  return { ...found, asked };
}

test("two rounds that agree are enough; one that was slowed down is not counted", async () => {
  const slowed = [TRUE[0] * 9, TRUE[1] * 2, TRUE[2] * 1.5];
  const calm = await rounds([TRUE]);
  assert.deepEqual([calm.asked, calm.sure], [2, true]);
  for (const times of [[slowed, TRUE], [TRUE, slowed, TRUE]]) {
    const found = await rounds(times);
    assert.deepEqual([found.asked, found.sure], [3, true]);
    assert.ok(near(found.found[1], 3e-5));
  }
});

test("rounds that never agree, and requests meanwhile, leave it unsure", async () => {
  const [other, more] = [2, 4].map((times) => TRUE.map((time) => time * times));
  assert.equal((await rounds([more, other, TRUE, other, more])).sure, false);
  let computed = 0;
  const busy = await rounds([TRUE], () => computed++);
  assert.deepEqual([busy.asked, busy.sure], [5, false]);
});

test("turns tell that a request computed", async () => {
  const turns = new Turns();
  const before = turns.changes;
  let inside;
  await turns.run(async () => (inside = turns.changes));
  await assert.rejects(turns.run(async () => Promise.reject(new Error("it failed"))));
  await turns.run(async () => {});
  assert.ok(inside > before && turns.changes >= inside + 3);
});

test("measuring again stops as soon as a request computes", async () => {
  let computed = 0;
  const model = { spec: { hidden_size: 4, max_tokens: 8, causal: true }, blocks: 1, runBlock: async () => computed++ };
  await assert.rejects(measure(model, () => computed, true), /a request computes/);
  assert.equal(computed, 1);
});

test("links are heard while it measures", async () => {
  const codec = { prepareBlock: async () => {}, pastColumns: () => 0, encodeOne: async () => ({ codes: [] }), decodeOne: async () => {} };
  const model = {
    spec: { hidden_size: 4, max_tokens: 300, causal: false }, blocks: 1, manifest: { codebooks: [] },
    runBlock: async () => {}, normalize: async (x) => x, codec: async () => codec,
  };
  let longest = 0;
  let heard = performance.now();
  const timer = setInterval(() => {
    longest = Math.max(longest, performance.now() - heard);
    heard = performance.now();
  }, 1);
  const { timing } = await measure(model);
  longest = Math.max(longest, performance.now() - heard);
  clearInterval(timer);
  assert.ok(timing.per_token_s > 0);
  assert.ok(longest < 800, `${longest} ms`); // warming up takes 300 ms, all of it far more
});
