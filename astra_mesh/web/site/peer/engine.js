// A model in a tab.
//
// The tab holds the blocks only: what goes in (embedded rows) comes from the peer that served the page, and the
// answer's head is another peer's work.

import { KernelBlock, PIECES, RuntimeBlock, WHOLE, panelsOf } from "./block.js";
import { choose } from "./choice.js";
import { VectorCodec } from "./codes.js";
import { PLAIN, PlainCodec, cannotUse } from "./plain.js";
import { Fetching, filesOf, firstStages } from "./fetching.js";
import { GPU, Graph, PROCESSOR, fetchRuntime, gpuLost, threads } from "./runtime.js";
import { ShardRun } from "./shard.js";
import { Workspace, isRelaxed } from "./workspace.js";

export { embedRange } from "./shard.js";

const SHARED = ["norm", "attend", "attend_causal", "final"]; // without a block's weights

/**
 * Load a model.
 *
 * @param manifest what GET /tab/models/{model} says.
 * @param getBlob (sha256, bytes, arrived) => Promise of a Uint8Array, verified; `arrived` is told how many bytes came.
 * @param progress (done, total) => void, in bytes of all that is fetched until the model is ready: the runtime, blocks and codebooks.
 * @param how where to compute: { place: PROCESSOR or GPU, kernels: whether with those of kernels.js }; null: as its first block is fastest.
 */
export async function loadModel(manifest, getBlob, progress = () => {}, how = null) {
  const kernels = how ? how.kernels : isRelaxed() && (await threads()) === 1;
  const names = [...SHARED, ...(how && kernels ? [] : WHOLE), ...(kernels ? PIECES : [])];
  const fetching = new Fetching(filesOf(manifest, names), progress);
  await fetchRuntime((done, total) => fetching.runtime(done, total));
  const files = new Files(manifest, getBlob, fetching);
  await files.hold(manifest.weights[0]); // some ways to compute it are tried
  const chosen = how ? { ...how, why: "" } : await choose((one) => partOf(manifest, files, one, 1), kernels);
  const model = await partOf(manifest, files, chosen, manifest.blocks);
  files.letGo();
  Object.assign(model, chosen);
  await orRelease([model], async () => {
    for (const about of manifest.codebooks) await prepareFirst(model, about);
  });
  return model;
}

/** What a codebook needs for the rate that requests use without a wish, and to be measured. */
async function prepareFirst(model, about) {
  const codec = await model.codec(about.codec, about.id, []);
  const { whole, measured } = firstStages(about);
  await codec.prepare(whole);
  for (const stages of measured) await codec.prepareBlock(stages, model.blocks - 1);
}

/** A model of the first blocks. */
async function partOf(manifest, files, { place, kernels }, count) {
  const shared = await files.graphs(SHARED, null, place);
  const space = kernels ? await Workspace.make() : null;
  const blocks = [];
  const model = new Model(manifest, shared, blocks, files);
  await orRelease([model], async () => {
    for (const weights of manifest.weights.slice(0, count)) {
      const bytes = await files.fetched(weights);
      const graphs = await files.graphs(kernels ? PIECES : WHOLE, bytes, place);
      blocks.push(kernels ? new KernelBlock(graphs, space, weights, bytes) : new RuntimeBlock(graphs));
    }
  });
  return model;
}

/** The result of work; if it fails, what was made for it gives its memory back: the runtime's does not go by itself. */
async function orRelease(made, work) {
  try {
    return await work();
  } catch (error) {
    for (const one of made) await one.release().catch(() => {});
    throw error;
  }
}

/** A manifest's files. */
class Files {
  #graphs;
  #getBlob;
  #fetching;
  #texts = new Map(); // graphs' bytes: they are small, and many blocks share one
  #held = null; // { sha256, data }: of a browser that keeps no files they would be fetched each time

  constructor({ graphs }, getBlob, fetching) {
    this.#graphs = graphs;
    this.#getBlob = getBlob;
    this.#fetching = fetching;
  }

  /** Fetch a file that is wanted several times until `letGo`. */
  async hold(about) {
    this.#held = { sha256: about.sha256, data: await this.fetched(about) };
  }

  letGo() {
    this.#held = null;
  }

