// The block pipeline of one shard: encode and send first, then compute. As astra_mesh/engine/pipeline.py; and what needs
// no codes of codes that remember is computed while the others' are on their way.

import { CancelledError } from "./errors.js";

/** The marks of Progress messages, in the order of astra_mesh.engine.timeline.Mark. */
const MARKS = ["encoded", "sent", "local", "arrived", "attended", "done"];

/** When each step happened: for a person who looks on. */
export class Timeline {
  moments = []; // [microseconds since the start, number of the mark, block, shard of a part + 1 or 0]
  #began = performance.now();

  note(mark, block, part = -1) {
    this.moments.push([Math.round(1000 * (performance.now() - this.#began)), MARKS.indexOf(mark), block, part + 1]);
  }
}

/** One thing at a time is computed on this device: others wait for their turn. */
export class Turns {
  changes = 0; // beginnings and ends of turns: whoever measures sees if a request computed meanwhile
  #last = Promise.resolve();

  run(work) {
    const mine = this.#last.then(() => {
      this.changes++;
      return work();
    });
    this.#last = mine.catch(() => {}).finally(() => this.changes++);
    return mine;
  }
}

/** Drives a run (engine.js) through all blocks over an Exchange. */
export class Pipeline {
  spent = { compute_s: 0, encode_s: 0, decode_s: 0, wait_s: 0 };
  #run;
  #layout;
  #shard;
  #exchange;
  #turns;
  #signal;
  #onBlock;
  #began = performance.now();
  #workedS = 0; // when busyS was asked for last

  /**
   * @param run       of engine.js
   * @param turns     Turns, shared by all requests
   * @param signal    AbortSignal: ends it with a CancelledError at the next step
   * @param onBlock   told (block) as each one begins
   */
  constructor({ run, layout, shard, exchange, turns, signal, onBlock = () => {} }) {
    this.#run = run;
    this.#layout = layout;
    this.#shard = shard;
    this.#exchange = exchange;
    this.#turns = turns;
    this.#signal = signal;
    this.#onBlock = onBlock;
  }

  /** Seconds since the start. */
  get totalS() {
    return seconds(this.#began);
  }

  /** All blocks of the own shard, and its share of the pooled output to the answering peer. */
  async all() {
    const blocks = this.#layout.blocks;
    for (let block = 0; block < blocks; block++) await this.#block(block);
    await this.#compute([this.#finish(blocks - 1)]);
    if (!this.#layout.wanted(this.#shard).length) return;
    const { vector, weight } = await this.#turns.run(() => this.#step(() => this.#run.pooled()));
    this.#exchange.sendPooled(vector, weight);
  }

  /** One block up to its last attention part; it is finished together with the next one. */
  async #block(block) {
    this.#onBlock(block);
    const run = this.#run;
    let steps = block ? [this.#finish(block - 1)] : [];
    if (this.#layout.receivers(this.#shard, block).length) {
      let codes = null;
      const stages = this.#exchange.stages(block, this.#busyS());
      steps.push(["encode_s", async () => (codes = await run.encode(block, stages)), "encoded", block]);
      await this.#compute(steps);
      await this.#exchange.sendCodes(block, codes);
      this.#exchange.timeline?.note("sent", block);
      steps = [];
    }
    steps.push(["compute_s", () => run.attendLocal(block), "local", block]);
    const coded = block >= this.#layout.firstBlock;
    let missing = coded ? this.#layout.sources(this.#shard, block).length : 0;
    if (missing) steps.push(["decode_s", () => run.foreseeRemote(block)]);
    if (block + 1 < this.#layout.blocks && this.#layout.receivers(this.#shard, block + 1).length) steps.push(["encode_s", () => run.foreseeOwn(block + 1)]);
    for (;;) {
      let ready = missing ? this.#exchange.readyCodes(block) : [];
      if (missing && !steps.length && !ready.length) ready = [await this.#receive(block)];
      for (const [source, codes] of ready) steps.push(["decode_s", () => run.attendRemote(block, source, codes), "attended", block, source]);
      await this.#compute(steps);
      missing -= ready.length;
      steps = [];
      if (!missing) return;
    }
  }

  /** Seconds of work since the last call. */
  #busyS() {
    const before = this.#workedS;
    this.#workedS = this.spent.compute_s + this.spent.encode_s + this.spent.decode_s;
    return this.#workedS - before;
  }

  #finish(block) {
    return ["compute_s", () => this.#run.finish(block), "done", block];
  }

  async #receive(block) {
    const began = performance.now();
    const part = await this.#exchange.receiveCodes(block);
    this.spent.wait_s += seconds(began);
    return part;
  }

  async #compute(steps) {
    await this.#turns.run(async () => {
      for (const [kind, work, mark, block, part] of steps) {
        const began = performance.now();
        await this.#step(work);
        this.spent[kind] += seconds(began);
        if (mark) this.#exchange.timeline?.note(mark, block, part);
      }
    });
    await breath();
    this.#check();
  }

  #step(work) {
    this.#check();
    return work();
  }

  #check() {
    if (this.#signal.aborted) throw new CancelledError();
  }
}

const seconds = (began) => (performance.now() - began) / 1000;

/** Let what came in be read: arithmetic alone would let no message through. */
function breath() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      done();
    };
    port2.postMessage(null);
  });
}
