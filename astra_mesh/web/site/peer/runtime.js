// onnxruntime-web behind a small face: graphs with weights, run one after the other.

import { FetchError } from "./errors.js";
import { Matrix } from "./matrix.js";

export const PROCESSOR = "wasm"; // places to compute, as the library names them
export const GPU = "webgpu";

const LIBRARIES = { [PROCESSOR]: "ort.wasm.min.mjs", [GPU]: "ort.jspi.min.mjs" }; // the other one has the first one's place too
const PROGRAMS = { [PROCESSOR]: "ort-wasm-simd-threaded", [GPU]: "ort-wasm-simd-threaded.jspi" }; // of the libraries
const SIZE = "X-Uncompressed-Bytes"; // header of what is sent gzipped
const FOLDER = "../vendor/onnxruntime-web/dist/";
export const MISSING = "this peer was installed without the browser runtime: run `make runtime` there, and start it again";
const THREADS = 8; // at most: more share their cores with others

let loading = null;
let last = Promise.resolve(); // what runs, or ran last: the runtime computes one thing at a time
let lost = ""; // why the GPU is gone
let watching = null;
let adapter = null; // a promise, once it was asked for

/** Why nothing can be computed on a GPU; "" where it can be tried. */
export async function gpuMissing() {
  if (lost) return lost;
  if (!globalThis.isSecureContext) return "browsers offer the GPU to pages on HTTPS or localhost only";
  if (!globalThis.navigator?.gpu) return "this browser has no WebGPU";
  if (!WebAssembly.Suspending) return "this browser cannot wait for a GPU in WebAssembly";
  adapter ??= navigator.gpu.requestAdapter().catch(() => null); // browsers complain in the console each time
  return (await adapter) ? "" : "this device offers pages no GPU";
}

/** The library; an Error that says what to do where the peer does not have it. */
async function library() {
  loading ??= (async () => {
    const place = (await gpuMissing()) ? PROCESSOR : GPU;
    const ort = await import(FOLDER + LIBRARIES[place]);
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency || 1) : 1;
    ort.env.logLevel = "error";
    return ort;
  })().catch((error) => {
    loading = null;
    throw new Error(MISSING, { cause: error });
  });
  return loading;
}

let program = null; // a promise of the runtime's WebAssembly, while it is fetched and once it is there

/**
 * Fetch the runtime's WebAssembly, which the library would fetch by itself, but once only, without a word of how far it
 * is. `arrived` is told (done, total), in bytes as they are sent, at least once.
 */
export async function fetchRuntime(arrived) {
  const ort = await library();
  if (globalThis.process?.versions?.node) return arrived(0, 0); // node reads it from the disk
  program ??= fetchProgram(ort, arrived).catch((error) => {
    program = null; // it can be tried again
    throw error;
  });
  arrived(...(await program));
}

/** Its bytes as they were sent, done and in all. */
async function fetchProgram(ort, arrived) {
  const name = PROGRAMS[(await gpuMissing()) ? PROCESSOR : GPU];
  const broke = () => {
    throw new FetchError("the browser's runtime did not arrive: the line to the peer that serves this page broke");
  };
  await import(`${FOLDER}${name}.mjs`).catch(broke);
  const response = await fetch(new URL(`${FOLDER}${name}.wasm`, import.meta.url)).catch(broke);
  if (!response.ok) broke();
  const total = Number(response.headers.get("Content-Length"));
  const size = Number(response.headers.get(SIZE)) || total;
  const pieces = [];
  let held = 0;
  arrived(0, total);
  for (const reader = response.body.getReader(); ; ) {
    const { value, done } = await reader.read().catch(broke);
    if (done) break;
    pieces.push(value);
    held += value.length;
    arrived(Math.min(Math.round((held / size) * total), total), total);
  }
  ort.env.wasm.wasmBinary = await new Blob(pieces).arrayBuffer();
  return [total, total];
}

/** Whether a GPU was used and is gone. */
export const gpuLost = () => lost !== "";

/** Threads that the runtime computes with. */
export const threads = async () => (await library()).env.wasm.numThreads;

/** Learn when the GPU is lost: what was computed there has to move. */
async function watch(ort) {
  const device = await ort.env.webgpu.device;
  device.lost.then(({ message }) => (lost = `the browser took the GPU away (${message || "it does not say why"})`));
}

/** Wait for what runs, then run. */
function inTurn(work) {
  const mine = last.then(work);
  last = mine.catch(() => {});
  return mine;
}

const KINDS = new Map([[Float32Array, "float32"], [Int32Array, "int32"], [BigInt64Array, "int64"]]);

/** A graph, ready to run. */
export class Graph {
  #ort;
  #session;

  constructor(ort, session) {
    this.#ort = ort;
    this.#session = session;
  }

  /** A graph from its bytes; `weights`: the bytes that its tensors lie in, if it has any; `place`: PROCESSOR or GPU. */
  static async load(bytes, weights = null, place = PROCESSOR) {
    const ort = await library();
    // Threads that spin while they wait take the time of whoever else runs on the device.
    const extra = { session: { intra_op: { allow_spinning: "0" }, inter_op: { allow_spinning: "0" } } };
    const options = { executionProviders: [place], logSeverityLevel: 3, extra };
    if (weights !== null) options.externalData = [{ path: "weights", data: weights }];
    const session = await inTurn(() => ort.InferenceSession.create(bytes, options));
    ort.env.wasm.wasmBinary = undefined; // it is compiled by now
    if (place === GPU) watching ??= watch(ort);
    return new Graph(ort, session);
  }

  /** Whether it wants an input of that name. */
  takes(name) {
    return this.#session.inputNames.includes(name);
  }

  /**
   * All outputs by name, as matrices. Inputs: matrices, and whole numbers for positions; those that
   * the graph does not have are left out.
   */
  async run(inputs) {
    const fed = {};
    for (const name of this.#session.inputNames) fed[name] = this.#tensor(inputs[name]);
    const found = await inTurn(() => this.#session.run(fed));
    const made = {};
    for (const [name, tensor] of Object.entries(found)) made[name] = new Matrix(tensor.data, tensor.dims.at(-1));
    return made;
  }

  #tensor(value) {
    if (typeof value === "number") return new this.#ort.Tensor("int64", BigInt64Array.of(BigInt(value)), []);
    return new this.#ort.Tensor(KINDS.get(value.data.constructor), value.data, [value.rows, value.columns]);
  }

  /** Give its memory back. */
  async release() {
    await inTurn(() => this.#session.release());
  }
}
