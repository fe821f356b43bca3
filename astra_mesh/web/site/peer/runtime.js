// onnxruntime-web behind a small face: graphs with weights, run one after the other.

import { Matrix } from "./matrix.js";

const ADDRESS = "../vendor/onnxruntime-web/dist/ort.wasm.min.mjs";
export const MISSING = "this peer was installed without the browser runtime: run `make runtime` there, and start it again";
const THREADS = 4; // more than a phone has fast cores

let loading = null;
let last = Promise.resolve(); // what runs, or ran last: the runtime computes one thing at a time

/** The library; an Error that says what to do where the peer does not have it. */
async function library() {
  loading ??= import(ADDRESS).then((ort) => {
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency || 1) : 1;
    ort.env.logLevel = "error";
    return ort;
  }, (error) => {
    loading = null;
    throw new Error(MISSING, { cause: error });
  });
  return loading;
}

/** Threads that the runtime computes with. */
export const threads = async () => (await library()).env.wasm.numThreads;

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

  /** A graph from its bytes; `weights`: the bytes that its tensors lie in, if it has any. */
  static async load(bytes, weights = null) {
    const ort = await library();
    // Threads that spin while they wait take the time of whoever else runs on the device.
    const extra = { session: { intra_op: { allow_spinning: "0" }, inter_op: { allow_spinning: "0" } } };
    const options = { executionProviders: ["wasm"], logSeverityLevel: 3, extra };
    if (weights !== null) options.externalData = [{ path: "weights", data: weights }];
    return new Graph(ort, await inTurn(() => ort.InferenceSession.create(bytes, options)));
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
