// Where a model is computed: on the processor, or on the GPU where its first block is faster there and as exact.

import { Matrix } from "./matrix.js";
import { GPU, PROCESSOR, gpuMissing } from "./runtime.js";

const TOKENS = 64; // that are computed to find out
const RUNS = 5; // of which the fastest counts
const WARM = 3; // before: shaders and WebAssembly are compiled while they run
const LONGEST_MS = 3000; // then no other run begins
const GAIN = 1.2; // times faster a GPU has to be: it also draws the screen
const CLOSE = 1e-3; // of the largest number

/**
 * The place, and why not the GPU ("" for the GPU).
 *
 * @param make  (place) => Promise of a Model with at least one block
 */
export async function choose(make) {
  const why = await gpuMissing();
  if (why) return { place: PROCESSOR, why };
  const here = await tried(make, PROCESSOR);
  try {
    const there = await tried(make, GPU);
    const refused = judged(here, there);
    return refused ? { place: PROCESSOR, why: refused } : { place: GPU, why: "" };
  } catch (error) {
    return { place: PROCESSOR, why: `the GPU does not compute this model (${error.message})` };
  }
}

/** Why the GPU is not taken; "" where it is. Each has the fastest time, and the numbers that came out. */
export function judged(processor, gpu) {
  const largest = processor.numbers.reduce((most, one) => Math.max(most, Math.abs(one)), 0);
  const off = gpu.numbers.reduce((most, one, i) => Math.max(most, Math.abs(one - processor.numbers[i])), 0);
  if (!(off <= CLOSE * largest)) return "the GPU computes too inexactly";
  const told = (ms) => Number(ms.toPrecision(2));
  if (gpu.ms * GAIN <= processor.ms) return "";
  return `the GPU takes ${told(gpu.ms)} ms for what the processor does in ${told(processor.ms)} ms`;
}

async function tried(make, place) {
  const model = await make(place);
  try {
    const columns = model.spec.hidden_size;
    const rows = Math.min(TOKENS, model.spec.max_tokens);
    const x = new Matrix(Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i + 1)), columns); // any numbers
    const until = performance.now() + LONGEST_MS;
    let [ms, numbers] = [Infinity, null];
    for (let i = 0; i < WARM + RUNS; i++) {
      const began = performance.now();
      numbers = (await model.runBlock(0, x)).data;
      const late = performance.now() > until;
      if (i >= WARM || late) ms = Math.min(ms, performance.now() - began);
      if (late) break;
    }
    return { ms, numbers };
  } finally {
    await model.release();
  }
}
