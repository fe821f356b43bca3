// Rates that follow the links while a request runs: fewer stages where codes would come too late. As
// astra_mesh/peer/rates.py, which says how.

import { RATE_CHANGES, RATE_LEAST_S } from "./limits.js";

const ROOM = 0.6; // of the time that may be used before more is sent again ...
const CALM_BLOCKS = 2; // ... in so many blocks, twice as many after each time it was too much
const RECOVERY = 1.15; // per block without a backlog: how much more a link is thought to carry

/** The stages of one directed link, from block to block. */
export class LinkRate {
  used = []; // [block, stages from it on]
  #sizes;
  #bps = Infinity; // that the link was seen to carry at most
  #calm = 0;
  #patience = CALM_BLOCKS;
  #rose = false; // the last change was upwards

  /** sizes: Map of number of stages to bytes of one block's codes, the plan's the largest. */
  constructor(sizes) {
    this.#sizes = sizes;
  }

  /** Of the last block. */
  get stages() {
    return this.used.at(-1)?.[1] ?? Math.max(...this.#sizes.keys());
  }

  /** The stages of a block's codes, which have so long to arrive; backlog: of Meter. */
  choose(block, allowedS, backlog) {
    if (backlog.bps < this.#bps) this.#bps = backlog.bps;
    else if (!backlog.size) this.#bps *= RECOVERY;
    const bps = Math.min(this.#bps, backlog.measuredBps || Infinity);
    const best = this.#within((allowedS * bps) / 8 - backlog.size);
    const roomy = this.#within((ROOM * allowedS * bps) / 8 - backlog.size);
    this.#calm = roomy > this.stages ? this.#calm + 1 : 0;
    if (best < this.stages) {
      if (this.#rose) this.#patience *= 2;
      this.#use(block, best);
    } else if (this.#calm >= this.#patience && this.used.length < RATE_CHANGES) {
      this.#use(block, Math.min(...[...this.#sizes.keys()].filter((one) => one > this.stages)));
    }
    return this.stages;
  }

  /** The most stages in so many bytes; the fewest there are if none fit. */
  #within(size) {
    const fitting = [...this.#sizes].filter(([, bytes]) => bytes <= size).map(([stages]) => stages);
    return fitting.length ? Math.max(...fitting) : Math.min(...this.#sizes.keys());
  }

  #use(block, stages) {
    this.#calm = 0;
    this.#rose = stages > this.stages;
    this.used.push([block, stages]);
  }
}

/** When codes have to be there, by the plan; blockS: what it is predicted to take for one block. */
export class Pacing {
  #blockS;
  #began = null; // the first block that was sent, and when

  constructor(blockS) {
    this.#blockS = blockS;
  }

  /** Seconds until a block's codes are needed; busyS: work for the last block here. */
  allowedS(block, now, busyS) {
    this.#began ??= { block, now };
    const due = this.#began.now + (block - this.#began.block + 1) * this.#blockS;
    return Math.max(due - now, this.#blockS, busyS, RATE_LEAST_S);
  }
}
