// The codecs, as astra_mesh/quant/codecs.py and vector.py: block inputs to codes, and keys and values again.
//
// A codec says how many codes there are and how they are packed; its senders and receivers hold what both ends
// remember of some tokens of one request. Codes are one array for each stage, token after token.

import * as bits from "./bits.js";
import { Further } from "./fetching.js";
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

/**
 * The sending end for some tokens of one request. Blocks come in ascending order. What a block is predicted to be can be
 * computed before its input is known (`foresee`): then less is left to do when others wait for the codes.
 */
class VectorSender {
  #codec;
  #memory;
  #stages = 0; // of the last block; 0: none was coded
  #foreseen = null; // { block, stages, n }

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
    const found = this.#foreseen;
    const fits = found?.block === block && found.stages === stages;
    const { codes, kept } = this.#codec.encodeOne(block, stages, x, n, this.#memory?.past(block), fits ? found.n : null);
    this.#memory?.keep(block, kept);
    this.#stages = stages;
    this.#foreseen = null;
    return codes;
  }

  /** Predict the next block, which will have as many stages as the last one; as many as planned, where it is the first. */
  async foresee(block, planned) {
    const stages = this.#stages || planned;
    if (this.#memory) this.#foreseen = { block, stages, n: this.#codec.predict(block, stages, this.#memory.past(block)) };
  }
}

/** The receiving end of a VectorSender. Blocks may come with fewer stages: as many as there are arrays of codes. */
class VectorReceiver {
  #codec;
  #stages; // of the plan
  #coming; // of the last block's codes; at first those of the plan
  #memory;
  #foreseen = null; // { block, stages, found }
  #last; // what a codec without memory knows of all tokens: n^, or the codes that it is rebuilt from

  constructor(codec, stages, memory, known) {
    this.#codec = codec;
    this.#stages = stages;
    this.#coming = stages;
    this.#memory = memory;
    this.#last = known;
  }

  /** Keys and values of tokens whose first one has position `start`. */
  async decode(block, codes, start) {
    this.#coming = codes.length;
    const known = this.#known(block, codes.length);
    const { n, kept, rows } = await this.#codec.decodeOne(block, codes, this.#memory?.past(block), start, known);
    this.#memory?.keep(block, kept);
    this.#last = n ?? { block, codes };
    return rows;
  }

  /** Do what the next block's codes are not needed for: there will be as many stages as in the last one. */
  async foresee(block) {
    const stages = this.#coming;
    if (this.#memory) this.#foreseen = { block, stages, found: this.#codec.foresee(block, stages, this.#memory.past(block)) };
  }

  /** What was foreseen of this block and so many stages, if it was. */
  #known(block, stages) {
    const before = this.#foreseen;
    this.#foreseen = null;
    return before?.block === block && before.stages === stages ? before.found : null;
  }

