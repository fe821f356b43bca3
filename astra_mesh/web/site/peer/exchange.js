// One request's view of the links: codes out to those who need them, codes in put together. What arrives is
// checked against the plan before it is kept. As astra_mesh/peer/exchange.py, for a shard that does not answer.
// The codes of one stage are one flat typed array, row after row.

import { DeadlineError, PeerLostError, ProtocolError } from "./errors.js";
import { Part, split, stagesIn } from "./incoming.js";
import * as limits from "./limits.js";
import { make } from "./messages.js";
import { LinkRate, Pacing } from "./rates.js";

/** How long codes are waited for, from what the plan was predicted to take. */
export class Patience {
  constructor(predictedS = 0, blocks = 1, late = "wait") {
    Object.assign(this, { predictedS, blocks, degrade: late === "degrade", lower: late !== "wait" });
  }

  /** For what nothing can stand in for, seconds. */
  get wholeS() {
    return Math.min(Math.max(limits.CODES_LEAST_S, limits.CODES_PATIENCE * this.predictedS), limits.CODES_TIMEOUT_S);
  }

  /** For a part of one block; `first`: of the first one that is sent. */
  waitS(first) {
    if (!this.degrade) return this.wholeS;
    const blockS = (limits.LATE_PATIENCE * this.predictedS) / this.blocks;
    return Math.min((first ? limits.LATE_START_S : 0) + Math.max(limits.LATE_LEAST_S, blockS), this.wholeS);
  }
}

export class Exchange {
  sentBytes = Object.create(null); // by receiving peer
  timeline = null; // null: nothing is noted
  #request;
  #layout;
  #peers;
  #shard;
  #codec;
  #links;
  #patience;
  #givenUp = new Set(); // parts for which a prediction stood in
  #late = new Set(); // shards whose last part came too late
  #adapts; // whether rates may fall
  #rates = new Map(); // by receiver: LinkRate
  #pacing;
  #parts = new Map();
  #done = new Set();
  #ready = new Map(); // block -> parts, in order of arrival
  #waiting = null; // wakes receiveCodes
  #error = null;

  /**
   * @param request  its id
   * @param layout   of the plan, checked
   * @param peers    owner of each shard
   * @param shard    the own one
   * @param codec    of the plan: pack(stage, rows), unpack(stage, bytes, tokens), packedBytes(stage, tokens)
   * @param links    Map of peer id to Link, of all partners
   */
  constructor({ request, layout, peers, shard, codec, links, patience = new Patience() }) {
    this.#request = request;
    this.#layout = layout;
    this.#peers = peers;
    this.#shard = shard;
    this.#codec = codec;
    this.#links = links;
    this.#patience = patience;
    this.#adapts = patience.lower && codec.able.length > 1;
    this.#pacing = new Pacing(patience.predictedS / patience.blocks);
  }

  // --- what comes in --------------------------------------------------------------------------------

  /** Keep what a peer sent; ProtocolError if the plan does not allow it. */
  take(sender, message) {
    const source = this.#peers.indexOf(sender);
    if (source < 0) throw new ProtocolError("codes from a peer that has no shard of this request");
    if (message.type === "Pooled") throw new ProtocolError("a pooled vector that this peer does not need");
    this.#takeCodes(source, message);
  }

