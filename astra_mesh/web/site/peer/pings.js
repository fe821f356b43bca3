// Pings of one link, without I/O: when the next is due, and what the pongs say about the delay; the same
// rules as astra_mesh/mesh/pings.py.

import { make } from "./messages.js";

const REMEMBERED = 64; // pings under way; the oldest are forgotten
const MEASURE_EVERY = 5; // heartbeats between pings on a link that is never silent
const LATELY = 8; // round trips
const GAIN = 0.125; // of a longer sample in the smoothed round trip (RFC 6298, section 2)

export class Pings {
  roundTripS = null;
  #heartbeatS;
  #tripsS = [];
  #number = 0;
  #last = 0;
  #sent = new Map(); // number -> { at, probe }

  constructor(heartbeatS) {
    this.#heartbeatS = heartbeatS;
  }

  /** The shortest round trip of the last few, or null. */
  get leastTripS() {
    return this.#tripsS.length ? Math.min(...this.#tripsS) : null;
  }

  /** The link is open: the first ping is due at once. */
  start(now) {
    this.#last = now - MEASURE_EVERY * this.#heartbeatS;
  }

  /** When the next heartbeat is due; `heard` is when the last frame came. */
  due(heard) {
    return Math.min(Math.max(heard, this.#last) + this.#heartbeatS, this.#last + MEASURE_EVERY * this.#heartbeatS);
  }

  /** A ping that only this class waits for. */
  heartbeat(now) {
    this.#last = now;
    return this.#ping(now, 0, false);
  }

  /** A ping that the caller waits for. */
  probe(now, padding) {
    return this.#ping(now, padding, true);
  }

  #ping(at, padding, probe) {
    const number = ++this.#number;
    this.#sent.set(number, { at, probe });
    if (this.#sent.size > REMEMBERED) this.#sent.delete(this.#sent.keys().next().value);
    return make("Ping", { number, padding: new Uint8Array(padding) });
  }

  /** Note a pong; whether it answers a probe. An unknown number is ignored. */
  pong(number, now) {
    const sent = this.#sent.get(number);
    this.#sent.delete(number);
    if (!sent || sent.probe) return Boolean(sent?.probe);
    const sample = Math.max(0, now - sent.at);
    this.#tripsS = [...this.#tripsS, sample].slice(-LATELY);
    const old = this.roundTripS;
    this.roundTripS = old === null || sample < old ? sample : old + GAIN * (sample - old);
    return false;
  }
}
