// One shard's steps, as astra_mesh/engine/shard.py.

import { Matrix } from "./matrix.js";

/** The positions [start, stop) whose embedded rows a shard needs: of all that it attends exactly. */
export function embedRange(layout, shard) {
  const [start, stop] = layout.bounds[shard];
  if (layout.firstBlock === 0) return [layout.copiesClass(shard) ? 0 : start, stop];
  return [0, layout.causal ? stop : layout.tokens];
}

/** Rows of positions `start` to `stop`, of rows that begin at position `first`. */
const placed = (rows, first, start, stop) => rows.slice(start - first, stop - first);

function stacked(...parts) {
  const data = new Float32Array(parts.reduce((sum, one) => sum + one.data.length, 0));
  let at = 0;
  for (const part of parts) {
    data.set(part.data, at);
    at += part.data.length;
  }
  return new Matrix(data, parts[0].columns);
}

/**
 * One softmax over the keys of all parts, in their order: (T, q_size).
 * Each part has `out` (T, q_size) and `lse` (T, heads).
 */
export function merge(parts) {
  if (parts.length === 1) return parts[0].out;
  const { rows, columns } = parts[0].out;
  const heads = parts[0].lse.columns;
  const size = columns / heads;
  const found = new Float32Array(rows * columns);
  const shares = new Float32Array(parts.length);
  for (let at = 0; at < rows * heads; at++) {
    let most = -Infinity;
    for (const part of parts) most = Math.max(most, part.lse.data[at]);
    let whole = 0;
    parts.forEach((part, i) => {
      shares[i] = Math.exp(part.lse.data[at] - most);
      whole += shares[i];
    });
    const begin = at * size;
    for (let i = 0; i < parts.length; i++) {
      const share = shares[i] / whole;
      const { data } = parts[i].out;
      for (let j = begin; j < begin + size; j++) found[j] += share * data[j];
    }
  }
  return new Matrix(found, columns);
}

/**
 * State of one shard. Per block call, in this order: `encode` (codes to send), `attendLocal`, `attendRemote` once
 * for each of `layout.sources`, `finish`. Where there is time, `foreseeOwn` of the next block and `foreseeRemote` of this
 * one may be called after `attendLocal`: less is left to do then when others wait for codes, or codes are there.
 */
export class ShardRun {
  #model;
  #layout;
  #shard;
  #codec;
  #embedded;
  #first; // position of the first embedded row
  #start;
  #n = null;
  #query = null;
  #parts = new Map();
  #known = new Map(); // by shard: n of the first block, if it is known
  #common = null; // sender
  #senders = new Map(); // by receiver; who got the same codes so far has the same one
  #receivers = new Map(); // by shard

