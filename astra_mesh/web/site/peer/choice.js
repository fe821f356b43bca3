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
 * How to compute, { place, kernels }, and why not on the GPU ("" for the GPU).
 *
 * @param make     (how) => Promise of a Model with at least one block
 * @param kernels  whether products by kernels.js may be tried on the processor
 */
export async function choose(make, kernels) {
  const why = await gpuMissing();
  const plain = { place: PROCESSOR, kernels: false };
  if (why && !kernels) return { ...plain, why };
  const here = await faster(make, await tried(make, plain), kernels);
  if (why) return { ...here.how, why };
  try {
    const there = await tried(make, { place: GPU, kernels: false });
    const refused = judged(here, there);
    return refused ? { ...here.how, why: refused } : { ...there.how, why: "" };
  } catch (error) {
    return { ...here.how, why: `the GPU does not compute this model (${error.message})` };
  }
}

/** What was tried, or the same by kernels where these are faster and as exact. */
async function faster(make, plain, kernels) {
  if (!kernels) return plain;
  try {
    const other = await tried(make, { place: PROCESSOR, kernels: true });
    return other.ms < plain.ms && isClose(other.numbers, plain.numbers) ? other : plain;
  } catch {
    return plain; // such as too little memory
  }
}

function isClose(found, wanted) {
  const largest = wanted.reduce((most, one) => Math.max(most, Math.abs(one)), 0);
  const off = found.reduce((most, one, i) => Math.max(most, Math.abs(one - wanted[i])), 0);
  return off <= CLOSE * largest;
}

/** Why the GPU is not taken; "" where it is. Each has the fastest time, and the numbers that came out. */
export function judged(processor, gpu) {
  if (!isClose(gpu.numbers, processor.numbers)) return "the GPU computes too inexactly";
  const told = (ms) => Number(ms.toPrecision(2));
  if (gpu.ms * GAIN <= processor.ms) return "";
  return `the GPU takes ${told(gpu.ms)} ms for what the processor does in ${told(processor.ms)} ms`;
}

async function tried(make, how) {
  const model = await make(how);
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
    return { how, ms, numbers };
  } finally {
    await model.release();
  }
}
