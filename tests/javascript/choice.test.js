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
  const found = await choose((how) => made.push(how), false);
  assert.deepEqual(made, []);
  assert.equal(found.place, "wasm");
  assert.equal(found.kernels, false);
  assert.match(found.why, /HTTPS or localhost/);
});

/** A model whose block takes so long, and gives such a number; released once it was tried. */
const model = (ms, number, released) => ({
  spec: { hidden_size: 4, max_tokens: 8 },
  runBlock: () => new Promise((done) => setTimeout(() => done({ data: Float32Array.of(number) }), ms)),
  release: async () => released.push(ms),
});

for (const [what, runtime, kernels, taken] of [
  ["faster and as exact are taken", [20, 1], [5, 1.00001], true],
  ["slower are not", [5, 1], [20, 1], false],
  ["inexact are not", [20, 1], [5, 1.01], false],
  ["not a number are not", [20, 1], [5, NaN], false],
]) {
  test(`kernels that are ${what}`, async () => {
    const released = [];
    const found = await choose(async (how) => model(...(how.kernels ? kernels : runtime), released), true);
    assert.equal(found.kernels, taken);
    assert.equal(found.place, "wasm");
    assert.equal(released.length, 2);
  });
}

test("kernels that cannot be made are not taken", async () => {
  const make = async (how) => {
    if (how.kernels) throw new RangeError("out of memory");
    return model(1, 1, []);
  };
  assert.equal((await choose(make, true)).kernels, false);
});
