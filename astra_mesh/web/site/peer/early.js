// Codes that overtook their proposal, which comes over another link: few, for a short time. As
// astra_mesh/peer/early.py.

import { ProtocolError } from "./errors.js";
import { cost } from "./flow.js";
import { EARLY_CODES_BYTES, EARLY_CODES_S } from "./limits.js";

export class EarlyCodes {
  #held = new Map(); // request -> { timer, items: [link, message] }
  #sizes = new Map(); // link -> cost of what it brought

  /** Hold a message; ProtocolError if its sender makes us hold too much. */
  put(link, message) {
    const size = (this.#sizes.get(link) ?? 0) + cost(message);
    if (size > EARLY_CODES_BYTES) throw new ProtocolError("too many codes for requests that are not known here");
    this.#sizes.set(link, size);
    const { request } = message;
    if (!this.#held.has(request)) {
      const timer = setTimeout(() => this.drop(request), 1000 * EARLY_CODES_S);
      this.#held.set(request, { timer, items: [] });
    }
    this.#held.get(request).items.push([link, message]);
  }

  /** What came early for a request; the caller gives back the credit. */
  take(request) {
    const held = this.#held.get(request);
    if (!held) return [];
    clearTimeout(held.timer);
    this.#held.delete(request);
    for (const [link, message] of held.items) {
      const left = this.#sizes.get(link) - cost(message);
      if (left > 0) this.#sizes.set(link, left);
      else this.#sizes.delete(link);
    }
    return held.items;
  }

  /** Forget a request, and give back the credit. */
  drop(request) {
    for (const [link, message] of this.take(request)) link.consumed(message);
  }

  /** Forget what came over a link that is over. */
  dropLink(link) {
    if (!this.#sizes.delete(link)) return;
    for (const [request, held] of this.#held) {
      held.items = held.items.filter(([one]) => one !== link);
      if (held.items.length) continue;
      clearTimeout(held.timer);
      this.#held.delete(request);
    }
  }
}
