// Flow control of one link, without I/O: what may be written now, what the other end may send; the same
// rules as astra_mesh/mesh/flow.py.

import { ProtocolError } from "./errors.js";

const OVERHEAD_BYTES = 64; // charged for each data message, so that empty ones are not free

/** Keep their order within a request; Done needs no credit, but waits behind the data. */
export const ORDERED = new Set(["Codes", "Pooled", "Token", "Done"]);

/** Credit that a message takes, bytes; both ends compute the same. 0 for control. */
export function cost(message) {
  if (message.type === "Codes") return OVERHEAD_BYTES + message.data.length;
  if (message.type === "Pooled") return OVERHEAD_BYTES + message.vector.length;
  if (message.type === "Token") return OVERHEAD_BYTES + [...message.text].length;
  return 0;
}

/** Frames that wait to be written. */
export class Outbox {
  credit = 0; // never negative
  queuedBytes = 0;
  #control = [];
  #data = new Map(); // request -> items, in the order of their turns

  /** No control frame waits (data may, for credit). */
  get controlEmpty() {
    return this.#control.length === 0;
  }

  putControl(frame) {
    this.#control.push(frame);
    this.queuedBytes += frame.length;
  }

  /** Queue a frame of ORDERED behind those of its request. */
  putData(request, frame, message) {
    if (!this.#data.has(request)) this.#data.set(request, []);
    this.#data.get(request).push({ frame, cost: cost(message) });
    this.queuedBytes += frame.length;
  }

  /** Forget the frames of a request that were not taken yet. */
  drop(request) {
    for (const item of this.#data.get(request) ?? []) this.queuedBytes -= item.frame.length;
    this.#data.delete(request);
  }

  dropData() {
    for (const request of [...this.#data.keys()]) this.drop(request);
  }

  /** Frames to write now: at least one if any may go, then until `limit` bytes. */
  take(limit) {
    const frames = [];
    let size = 0;
    while (size < limit) {
      const frame = this.#control.shift() ?? this.#takeData();
      if (!frame) break;
      frames.push(frame);
      size += frame.length;
    }
    this.queuedBytes -= size;
    return frames;
  }

  /** The next frame of the request whose turn it is, which waits until there is credit. */
  #takeData() {
    const turn = this.#data.entries().next();
    if (turn.done) return null;
    const [request, items] = turn.value;
    if (items[0].cost > this.credit) return null;
    const item = items.shift();
    this.credit -= item.cost;
    this.#data.delete(request);
    if (items.length) this.#data.set(request, items);
    return item.frame;
  }
}

/** The receiving side: how much data the other end may send before more is consumed. */
export class Window {
  #size;
  #open = 0; // received, and not yet given back as credit
  #consumed = 0; // consumed, and not yet given back

  constructor(size) {
    this.#size = size;
  }

  /** Bytes that were received and not consumed. */
  get unconsumed() {
    return this.#open - this.#consumed;
  }

  received(size) {
    this.#open += size;
    if (this.#open > this.#size) throw new ProtocolError("more data than there was credit for");
  }

  /** Count consumed data; the result is credit to give back now, or 0. */
  consumed(size) {
    if (size > this.unconsumed) throw new RangeError(`${size} bytes consumed of ${this.unconsumed} received`);
    this.#consumed += size;
    if (this.#consumed * 2 < this.#size) return 0;
    const lump = this.#consumed;
    this.#consumed = 0;
    this.#open -= lump;
    return lump;
  }
}