  /** The bytes that a manifest describes; `arrived` is told how many of them came. */
  async fetched({ sha256, bytes }, arrived = () => {}) {
    if (this.#held?.sha256 === sha256) return this.#held.data;
    const told = (done) => {
      this.#fetching.file(sha256, done);
      arrived(done);
    };
    const data = await this.#getBlob(sha256, bytes, told);
    told(bytes); // the browser may have had it
    return data;
  }

  /** Graphs by name, of those names that the model has; weights: the bytes of a block's, or null. */
  async graphs(names, weights, place) {
    const [found, loaded] = [{}, []];
    await orRelease(loaded, async () => {
      for (const name of names) {
        const graph = this.#graphs[name];
        if (!graph) continue;
        if (!this.#texts.has(graph.sha256)) this.#texts.set(graph.sha256, await this.fetched(graph));
        found[name] = await Graph.load(this.#texts.get(graph.sha256), weights, place);
        loaded.push(found[name]);
      }
    });
    return found;
  }
}

/**
 * A loaded model; `place` is where it computes, `kernels` whether products are those of kernels.js, `why` what speaks
 * against the GPU. Rows of tokens are `Matrix`es; heads lie within a row.
 */
export class Model {
  place = PROCESSOR;
  kernels = false;
  why = "";
  tell = () => {}; // called when `coming` is another
  #shared;
  #blocks;
  #source;
  #codecs = new Map();
  #space = null; // of projections: a promise
  #projections = new Map(); // by block: promises of them

  constructor(manifest, shared, blocks, source) {
    this.manifest = manifest;
    this.spec = manifest.spec;
    this.blocks = manifest.blocks;
    this.#shared = shared;
    this.#blocks = blocks;
    this.#source = source;
  }

  /** Whether what it was computed with is gone: it has to be loaded again. */
  get isLost() {
    return this.place === GPU && gpuLost();
  }

  /** What is loaded in the background of all codebooks: { bits, done, total } of each rate. */
  get coming() {
    return [...this.#codecs.values()].flatMap((codec) => codec.coming ?? []);
  }

  /** The codec of a plan, prepared for `stages`; an Error where this tab has none of that name. */
  async codec(name, codebook, stages) {
    const key = codebook || name;
    if (!this.#codecs.has(key)) this.#codecs.set(key, this.#makeCodec(name, codebook));
    const found = this.#codecs.get(key);
    for (const one of stages) await found.prepare(one);
    return found;
  }

  #makeCodec(name, codebook) {
    if (PLAIN.includes(name)) return new PlainCodec(name, this);
    const about = this.manifest.codebooks.find((one) => one.id === codebook && one.codec === name);
    if (!about) throw new Error(cannotUse(name, codebook));
    return new VectorCodec(this, about, this.#source);
  }

  /** n of a block's input. */
  async normalize(x) {
    return this.#shared.norm && x.rows ? (await this.#shared.norm.run({ x })).n : x;
  }

  /** Queries of n, whose first row has position `start`. */
  async query(block, n, start) {
    return this.#blocks[block].query(n, start);
  }

  /** Keys and values of n, whose first row has position `start`. */
  async keyValue(block, n, start) {
    return this.#blocks[block].keyValue(n, start);
  }

  /** The projection of n to keys and values before `finish`: Panels in a Workspace. */
  async projection(block, space) {
    const about = this.manifest.weights[block];
    return panelsOf(space, about, await this.#source.fetched(about), "kv", "scale_1");
  }

  /** The same, made once for all that need it, and kept. */
  async keptProjection(block) {
    const own = this.#blocks[block].keysValues;
    if (own) return own;
    this.#space ??= Workspace.make();
    if (!this.#projections.has(block)) this.#projections.set(block, this.#space.then((space) => this.projection(block, space)));
    try {
      return await this.#projections.get(block);
    } catch (error) {
      this.#projections.delete(block); // it can be tried again
      throw error;
    }
  }

  /** What `keyValue` makes of raw keys and values. */
  async finish(block, raw, start) {
    return this.#blocks[block].finish(raw, start);
  }

  /** One block's output of its input, when nobody else takes part. */
  async runBlock(block, x) {
    const n = await this.normalize(x);
    const part = await this.attend(await this.query(block, n, 0), await this.keyValue(block, n, 0), this.spec.causal);
    return this.mix(block, x, part.out);
  }

  /** Attention over some keys: `out` and `lse`. `causal`: of the same tokens. */
  async attend(query, rows, causal = false) {
    return this.#shared[causal ? "attend_causal" : "attend"].run({ query, rows });
  }

  /** A block's output of its input and the merged heads. */
  async mix(block, x, attended) {
    return this.#blocks[block].mix(x, attended);
  }

  /** What the heads read of the last block's output. */
  async final(x) {
    return this.#shared.final ? (await this.#shared.final.run({ x })).n : x;
  }

  /** One shard's steps; `embedded`: the rows of `embedRange`. */
  run(layout, shard, codec, embedded) {
    return new ShardRun(this, layout, shard, codec, embedded);
  }

  /** Give all memory back. */
  async release() {
    for (const one of [...Object.values(this.#shared), ...this.#blocks]) await one.release();
    for (const codec of this.#codecs.values()) await codec.release();
    this.#blocks = [];
    this.#projections.clear();
    this.#space = null;
  }
}
