// A model in a tab.
//
// The tab holds the blocks only: what goes in (embedded rows) comes from the peer that served the page, and the
// answer's head is another peer's work.

import { VectorCodec } from "./codes.js";
import { PLAIN, PlainCodec } from "./plain.js";
import { Graph } from "./runtime.js";
import { ShardRun } from "./shard.js";
import { tensorOf } from "./tensors.js";
import { Panels } from "./workspace.js";

export { embedRange } from "./shard.js";

const SHARED = ["norm", "attend", "attend_causal", "final"]; // without a block's weights
const OWN = ["q", "kv", "mix", "finish"]; // of each block

/**
 * Load a model.
 *
 * @param manifest what GET /tab/models/{model} says.
 * @param getBlob (sha256, bytes) => Promise of a Uint8Array, verified.
 * @param progress (done, total) => void, in bytes of the blocks' weights.
 */
export async function loadModel(manifest, getBlob, progress = () => {}) {
  const { graphs } = manifest;
  const texts = new Map(); // graphs' bytes: they are small, and many blocks share one
  const fetched = ({ sha256, bytes }) => getBlob(sha256, bytes);
  const load = async (graph, weights) => {
    if (!texts.has(graph.sha256)) texts.set(graph.sha256, await fetched(graph));
    return Graph.load(texts.get(graph.sha256), weights);
  };
  const shared = {};
  for (const name of SHARED) if (graphs[name]) shared[name] = await load(graphs[name], null);
  const total = manifest.weights.reduce((sum, one) => sum + one.bytes, 0);
  const blocks = [];
  let done = 0;
  for (const weights of manifest.weights) {
    const block = {};
    const data = await fetched(weights);
    for (const name of OWN) if (graphs[name]) block[name] = await load(graphs[name], data);
    blocks.push(block);
    done += weights.bytes;
    progress(done, total);
  }
  return new Model(manifest, shared, blocks, { fetched, load });
}

/** A loaded model. Rows of tokens are `Matrix`es; heads lie within a row. */
export class Model {
  #shared;
  #blocks;
  #source;
  #codecs = new Map();

  constructor(manifest, shared, blocks, source) {
    this.manifest = manifest;
    this.spec = manifest.spec;
    this.blocks = manifest.blocks;
    this.#shared = shared;
    this.#blocks = blocks;
    this.#source = source;
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
    if (!about) throw new Error(`a tab cannot use the codes ${JSON.stringify(name)}; it can ${["codebooks", ...PLAIN].join(", ")}`);
    return new VectorCodec(this, about, this.#source);
  }

  /** n of a block's input. */
  async normalize(x) {
    return this.#shared.norm && x.rows ? (await this.#shared.norm.run({ x })).n : x;
  }

  /** Queries of n, whose first row has position `start`. */
  async query(block, n, start) {
    return (await this.#blocks[block].q.run({ n, start })).query;
  }

  /** Keys and values of n, whose first row has position `start`. */
  async keyValue(block, n, start) {
    return (await this.#blocks[block].kv.run({ n, start })).rows;
  }

  /** The projection of n to keys and values before `finish`: Panels in a Workspace. */
  async projection(block, space) {
    const about = this.manifest.weights[block];
    const bytes = await this.#source.fetched(about);
    const tensor = (name) => tensorOf(about, bytes, name);
    const { data, shape: [columns, depth] } = tensor("kv.weight");
    const scale = tensor("scale_1")?.data ?? new Float32Array(depth).fill(1);
    return new Panels(space, depth, columns, (row, column) => data[column * depth + row] * scale[row], tensor("kv.bias")?.data);
  }

  /** What `keyValue` makes of raw keys and values. */
  async finish(block, raw, start) {
    const { finish } = this.#blocks[block];
    return finish ? (await finish.run({ raw, start })).rows : raw;
  }

  /** Attention over some keys: `out` and `lse`. `causal`: of the same tokens. */
  async attend(query, rows, causal = false) {
    return this.#shared[causal ? "attend_causal" : "attend"].run({ query, rows });
  }

  /** A block's output of its input and the merged heads. */
  async mix(block, x, attended) {
    return (await this.#blocks[block].mix.run({ x, attended })).y;
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
    for (const graph of [this.#shared, ...this.#blocks].flatMap(Object.values)) await graph.release();
    for (const codec of this.#codecs.values()) await codec.release();
  }
}
