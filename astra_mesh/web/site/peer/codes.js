// The codecs, as astra_mesh/quant/codecs.py and vector.py: block inputs to codes, and keys and values again.
//
// A codec says how many codes there are and how they are packed; its senders and receivers hold what both ends
// remember of some tokens of one request. Codes are one array for each stage, token after token.

import * as bits from "./bits.js";
import { Matrix } from "./runtime.js";

export const UNLIMITED = -1; // history
export const PLAIN = ["fp32", "fp16"]; // codecs without a codebook that a tab has

/** The blocks that a block is predicted from (astra_mesh/quant/codebook.py). */
export function sources(history, block) {
  if (history === UNLIMITED) return [block - 1];
  const recent = [];
  for (let at = block - 1; at >= Math.max(block - history, 0); at--) recent.push(at);
  return !history || recent.includes(0) ? recent : [...recent, 0];
}

/** Matrices side by side. */
function beside(parts) {
  if (parts.length === 1) return parts[0];
  const columns = parts.reduce((sum, one) => sum + one.columns, 0);
  const found = new Float32Array(parts[0].rows * columns);
  let at = 0;
  for (const part of parts) {
    for (let row = 0; row < part.rows; row++) found.set(part.slice(row, row + 1).data, row * columns + at);
    at += part.columns;
  }
  return new Matrix(found, columns);
}

/** What both ends hold of some tokens: see the Python class. */
class Memory {
  #past;

  constructor(history, known) {
    this.history = history;
    this.#past = new Map([[0, known]]);
  }

  /** What `block` is predicted from, side by side. */
  past(block) {
    return beside(sources(this.history, block).map((source) => this.#past.get(source)));
  }

  keep(block, kept) {
    const wanted = new Set([0, ...sources(this.history, block + 1)]);
    for (const held of this.#past.keys()) if (!wanted.has(held)) this.#past.delete(held);
    this.#past.set(block, kept);
  }
}

/** The sending end for some tokens of one request, at one number of stages. Blocks come in ascending order. */
class VectorSender {
  #codec;
  #stages;
  #memory;

  constructor(codec, stages, memory) {
    this.#codec = codec;
    this.#stages = stages;
    this.#memory = memory;
  }

  /** Codes of a block's input `x`, whose normalized form is `n`. */
  async encode(block, x, n) {
    const codec = this.#codec;
    const graph = codec.graph(block, this.#stages, "encode");
    const past = this.#memory?.past(block);
    const found = await graph.run({ n: codec.name === "astra" ? x : n, past });
    if (this.#memory) this.#memory.keep(block, found.kept);
    return codec.groups.slice(0, this.#stages).map((_, stage) => codec.kind.from(found[`codes.${stage}`].data));
  }
}

/** The receiving end of a VectorSender. */
class VectorReceiver {
  #codec;
  #stages;
  #memory;
  #last;

  constructor(codec, stages, memory, known) {
    this.#codec = codec;
    this.#stages = stages;
    this.#memory = memory;
    this.#last = known; // what a codec without memory knows of all tokens
  }

  /** Keys and values of tokens whose first one has position `start`. */
  async decode(block, codes, start) {
    const fed = { past: this.#memory?.past(block) };
    codes.forEach((one, stage) => {
      fed[`codes.${stage}`] = new Matrix(Int32Array.from(one), this.#codec.groups[stage]);
    });
    const found = await this.#codec.graph(block, this.#stages, "rebuild").run(fed);
    if (this.#memory) this.#memory.keep(block, found.kept);
    this.#last = found.n;
    return this.#project(block, found.n, start);
  }

  /** The same where no codes came: from what is known of earlier blocks. */
  async standIn(block, start) {
    let n = this.#last;
    if (this.#memory) {
      const past = this.#memory.past(block);
      ({ n } = await this.#codec.graph(block, this.#stages, "predict").run({ past }));
      const nothing = new Matrix(new Float32Array(n.data.length), n.columns);
      this.#memory.keep(block, this.#memory.history === UNLIMITED ? n : nothing);
    }
    return this.#project(block, n, start);
  }

  async #project(block, n, start) {
    const { model, name } = this.#codec;
    return model.keyValue(block, name === "astra" ? await model.normalize(n) : n, start);
  }
}

/** Codes of a codebook. `prepare` loads what a number of stages needs, before its senders and receivers. */
export class VectorCodec {
  #about;
  #load;
  #graphs = new Map(); // by number of stages: for each block, graphs by name

  /** `load(description, weights)` makes a Graph of what the manifest says of one. */
  constructor(model, about, load) {
    this.model = model;
    this.#about = about;
    this.#load = load;
    this.name = about.codec;
    this.able = about.able;
    this.firstBlock = about.first_block;
    this.groups = about.groups;
    this.kind = about.code_bits <= 8 ? Uint8Array : Uint16Array;
  }

  /** Bits per token and block. */
  rate(stages) {
    return this.#about.rates[this.able.indexOf(stages)];
  }

  async prepare(stages) {
    if (this.#graphs.has(stages)) return;
    const blocks = new Map();
    for (const [index, { weights, graphs }] of this.#about.levels[stages].entries()) {
      const made = {};
      for (const [name, graph] of Object.entries(graphs)) made[name] = await this.#load(graph, weights);
      blocks.set(this.firstBlock + index, made);
    }
    this.#graphs.set(stages, blocks);
  }

  graph(block, stages, name) {
    return this.#graphs.get(stages).get(block)[name];
  }

  /** The sending end; `known`: the normalized input of the first block, null where that is coded too. */
  sender(stages, known) {
    return new VectorSender(this, stages, this.#memory(known));
  }

  receiver(stages, known) {
    return new VectorReceiver(this, stages, this.#memory(known), known);
  }

  #memory(known) {
    return this.#about.history ? new Memory(this.#about.history, known) : null;
  }

  /** One stage's codes as bytes. */
  pack(stage, codes) {
    return bits.pack(codes, this.#about.code_bits);
  }

  packedBytes(stage, tokens) {
    return bits.packedBytes(tokens * this.groups[stage], this.#about.code_bits);
  }

  /** Inverse of `pack`; an Error where length or values cannot be. */
  unpack(stage, bytes, tokens) {
    const codes = bits.unpack(bytes, tokens * this.groups[stage], this.#about.code_bits);
    const { size } = this.#about;
    if (codes.some((code) => code >= size)) throw new Error(`a code beyond the ${size} codewords of its group`);
    return codes;
  }
}
