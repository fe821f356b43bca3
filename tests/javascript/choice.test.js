// Where a model is computed.

import assert from "node:assert/strict";
import { test } from "node:test";

import { choose, judged } from "../../astra_mesh/web/site/peer/choice.js";

const of = (ms, ...numbers) => ({ ms, numbers: Float32Array.from(numbers) });

test("a GPU that is faster and exact is taken", () => {
  assert.equal(judged(of(10, 1, -2), of(5, 1.0005, -2.0005)), "");
});

test("a GPU that is hardly faster is not", () => {
  assert.equal(judged(of(10, 1, -2), of(9.123, 1, -2)), "the GPU takes 9.1 ms for what the processor does in 10 ms");
});

test("a GPU that is inexact is not taken, however fast it is", () => {
  assert.match(judged(of(10, 1, -2), of(1, 1, -2.01)), /inexactly/);
  assert.match(judged(of(10, 1, -2), of(1, NaN, -2)), /inexactly/);
});

test("where pages get no GPU, nothing is tried and the reason is given", async () => {
  const made = [];
  const found = await choose((place) => made.push(place));
  assert.deepEqual(made, []);
  assert.equal(found.place, "wasm");
  assert.match(found.why, /HTTPS or localhost/);
});