  /** The same where no codes came: from what is known of earlier blocks. */
  async standIn(block, start) {
    let n = this.#last;
    if (n?.codes) ({ n } = this.#codec.rebuild(n.block, n.codes));
    if (!this.#memory) return this.#codec.project(block, n, start);
    const foreseen = this.#known(block, this.#stages) ?? this.#codec.foresee(block, this.#stages, this.#memory.past(block));
    ({ n } = foreseen);
    const nothing = new Matrix(new Float32Array(n.data.length), n.columns);
    this.#memory.keep(block, this.#memory.history === UNLIMITED ? n : nothing);
    return foreseen.raw ? this.#codec.model.finish(block, foreseen.raw, start) : this.#codec.project(block, n, start);
  }
}

/** A table of what codes add to keys and values; with those of `center`, unless that is null. */
async function tabulated(space, quantizer, toN, project, center) {
  const nothing = new Matrix(new Float32Array(toN.columns), toN.columns);
  const bias = project.times(nothing).data; // which is not a coordinate's
  const reach = project.times(toN);
  for (let i = 0; i < reach.data.length; i++) reach.data[i] -= bias[i % reach.columns];
  const start = center && project.times(new Matrix(center, toN.columns)).data;
  return new Table(space, await rowsOf(quantizer.stages, reach), reach.columns, start);
}

/** Codes of a codebook. `prepare` loads what a number of stages needs, before its senders and receivers. */
export class VectorCodec {
  #about;
  #source;
  #mostBytes;
  #space = null; // a promise
  #quantizers = new Map(); // by level and block
  #making = new Map(); // the same: promises
  #ready = new Set(); // levels
  #coming = new Map(); // levels that are loaded in the background: Further
  #failed = new Map(); // by level: why it could not be loaded in the background
  #tables = new Map(); // by level and block: codes to keys and values, or what they add to those of a prediction
  #granted = new Map(); // by level: bytes that its tables may take
  #projections = new Map(); // by block: n^ to keys and values, where there is no table

  /** source: fetched(description, arrived), the bytes that a manifest describes; mostBytes: of all blocks' tables. */
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
    this.#ready.add(this.#level(stages));
  }

  /** Why some numbers of stages cannot be used yet, "" if they can. What is missing is loaded from now on. */
  lacks(wanted) {
    const missing = wanted.filter((stages) => !this.#ready.has(this.#level(stages)));
    if (!missing.length) return "";
    const failed = missing.map((stages) => this.#failed.get(this.#level(stages))).find(Boolean);
    for (const stages of missing) this.#failed.delete(this.#level(stages)); // it is tried again
    this.#loadAll(missing.filter((stages) => !this.#coming.has(this.#level(stages))));
    const bits = missing.map((stages) => this.rate(stages)).join(", ");
    return failed ?? `this tab is still loading ${bits} bits of this codebook; ready in a moment`;
  }

  async #loadAll(missing) {
    for (const stages of missing) this.#begin(stages);
    for (const stages of missing) {
      const level = this.#level(stages);
      await this.prepare(stages).catch((error) => this.#failed.set(level, error.message));
      this.#coming.delete(level);
      this.model.tell();
    }
  }

  /** What is loaded in the background: bits, and how many bytes of its files are here. */
  get coming() {
    return [...this.#coming.values()].map((one) => one.state);
  }

  #begin(stages) {
    const level = this.#level(stages);
    const files = this.#about.levels[level].filter((_, i) => !this.#quantizers.has(this.#key(stages, this.firstBlock + i)));
    this.#coming.set(level, new Further(this.rate(stages), files, () => this.model.tell()));
    this.model.tell();
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
    const data = await this.#source.fetched(weights, (done) => this.#coming.get(level)?.file(weights.sha256, done));
    const tensors = (name) => tensorOf(weights, data, name);
    const space = await (this.#space ??= Workspace.make());
    const hidden = this.model.spec.hidden_size;
    const quantizer = await Quantizer.make(space, tensors, { stages: level, history, hidden, kind: this.kind });
    if (this.name === "vq") await this.#prepareToDecode(stages, block, quantizer, tensors, space);
    this.#quantizers.set(this.#key(stages, block), quantizer);
  }

  /** Tables of what codes add, as far as they are small enough, and a projection where it is needed beside them. */
  async #prepareToDecode(stages, block, quantizer, tensors, space) {
    const { history } = this.#about;
    const toN = reachOf(tensors("synthesis"));
    const inN = this.#tableBytes(stages, toN.columns, true);
    const inRows = this.#tableBytes(stages, 2 * this.model.spec.num_key_value_heads * this.model.spec.head_dim);
    const both = history ? inN + inRows : inRows;
    const granted = this.#grant(this.#level(stages), [both, inN]);
    const looksUp = granted === both;
    const needsN = history || !looksUp;
    if (needsN && granted) await quantizer.tabulate(toN);
    if (needsN && !this.#projections.has(block)) this.#projections.set(block, await this.model.keptProjection(block));
    if (!looksUp) return;
    const project = this.#projections.get(block) ?? (await this.model.projection(block, await Workspace.make()));
    this.#tables.set(this.#key(stages, block), await tabulated(space, quantizer, toN, project, history ? null : tensors("center").data));
  }

  /** Bytes of all its tables. */
  get tableBytes() {
    return [...this.#granted.values()].reduce((sum, bytes) => sum + bytes, 0);
  }

  /** The first of some numbers of bytes that tables of a level may take beside those of other levels; 0: none of them. */
  #grant(level, wanted) {
    if (!this.#granted.has(level)) {
      const left = this.#mostBytes - this.tableBytes;
      this.#granted.set(level, wanted.find((bytes) => bytes <= left) ?? 0);
    }
    return this.#granted.get(level);
  }

  /** Of tables of so many columns, of all blocks. */
  #tableBytes(stages, columns, exact = false) {
    const { size, levels } = this.#about;
    const codes = this.groups.slice(0, this.#level(stages)).reduce((sum, one) => sum + one, 0);
    return levels[this.able.at(-1)].length * tableBytes(codes, size, columns, exact);
  }

  #quantizer(stages, block) {
    return this.#quantizers.get(this.#key(stages, block));
  }

  /**
   * Codes of one block's input, and what both ends keep. `past`: what it is predicted from, if it is; `foreseen`: what
   * `predict` made of that, if it was asked already; it is overwritten.
   */
  encodeOne(block, stages, x, n, past, foreseen = null) {
    return this.#quantizer(stages, block).encode(this.name === "astra" ? x : n, past, stages, foreseen);
  }

  /**
   * Keys and values of codes (`rows`, of tokens from position `start` on), what both ends keep, and n^ where no
   * table spares it. `foreseen`: of `foresee`, if it was asked already; it is overwritten.
   */
  async decodeOne(block, codes, past, start, foreseen = null) {
    const table = this.#tables.get(this.#key(codes.length, block));
    const coded = { codes, groups: this.groups, size: this.#about.size };
    if (table && !past) return { n: null, rows: await this.model.finish(block, table.sum(coded), start) };
    const before = foreseen ?? (past ? this.foresee(block, codes.length, past) : null);
    const { n, kept } = this.rebuild(block, codes, past, before?.n);
    if (!table) return { n, kept, rows: await this.project(block, n, start) };
    return { n, kept, rows: await this.model.finish(block, table.sum(coded, before.raw), start) };
  }

  /** What can be said of a block before its codes are there: n as predicted, and its keys and values where they are used. */
  foresee(block, stages, past) {
    const n = this.predict(block, stages, past);
    return { n, raw: this.#tables.has(this.#key(stages, block)) ? this.#projections.get(block).times(n) : null };
  }

  /** n^ of codes, and what both ends keep. */
  rebuild(block, codes, past, foreseen = null) {
    return this.#quantizer(codes.length, block).rebuild(codes, past, foreseen);
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
    for (const one of [this.#ready, this.#quantizers, this.#making, this.#tables, this.#projections]) one.clear();
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
