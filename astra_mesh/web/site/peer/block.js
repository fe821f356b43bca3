// A block's steps, between which the mesh goes on: with the runtime's products, or with those of kernels.js.

import { tensorOf } from "./tensors.js";
import { Panels } from "./workspace.js";

export const WHOLE = ["q", "kv", "finish", "mix"]; // graphs of a RuntimeBlock
export const PIECES = ["finish_q", "finish", "between", "act", "end"]; // of a KernelBlock

/**
 * The weights `name` of a block, ready to be multiplied with.
 *
 * @param space  a Workspace
 * @param about  what a manifest says of the block's tensors
 * @param bytes  that they lie in
 * @param scale  name of what their columns are multiplied with, where there is such a tensor
 */
export function panelsOf(space, about, bytes, name, scale = null) {
  const tensor = (one) => tensorOf(about, bytes, one);
  const weights = tensor(`${name}.weight`);
  const factors = (scale && tensor(scale)?.data) || new Float32Array(weights.shape[1]).fill(1);
  return Panels.ofWeights(space, weights, factors, tensor(`${name}.bias`)?.data);
}

class Block {
  /** @param graphs  by name */
  constructor(graphs) {
    this.graphs = graphs;
  }

  /** Keys and values of their projection, whose first row has position `start`. */
  async finish(raw, start) {
    const { finish } = this.graphs;
    return finish ? (await finish.run({ raw, start })).rows : raw;
  }

  async release() {
    for (const graph of Object.values(this.graphs)) await graph.release();
  }
}

/** All of it by the runtime. */
export class RuntimeBlock extends Block {
  /** Queries of n, whose first row has position `start`. */
  async query(n, start) {
    return (await this.graphs.q.run({ n, start })).query;
  }

  async keyValue(n, start) {
    return (await this.graphs.kv.run({ n, start })).rows;
  }

  /** The block's output of its input and the merged heads. */
  async mix(x, attended) {
    return (await this.graphs.mix.run({ x, attended })).y;
  }
}

/** The products with weights by kernels, which on one thread can be faster, and the rest by the runtime. */
export class KernelBlock extends Block {
  #query;
  #out;
  #up;
  #down;

  constructor(graphs, space, about, bytes) {
    super(graphs);
    this.keysValues = panelsOf(space, about, bytes, "kv", "scale_1");
    this.#query = panelsOf(space, about, bytes, "q", "scale_1");
    this.#out = panelsOf(space, about, bytes, "out");
    this.#up = panelsOf(space, about, bytes, "up", "scale_2");
    this.#down = panelsOf(space, about, bytes, "down");
  }

  async query(n, start) {
    const raw = this.#query.times(n);
    const { finish_q: finish } = this.graphs;
    return finish ? (await finish.run({ raw, start })).query : raw;
  }

  async keyValue(n, start) {
    return this.finish(this.keysValues.times(n), start);
  }

  async mix(x, attended) {
    const { between, act, end } = this.graphs;
    const { middle, n } = await between.run({ x, attended: this.#out.times(attended) });
    const { fed } = await act.run({ wide: this.#up.times(n) });
    return (await end.run({ middle, down: this.#down.times(fed) })).y;
  }
}