  constructor(model, layout, shard, codec, embedded) {
    this.#model = model;
    this.#layout = layout;
    this.#shard = shard;
    this.#codec = codec;
    this.#embedded = embedded;
    [this.#first] = embedRange(layout, shard);
    const [start, stop] = layout.bounds[shard];
    this.#start = start;
    const own = placed(embedded, this.#first, start, stop);
    this.x = layout.copiesClass(shard) ? stacked(placed(embedded, this.#first, 0, 1), own) : own; // of the next block
  }

  /** Rows in front of the own tokens that are not sent. */
  get #unsent() {
    return this.#layout.localRows(this.#shard) - this.#layout.sent(this.#shard).length;
  }

  /**
   * Codes of the own tokens for `block`: a Map of receiver to arrays. Those who got the same so far, and take the same
   * now, share them.
   *
   * @param stages  of each receiver, a Map; by default those of the layout
   */
  async encode(block, stages = null) {
    const receivers = this.#layout.receivers(this.#shard, block);
    const found = new Map();
    if (!receivers.length) return found;
    this.#n = await this.#model.normalize(this.x);
    const [x, n] = [this.x.slice(this.#unsent), this.#n.slice(this.#unsent)];
    const wanted = new Map(); // sender -> Map of number of stages to receivers
    for (const receiver of receivers) {
      const count = stages?.get(receiver) ?? this.#layout.stagesBetween(this.#shard, receiver);
      const sender = this.#sender(receiver);
      if (!wanted.has(sender)) wanted.set(sender, new Map());
      const alike = wanted.get(sender);
      alike.set(count, [...(alike.get(count) ?? []), receiver]);
    }
    for (const [sender, groups] of wanted) {
      const ends = [...groups].map((_, i) => (i ? sender.fork() : sender));
      for (const [i, [count, some]] of [...groups].sort(([a], [b]) => a - b).entries()) {
        const codes = await ends[i].encode(block, x, n, count);
        for (const receiver of some) {
          found.set(receiver, codes);
          this.#senders.set(receiver, ends[i]);
        }
      }
    }
    return found;
  }

  /** Predict the own tokens of `block`, which are encoded next. */
  async foreseeOwn(block) {
    const ends = new Map(); // sender -> number of stages
    for (const receiver of this.#layout.receivers(this.#shard, block)) {
      ends.set(this.#sender(receiver), this.#layout.stagesBetween(this.#shard, receiver));
    }
    for (const [sender, stages] of ends) await sender.foresee(block, stages);
  }

  /** Do what `attendRemote` does before it needs codes, for all shards whose codes of `block` come. */
  async foreseeRemote(block) {
    for (const source of this.#layout.sources(this.#shard, block)) await this.#receiver(source).foresee(block);
  }

  /** What codes for a receiver come from; at first one for all. */
  #sender(receiver) {
    this.#common ??= this.#codec.sender(this.#known.get(this.#shard) ?? null);
    return this.#senders.get(receiver) ?? this.#common;
  }

  /** Exact queries, keys and values of the own tokens, and attention among them. */
  async attendLocal(block) {
    const model = this.#model;
    const wanted = this.#wanted(block);
    const n = this.#n ?? (await model.normalize(this.x));
    this.#n = null;
    this.#parts = new Map();
    if (block < this.#layout.firstBlock) this.#known.set(this.#shard, n.slice(this.#unsent));
    if (!wanted.length) return;
    this.#query = await model.query(block, n.slice(wanted.start, wanted.stop), this.#start + wanted.start);
    const rows = await model.keyValue(block, n, this.#start);
    const whole = wanted.length === n.rows;
    this.#parts.set(this.#shard, await model.attend(this.#query, rows, this.#layout.causal && whole));
    if (block < this.#layout.firstBlock) await this.#attendKnown(block);
  }

  /** The first block's input is known to every peer: attend the others exactly. */
  async #attendKnown(block) {
    for (const source of this.#layout.sources(this.#shard, block)) {
      const { start, stop } = this.#layout.sent(source);
      const n = await this.#model.normalize(placed(this.#embedded, this.#first, start, stop));
      this.#known.set(source, n);
      const rows = await this.#model.keyValue(block, n, start);
      this.#parts.set(source, await this.#model.attend(this.#query, rows));
    }
  }

  /** Attend the tokens of shard `source`, given its codes; none: a prediction stands in. */
  async attendRemote(block, source, codes) {
    const receiver = this.#receiver(source);
    const { start } = this.#layout.sent(source);
    const rows = await (codes?.length ? receiver.decode(block, codes, start) : receiver.standIn(block, start));
    this.#parts.set(source, await this.#model.attend(this.#query, rows));
  }

  #receiver(source) {
    if (!this.#receivers.has(source)) {
      const stages = this.#layout.stagesBetween(source, this.#shard);
      this.#receivers.set(source, this.#codec.receiver(stages, this.#known.get(source) ?? null));
    }
    return this.#receivers.get(source);
  }

  /** Merge the parts and compute the block's output, the next block's input. */
  async finish(block) {
    const wanted = this.#wanted(block);
    if (!wanted.length) {
      this.x = this.x.slice(0, 0);
      return;
    }
    const parts = [...this.#parts].sort(([a], [b]) => a - b).map(([, part]) => part);
    this.#parts = new Map();
    this.x = await this.#model.mix(block, this.x.slice(wanted.start, wanted.stop), merge(parts));
  }

  #wanted(block) {
    if (block === this.#layout.blocks - 1) return this.#layout.wanted(this.#shard);
    return { start: 0, stop: this.x.rows, length: this.x.rows };
  }

  /** This shard's share of the pooled output: the sum of final rows, and its weight. */
  async pooled() {
    const layout = this.#layout;
    const size = this.#model.spec.hidden_size;
    const vector = new Float32Array(size);
    if (!layout.wanted(this.#shard).length) return { vector, weight: 0 };
    const hidden = await this.#model.final(this.x);
    let weight = 0;
    for (let row = 0; row < hidden.rows; row++) {
      const copied = row === 0 && layout.distributed && layout.pooling === "mean";
      const share = copied ? 1 / layout.bounds.filter((_, i) => layout.holds(i)).length : 1;
      weight += share;
      for (let j = 0; j < size; j++) vector[j] += share * hidden.data[row * size + j];
    }
    return { vector, weight };
  }
}
