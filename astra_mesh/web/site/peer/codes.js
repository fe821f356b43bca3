// The codecs, as astra_mesh/quant/codecs.py and vector.py: block inputs to codes, and keys and values again.
//
// A codec says how many codes there are and how they are packed; its senders and receivers hold what both ends
// remember of some tokens of one request. Codes are one array for each stage, token after token.

import * as bits from "./bits.js";
import { Matrix } from "./runtime.js";
import { TABLE_BYTES, Table, tableBytes, tensorsOf } from "./tables.js";

export const UNLIMITED = -1; // history

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
    const { codes, kept } = await this.#codec.encodeOne(block, this.#stages, x, n, this.#memory?.past(block));
    this.#memory?.keep(block, kept);
    return codes;
  }
}

/** The receiving end of a VectorSender. Blocks may come with fewer stages: as many as there are arrays of codes. */
class VectorReceiver {
  #codec;
  #stages;
  #memory;
  #last; // what a codec without memory knows of all tokens: n^, or the codes that it is rebuilt from

  constructor(codec, stages, memory, known) {
    this.#codec = codec;
    this.#stages = stages;
    this.#memory = memory;
    this.#last = known;
  }

  /** Keys and values of tokens whose first one has position `start`. */
  async decode(block, codes, start) {
    const { n, kept, rows } = await this.#codec.decodeOne(block, codes.length, codes, this.#memory?.past(block), start);
    this.#memory?.keep(block, kept);
    this.#last = n ?? { block, codes };
    return rows;
  }

  /** The same where no codes came: from what is known of earlier blocks. */
  async standIn(block, start) {
    let n = this.#last;
    if (n?.codes) ({ n } = await this.#codec.rebuild(n.block, n.codes.length, n.codes, undefined));
    if (this.#memory) {
      const past = this.#memory.past(block);
      ({ n } = await this.#codec.graph(block, this.#stages, "predict").run({ past }));
      const nothing = new Matrix(new Float32Array(n.data.length), n.columns);
      this.#memory.keep(block, this.#memory.history === UNLIMITED ? n : nothing);
    }
    return this.#codec.project(block, n, start);
  }
}

const keyOf = (stages, block) => `${stages}.${block}`;

/** Codes of a codebook. `prepare` loads what a number of stages needs, before its senders and receivers. */
export class VectorCodec {
  #about;
  #source;
  #graphs = new Map(); // by number of stages and block: graphs by name
  #making = new Map(); // the same: promises
  #tables = new Map(); // by block, of the most stages that were asked for: fewer use its first rows

  /** source: fetched(description), the bytes that a manifest describes; load(description, weights), a Graph. */
  constructor(model, about, source) {
    this.model = model;
    this.#about = about;
    this.#source = source;
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
    for (let block = this.firstBlock; block < this.model.blocks; block++) await this.prepareBlock(stages, block);
  }

  /** Load what a number of stages needs in one block; once, whoever asks meanwhile. */
  async prepareBlock(stages, block) {
    const key = keyOf(stages, block);
    if (!this.#making.has(key)) this.#making.set(key, this.#make(stages, block));
    try {
      await this.#making.get(key);
    } catch (error) {
      this.#making.delete(key); // it can be tried again
      throw error;
    }
  }

  async #make(stages, block) {
    const { weights, graphs } = this.#about.levels[stages][block - this.firstBlock];
    const data = await this.#source.fetched(weights);
    const made = {};
    for (const [name, graph] of Object.entries(graphs)) made[name] = await this.#source.load(graph, data);
    if (this.#looksUp(stages) && !(this.#tables.get(block)?.stages >= stages)) {
      const project = (n) => this.model.raw(block, n);
      const product = (a, b) => this.model.product(a, b);
      this.#tables.set(block, await Table.make(tensorsOf(weights, data), stages, project, product));
    }
    this.#graphs.set(keyOf(stages, block), made);
  }

  #looksUp(stages) {
    const codes = this.groups.slice(0, stages).reduce((sum, one) => sum + one, 0);
    const bytes = this.#about.levels[stages].length * tableBytes(codes, this.#about.size, 2 * this.#kvSize());
    return this.name === "vq" && !this.#about.history && bytes <= TABLE_BYTES;
  }

  #kvSize() {
    return this.model.spec.num_key_value_heads * this.model.spec.head_dim;
  }

  graph(block, stages, name) {
    return this.#graphs.get(keyOf(stages, block))[name];
  }

  /** Codes of one block's input, and what both ends keep. `past`: what it is predicted from, if it is. */
  async encodeOne(block, stages, x, n, past) {
    const found = await this.graph(block, stages, "encode").run({ n: this.name === "astra" ? x : n, past });
    const codes = this.groups.slice(0, stages).map((_, stage) => this.kind.from(found[`codes.${stage}`].data));
    return { codes, kept: found.kept };
  }

  /**
   * Keys and values of codes (`rows`, of tokens from position `start` on), what both ends keep, and n^ where no
   * table spares it.
   */
  async decodeOne(block, stages, codes, past, start) {
    const table = this.#looksUp(stages) && this.#tables.get(block);
    if (table) return { n: null, rows: await this.model.finish(block, table.sum(codes, this.groups), start) };
    const { n, kept } = await this.rebuild(block, stages, codes, past);
    return { n, kept, rows: await this.project(block, n, start) };
  }

  /** n^ of codes, and what both ends keep. */
  async rebuild(block, stages, codes, past) {
    const fed = { past };
    codes.forEach((one, stage) => {
      fed[`codes.${stage}`] = new Matrix(Int32Array.from(one), this.groups[stage]);
    });
    return this.graph(block, stages, "rebuild").run(fed);
  }

  /** Keys and values of n^, or of the embedding for `astra`. */
  async project(block, n, start) {
    return this.model.keyValue(block, this.name === "astra" ? await this.model.normalize(n) : n, start);
  }

  /** Columns of what a block is predicted from; 0 where it is not. */
  pastColumns(block) {
    const { history } = this.#about;
    return history ? sources(history, block).length * this.model.spec.hidden_size : 0;
  }

  async release() {
    for (const graphs of this.#graphs.values()) for (const graph of Object.values(graphs)) await graph.release();
    this.#graphs.clear();
    this.#making.clear();
    this.#tables.clear();
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