  #takeCodes(source, message) {
    const layout = this.#layout;
    const { block, stage, count } = message;
    if (block < layout.firstBlock || block >= layout.blocks || !layout.sources(this.#shard, block).includes(source)) {
      throw new ProtocolError(`codes of block ${block} that this peer does not need`);
    }
    const sent = layout.sent(source);
    const stages = layout.stagesBetween(source, this.#shard);
    const first = message.first - sent.start;
    if (stage >= stages || first < 0 || first + count > sent.length) throw new ProtocolError(`codes of block ${block} outside the sender's shard and rate`);
    const key = partKey(block, source);
    if (this.#givenUp.has(key)) return;
    if (this.#done.has(key)) throw new ProtocolError("codes that were sent before");
    const coming = this.#adapts ? stagesIn(this.#codec, message, stages) : stages;
    const rows = split(this.#codec, message, coming).map(([at, data]) => [at, this.#unpack(at, data, count)]);
    if (!this.#parts.has(key)) this.#parts.set(key, new Part(coming, sent.length));
    const part = this.#parts.get(key);
    if (part.arrays.length !== coming) throw new ProtocolError("codes of one block at two rates");
    for (const [at, some] of rows) {
      if (!part.put(at, first, count, some)) continue;
      this.#done.add(key);
      this.#late.delete(source);
      this.#parts.delete(key);
      this.timeline?.note("arrived", block, source);
      this.#queue(block).push([source, part.arrays]);
      this.#wake();
    }
  }

  #unpack(stage, data, count) {
    try {
      return this.#codec.unpack(stage, data, count);
    } catch (error) {
      throw new ProtocolError(error.message);
    }
  }

  /** Parts for which a prediction stood in. */
  get lateParts() {
    return this.#givenUp.size;
  }

  /** Whether something of this request still has to come from `peer`. */
  misses(peer) {
    const source = this.#peers.indexOf(peer);
    for (let block = this.#layout.firstBlock; block < this.#layout.blocks; block++) {
      if (this.#missing(block).includes(source)) return true;
    }
    return false;
  }

  #missing(block) {
    return this.#layout.sources(this.#shard, block).filter((source) => !this.#done.has(partKey(block, source)));
  }

  /** A link is over: what still had to come over it will not. */
  linkGone(link, error) {
    for (const [peer, bound] of this.#links) {
      if (bound === link && this.misses(peer)) this.fail(error);
    }
  }

  /** End all waiting, now and later, with this error. */
  fail(error) {
    this.#error ??= error;
    this.#wake();
  }

  // --- the engine's side ----------------------------------------------------------------------------

  /** The stages of a block's codes by receiver: the plan's, or fewer where that is allowed and needed. */
  stages(block, busyS) {
    const receivers = this.#layout.receivers(this.#shard, block);
    if (!this.#adapts) return new Map(receivers.map((i) => [i, this.#layout.stagesBetween(this.#shard, i)]));
    const allowedS = this.#pacing.allowedS(block, performance.now() / 1000, busyS);
    return new Map(receivers.map((i) => [i, this.#adapted(block, i, allowedS)]));
  }

  #adapted(block, receiver, allowedS) {
    if (!this.#rates.has(receiver)) {
      const most = this.#layout.stagesBetween(this.#shard, receiver);
      const tokens = this.#layout.sent(this.#shard).length;
      const able = this.#codec.able.filter((stages) => stages <= most);
      this.#rates.set(receiver, new LinkRate(new Map(able.map((stages) => [stages, this.#bytes(upTo(stages), tokens)]))));
    }
    return this.#rates.get(receiver).choose(block, allowedS, this.#links.get(this.#peers[receiver]).backlog());
  }

  /** By receiving peer, where it was not the plan's: a block, the bits per token from it on, the next block, and so on. */
  get rates() {
    const found = {};
    for (const [receiver, { used }] of this.#rates) {
      if (used.length) found[this.#peers[receiver]] = used.flatMap(([block, stages]) => [block, this.#codec.rate(stages)]);
    }
    return found;
  }

  #bytes(stages, count) {
    return stages.reduce((sum, stage) => sum + this.#codec.packedBytes(stage, count), 0);
  }

  /** Hand the own codes of `block` to every shard that needs them: a Map of receiver to arrays, the same for some. */
  async sendCodes(block, codes) {
    const links = new Map([...codes.keys()].map((receiver) => [receiver, this.#link(receiver)]));
    const alike = new Map(); // arrays -> links
    for (const [receiver, arrays] of codes) alike.set(arrays, [...(alike.get(arrays) ?? []), links.get(receiver)]);
    for (const [arrays, taking] of [...alike].sort(([a], [b]) => a.length - b.length)) {
      for (const message of this.#messages(block, arrays)) taking.forEach((link) => this.#send(link, message));
    }
    for (const link of links.values()) await link.drain();
  }

  /**
   * All stages in one message where that is small, else each in as many as it takes; where rates may fall all stages
   * of some tokens, so that each message tells how many they are.
   */
  *#messages(block, codes) {
    const { start, length: tokens } = this.#layout.sent(this.#shard);
    const packed = (stages, count) => this.#bytes(stages, count);
    const every = upTo(codes.length);
    const small = Math.min(limits.JOINED_CODES_BYTES, limits.CODES_DATA_BYTES);
    const joined = this.#adapts || packed(every, tokens) <= small;
    for (const stages of joined ? [every] : every.map((stage) => [stage])) {
      // Cut so that each message stays within CODES_DATA_BYTES.
      const most = Math.max(1, Math.floor((limits.CODES_DATA_BYTES * 64) / packed(stages, 64)));
      for (let first = 0; first < tokens; first += most) {
        const count = Math.min(most, tokens - first);
        const data = new Uint8Array(packed(stages, count));
        let at = 0;
        for (const stage of stages) {
          const columns = codes[stage].length / tokens;
          data.set(this.#codec.pack(stage, codes[stage].subarray(first * columns, (first + count) * columns)), at);
          at += packed([stage], count);
        }
        yield make("Codes", { request: this.#request, block, stage: stages[0], first: start + first, count, data });
      }
    }
  }

  /**
   * The next complete part of `block`, in order of arrival: [shard, arrays]. Without arrays: the codes did not
   * come in time, and the plan says to go on without them. DeadlineError or what fail() was given otherwise.
   */
  async receiveCodes(block) {
    const waitS = this.#waitS(block);
    const end = performance.now() + 1000 * waitS;
    for (;;) {
      if (this.#error !== null) throw this.#error;
      const part = this.#queue(block).shift();
      if (part) return part;
      const left = end - performance.now();
      if (left <= 0) break;
      await this.#woken(left);
    }
    const missing = this.#missing(block);
    if (!this.#goesOn(block)) throw this.#overdue(`codes of block ${block}`, missing, waitS);
    return [this.#giveUp(block, missing[0]), []];
  }

  /** Complete parts that receiveCodes would give without waiting; none once it failed, so that it says why. */
  readyCodes(block) {
    return this.#error === null ? this.#queue(block).splice(0) : [];
  }

  /** Hand the own share of the pooled output (Float32Array) to the answering peer. */
  sendPooled(vector, weight) {
    const data = new Uint8Array(vector.buffer.slice(vector.byteOffset, vector.byteOffset + vector.byteLength));
    this.#send(this.#link(this.#layout.answering()), make("Pooled", { request: this.#request, weight, vector: data }));
  }

  /** The request ends early: drop what is queued for it, and what still comes. */
  abandon() {
    for (const link of this.#links.values()) link.end(this.#request);
  }

  /** Whether a prediction may stand in; of the very first block's input there is none. */
  #goesOn(block) {
    return this.#patience.degrade && block > 0;
  }

  /** How long this block may wait: not again for shards that were late before. */
  #waitS(block) {
    if (this.#goesOn(block) && this.#missing(block).every((source) => this.#late.has(source))) return limits.LATE_LEAST_S / 10;
    return this.#patience.waitS(block === this.#layout.firstBlock);
  }

  /** Go on without a part; what still comes of it is dropped. */
  #giveUp(block, source) {
    const key = partKey(block, source);
    this.#givenUp.add(key);
    this.#done.add(key);
    this.#late.add(source);
    this.#parts.delete(key);
    return source;
  }

  #overdue(what, missing, waitS) {
    const peers = missing.map((source) => this.#peers[source].slice(0, 8)).join(", ");
    return new DeadlineError(
      `no ${what} came from ${peers} within ${Number(waitS.toPrecision(3))} s; that peer hangs or its link is stuck: ask again, or with fewer peers (--max-peers)`,
    );
  }

  #queue(block) {
    if (!this.#ready.has(block)) this.#ready.set(block, []);
    return this.#ready.get(block);
  }

  #woken(ms) {
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      this.#waiting = () => {
        clearTimeout(timer);
        done();
      };
    });
  }

  #wake() {
    this.#waiting?.();
    this.#waiting = null;
  }

  #link(shard) {
    const link = this.#links.get(this.#peers[shard]);
    if (!link.isOpen) throw new PeerLostError(`the link to peer ${this.#peers[shard].slice(0, 8)} is gone`);
    return link;
  }

  #send(link, message) {
    this.sentBytes[link.peer] = (this.sentBytes[link.peer] ?? 0) + link.send(message);
  }
}

const upTo = (count) => Array.from({ length: count }, (_, i) => i);
const partKey = (block, source) => block * limits.PEERS_PER_PLAN + source;
