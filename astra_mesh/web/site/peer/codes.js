// The codecs, as astra_mesh/quant/codecs.py and vector.py: block inputs to codes, and keys and values again.
//
// A codec says how many codes there are and how they are packed; its senders and receivers hold what both ends
// remember of some tokens of one request. Codes are one array for each stage, token after token.

import * as bits from "./bits.js";
import { Matrix } from "./matrix.js";
import { Quantizer, reachOf } from "./quantizer.js";
import { TABLE_BYTES, Table, rowsOf, tableBytes } from "./tables.js";
import { tensorOf } from "./tensors.js";
import { Workspace } from "./workspace.js";

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

  fork() {
    const other = new Memory(this.history, null);
    other.#past = new Map(this.#past); // what is kept of a block changes no more after it
    return other;
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

/** The sending end for some tokens of one request. Blocks come in ascending order. */
class VectorSender {
  #codec;
  #memory;

  constructor(codec, memory) {
    this.#codec = codec;
    this.#memory = memory;
  }

  /** Another one with the same past: what it sends from now on may differ. */
  fork() {
    return new VectorSender(this.#codec, this.#memory?.fork());
  }

  /** Codes of a block's input `x`, whose normalized form is `n`, of so many stages. */
  async encode(block, x, n, stages) {
    const { codes, kept } = this.#codec.encodeOne(block, stages, x, n, this.#memory?.past(block));
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
    const { n, kept, rows } = await this.#codec.decodeOne(block, codes, this.#memory?.past(block), start);
    this.#memory?.keep(block, kept);
    this.#last = n ?? { block, codes };
    return rows;
  }

  /** The same where no codes came: from what is known of earlier blocks. */
  async standIn(block, start) {
    let n = this.#last;
    if (n?.codes) ({ n } = this.#codec.rebuild(n.block, n.codes));
    if (this.#memory) {
      n = this.#codec.predict(block, this.#stages, this.#memory.past(block));
      const nothing = new Matrix(new Float32Array(n.data.length), n.columns);
      this.#memory.keep(block, this.#memory.history === UNLIMITED ? n : nothing);
    }
    return this.#codec.project(block, n, start);
  }
}

/** Codes of a codebook. `prepare` loads what a number of stages needs, before its senders and receivers. */
export class VectorCodec {
  #about;
  #source;
  #mostBytes;
  #space = null; // a promise
  #quantizers = new Map(); // by level and block
  #making = new Map(); // the same: promises
  #tables = new Map(); // by block: codes to keys and values; only where nothing is remembered
  #projections = new Map(); // by block: n^ to keys and values, where there is no table

  /** source: fetched(description), the bytes that a manifest describes; mostBytes: of all blocks' tables. */
  constructor(model, about, source, mostBytes = TABLE_BYTES) {
    this.model = model;
    this.#about = about;
    this.#source = source;
    this.#mostBytes = mostBytes;
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
    const key = this.#key(stages, block);
    if (!this.#making.has(key)) this.#making.set(key, this.#make(stages, block));
    try {
      await this.#making.get(key);
    } catch (error) {
      this.#making.delete(key); // it can be tried again
      throw error;
    }
  }

  /** Without history one quantizer does for all numbers of stages: the largest one's. */
  #level(stages) {
    return this.#about.history ? stages : this.able.at(-1);
  }

  #key(stages, block) {
    return `${this.#level(stages)}.${block}`;
  }

  async #make(stages, block) {
    const { history, levels } = this.#about;
    const level = this.#level(stages);
    const weights = levels[level][block - this.firstBlock];
    const data = await this.#source.fetched(weights);
    const tensors = (name) => tensorOf(weights, data, name);
    const space = await (this.#space ??= Workspace.make());
    const hidden = this.model.spec.hidden_size;
    const quantizer = new Quantizer(space, tensors, { stages: level, history, hidden, kind: this.kind });
    if (!history && this.#fits(2 * this.#kvSize())) await this.#tabulate(block, quantizer, tensors, space);
    else if (this.name === "vq") await this.#project(block, quantizer, tensors, space);
    this.#quantizers.set(this.#key(stages, block), quantizer);
  }

  /** A table of what codes add to n, and a projection. */
  async #project(block, quantizer, tensors, space) {
    if (this.#fits(this.model.spec.hidden_size, true)) await quantizer.tabulate(reachOf(tensors("synthesis")));
    if (!this.#projections.has(block)) this.#projections.set(block, await this.model.projection(block, space));
  }

  /** A table of keys and values. */
  async #tabulate(block, quantizer, tensors, space) {
    const project = await this.model.projection(block, await Workspace.make());
    const toN = reachOf(tensors("synthesis"));
    const nothing = new Matrix(new Float32Array(toN.columns), toN.columns);
    const bias = project.times(nothing).data; // which is not a coordinate's
    const reach = project.times(toN);
    for (let i = 0; i < reach.data.length; i++) reach.data[i] -= bias[i % reach.columns];
    const start = project.times(new Matrix(tensors("center").data, toN.columns)).data;
    this.#tables.set(block, new Table(space, await rowsOf(quantizer.stages, reach), reach.columns, start));
  }

  /** Whether tables of so many columns are small enough. */
  #fits(columns, exact = false) {
    const { size, levels } = this.#about;
    const codes = this.groups.reduce((sum, one) => sum + one, 0);
    const blocks = levels[this.able.at(-1)].length;
    return this.name === "vq" && blocks * tableBytes(codes, size, columns, exact) <= this.#mostBytes;
  }

  #kvSize() {
    return this.model.spec.num_key_value_heads * this.model.spec.head_dim;
  }

  #quantizer(stages, block) {
    return this.#quantizers.get(this.#key(stages, block));
  }

  /** Codes of one block's input, and what both ends keep. `past`: what it is predicted from, if it is. */
  encodeOne(block, stages, x, n, past) {
    return this.#quantizer(stages, block).encode(this.name === "astra" ? x : n, past, stages);
  }

  /**
   * Keys and values of codes (`rows`, of tokens from position `start` on), what both ends keep, and n^ where no
   * table spares it.
   */
  async decodeOne(block, codes, past, start) {
    const table = this.#tables.get(block);
    if (table) return { n: null, rows: await this.model.finish(block, table.sum({ codes, groups: this.groups, size: this.#about.size }), start) };
    const { n, kept } = this.rebuild(block, codes, past);
    return { n, kept, rows: await this.project(block, n, start) };
  }

  /** n^ of codes, and what both ends keep. */
  rebuild(block, codes, past) {
    return this.#quantizer(codes.length, block).rebuild(codes, past);
  }

  /** n^ of a block whose codes did not come. */
  predict(block, stages, past) {
    return this.#quantizer(stages, block).predict(past);
  }

  /** Keys and values of n^, or of the embedding for `astra`. */
  async project(block, n, start) {
    const projection = this.#projections.get(block);
    if (projection) return this.model.finish(block, projection.times(n), start);
    return this.model.keyValue(block, this.name === "astra" ? await this.model.normalize(n) : n, start);
  }

  /** Columns of what a block is predicted from; 0 where it is not. */
  pastColumns(block) {
    const { history } = this.#about;
    return history ? sources(history, block).length * this.model.spec.hidden_size : 0;
  }

  async release() {
    for (const one of [this.#quantizers, this.#making, this.#tables, this.#projections]) one.clear();
    this.#space = null;
  }

  /** The sending end; `known`: the normalized input of the first block, null where that is coded too. */
  sender(known) {
    return new VectorSender(this, this.#memory(known));
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
