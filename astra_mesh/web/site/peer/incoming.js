// Codes as they come in: which stages a message has, and one shard's codes put together. As
// astra_mesh/peer/incoming.py.

import { ProtocolError } from "./errors.js";

/** The codes of one shard for one block, while they come in. */
export class Part {
  #here;
  #tokens;
  #missing;

  constructor(stages, tokens) {
    this.arrays = Array(stages).fill(null);
    this.#here = Array.from({ length: stages }, () => new Uint8Array(tokens));
    this.#tokens = tokens;
    this.#missing = stages * tokens;
  }

  /** Keep rows; true once all are there. ProtocolError if some came before. */
  put(stage, first, count, rows) {
    const here = this.#here[stage].subarray(first, first + count);
    if (here.some((one) => one)) throw new ProtocolError("codes that were sent before");
    here.fill(1);
    this.#missing -= count;
    const columns = rows.length / count;
    this.arrays[stage] ??= new rows.constructor(this.#tokens * columns);
    this.arrays[stage].set(rows, first * columns);
    return this.#missing === 0;
  }
}

/** The stages that a message carries, at least one, and the data of each; ProtocolError if that is no whole number. */
export function split(codec, message, stages) {
  const found = [];
  let at = 0;
  for (let stage = message.stage; stage < stages; stage++) {
    const size = codec.packedBytes(stage, message.count);
    found.push([stage, message.data.subarray(at, at + size)]);
    at += size;
    if (at >= message.data.length) break;
  }
  if (at === message.data.length) return found;
  throw new ProtocolError(
    `${message.data.length} bytes of codes for ${message.count} tokens from stage ${message.stage} of ${stages} on: that is no whole number of stages`,
  );
}

/** How many stages a message has where rates may fall: it has all of its tokens' stages. */
export function stagesIn(codec, message, most) {
  const stages = split(codec, message, most).length;
  if (message.stage || !codec.able.includes(stages)) {
    throw new ProtocolError("codes whose rate may fall: each message has the first stages, as many as the codec can do with");
  }
  return stages;
}
