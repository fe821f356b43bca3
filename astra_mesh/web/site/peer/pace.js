// How fast this tab is now, beside the figures that it measured of a model: it looks by itself and tells the others. As
// astra_mesh/peer/pace.py, which says why.

import { CONTRADICTED, PULSE_AGAIN_S, PULSE_S, PULSE_SHARE } from "./limits.js";

const BOUND = 64; // times slower, or faster; what says more is an accident
const LEARNING = 0.5; // weight of the last share, in logarithms (astra_mesh/plan/experience.py)
const LEAST_S = 0.002; // that a share takes, and should take: less says nothing
const KEYS_VALUES = 0.3; // of the time of a token: its keys and values (astra_mesh/plan/cost.py)

/** A factor on the seconds of all work that can be. */
export const bounded = (pace) => Math.min(Math.max(pace, 1 / BOUND), BOUND);

/** Whether others should hear of it; measurements of a busy device differ by less. */
export const differ = (pace, other) => Math.max(pace, other) > CONTRADICTED * Math.min(pace, other);

/** Figures by name, numbers or lists of them, of a device that takes `pace` times as long for everything. */
export function slowed(figures, pace) {
  const times = (seconds) => (Array.isArray(seconds) ? seconds.map(times) : pace * seconds);
  return figures && Object.fromEntries(Object.entries(figures).map(([name, seconds]) => [name, times(seconds)]));
}

/** The pace that shares showed, after one more that should take `saidS` and took `tookS`. */
export function learned(pace, saidS, tookS) {
  if (!(Math.min(pace * saidS, tookS) >= LEAST_S)) return pace;
  return bounded(pace * (tookS / (pace * saidS)) ** LEARNING);
}

/** Keys that each of so many tokens of a causal model is multiplied with on average, as planners count them. */
export const causalKeys = (tokens) => Math.min(tokens, tokens / 2 + 256);

/** Seconds that a shard computes, its codes aside, by what the device measured: as planners predict them. */
export function shareS(timing, layout, shard) {
  let seconds = 0;
  for (let block = 0; block < layout.blocks; block++) {
    const rows = layout.localRows(shard);
    const outputs = block === layout.blocks - 1 ? layout.wanted(shard).length : rows;
    if (!outputs) continue;
    const keys = layout.causal && outputs === rows ? causalKeys(rows) : rows;
    seconds += timing.fixed_s + timing.per_token_s * Math.max(outputs, KEYS_VALUES * rows) + timing.per_pair_s * outputs * keys;
    if (block >= layout.firstBlock) continue;
    for (const source of layout.sources(shard, block)) {
      seconds += layout.sent(source).length * (KEYS_VALUES * timing.per_token_s + timing.per_pair_s * outputs);
    }
  }
  return seconds;
}

/** Looks every PULSE_S, with a hundredth of the device's cores' time at most. */
export class Pulse {
  #timer = null;
  #feel;
  #wanted;
  #threads;

  /**
   * @param feel     looks: () => Promise of whether it is certain of what it found
   * @param wanted   () => whether anybody wants to know, and a person sees the page
   * @param threads  that a look keeps busy
   */
  constructor({ feel, wanted, threads }) {
    this.#feel = feel;
    this.#wanted = wanted;
    this.#threads = threads;
  }

  start() {
    this.#wait(PULSE_S);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  #wait(seconds) {
    this.#timer = setTimeout(() => this.#look(), 1000 * seconds);
  }

  async #look() {
    const timer = this.#timer;
    let waitS = PULSE_S;
    if (this.#wanted()) {
      const began = performance.now();
      const certain = await this.#feel();
      const costS = (this.#threads * (performance.now() - began)) / 1000;
      waitS = Math.max(certain ? PULSE_S : PULSE_AGAIN_S, costS / PULSE_SHARE);
    }
    if (this.#timer === timer) this.#wait(waitS); // it was not stopped meanwhile
  }
}
