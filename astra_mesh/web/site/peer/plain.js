// The codecs without a codebook, as astra_mesh/quant/codecs.py: the normalized block input in fp32, fp16, int8 or int4.
//
// Codes are bytes, little-endian as every browser's numbers are: a row of `row` bytes for each token.

import { fromHalf, rounded, toHalf } from "./half.js";
import { Matrix } from "./matrix.js";

export const PLAIN = ["fp32", "fp16", "int8", "int4"];
const GROUP = 32; // values of int4 that share one scale
const LEAST = { int8: 1e-12, int4: 2 ** -24 }; // scales

const bytesOf = (numbers) => new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
/** A copy: what comes over the wire lies anywhere. */
const numbersOf = (kind, bytes) => new kind(bytes.slice().buffer);
const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

function toInt8(row) {
  const scale = Math.fround(Math.max(largest(row), LEAST.int8) / 127);
  const found = new Uint8Array(row.length + 4);
  row.forEach((value, i) => (found[i] = rounded(Math.fround(value / scale))));
  found.set(bytesOf(Float32Array.of(scale)), row.length);
  return found;
}

function fromInt8(bytes, size) {
  const [scale] = numbersOf(Float32Array, bytes.subarray(size));
  return Float32Array.from(new Int8Array(bytes.buffer, bytes.byteOffset, size), (value) => value * scale);
}

/** Nibbles of groups, low nibble first, then one float16 scale for each group. */
function toInt4(row) {
  const groups = Math.ceil(row.length / GROUP);
  const found = new Uint8Array(groups * (GROUP / 2 + 2));
  const scales = new Uint16Array(groups);
  for (let group = 0; group < groups; group++) {
    const part = row.subarray(group * GROUP, (group + 1) * GROUP);
    scales[group] = toHalf(Math.max(fromHalf(toHalf(Math.fround(largest(part) / 7))), LEAST.int4));
    const scale = fromHalf(scales[group]);
    for (let i = 0; i < GROUP; i++) {
      const value = i < part.length ? rounded(Math.fround(part[i] / scale)) : 0;
      found[(group * GROUP + i) >> 1] |= (Math.min(7, Math.max(-7, value)) + 8) << (i % 2 ? 4 : 0);
    }
  }
  found.set(bytesOf(scales), (groups * GROUP) / 2);
  return found;
}

function fromInt4(bytes, size) {
  const groups = bytes.length / (GROUP / 2 + 2);
  const scales = numbersOf(Uint16Array, bytes.subarray((groups * GROUP) / 2));
  return Float32Array.from({ length: size }, (_, i) => {
    const nibble = (bytes[i >> 1] >> (i % 2 ? 4 : 0)) & 15;
    return (nibble - 8) * fromHalf(scales[Math.floor(i / GROUP)]);
  });
}

/** How each codec writes and reads one token. */
const KINDS = {
  fp32: { bytes: (size) => 4 * size, write: (row) => bytesOf(Float32Array.from(row)), read: (bytes) => numbersOf(Float32Array, bytes) },
  fp16: {
    bytes: (size) => 2 * size,
    write: (row) => bytesOf(Uint16Array.from(row, toHalf)),
    read: (bytes) => Float32Array.from(numbersOf(Uint16Array, bytes), fromHalf),
  },
  int8: { bytes: (size) => size + 4, write: toInt8, read: fromInt8 },
  int4: { bytes: (size) => Math.ceil(size / GROUP) * (GROUP / 2 + 2), write: toInt4, read: fromInt4 },
};

/** Why there is no codec, for people. */
export function cannotUse(name, codebook) {
  if (codebook) return `this tab does not have the codebook ${codebook.slice(0, 8)} of the codec ${JSON.stringify(name)}`;
  return `this tab cannot use the codec ${JSON.stringify(name)}: it can use the model's codebooks, ${PLAIN.slice(0, -1).join(", ")} and ${PLAIN.at(-1)}`;
}

/** One stage; remembers nothing but the last block's input. */
export class PlainCodec {
  able = [1];
  firstBlock = 1;
  #kind;

  constructor(name, model) {
    this.name = name;
    this.model = model;
    this.size = model.spec.hidden_size;
    this.#kind = KINDS[name];
    this.row = this.#kind.bytes(this.size);
  }

  async prepare() {}

  async prepareBlock() {}

  lacks() {
    return "";
  }

  async release() {}

  rate() {
    return 8 * this.row;
  }

  pastColumns() {
    return 0;
  }

  sender() {
    return this;
  }

  receiver(stages, known) {
    return new PlainReceiver(this, known);
  }

  fork() {
    return this;
  }

  async foresee() {}

  /** See VectorSender. */
  async encode(block, x, n) {
    const found = new Uint8Array(n.rows * this.row);
    for (let i = 0; i < n.rows; i++) found.set(this.#kind.write(n.slice(i, i + 1).data), i * this.row);
    return [found];
  }

  /** See VectorCodec. */
  async encodeOne(block, stages, x, n) {
    return { codes: await this.encode(block, x, n) };
  }

  /** See VectorCodec. */
  async decodeOne(block, codes, past, start) {
    return { rows: await this.model.keyValue(block, this.rebuild(codes), start) };
  }

  /** n of codes. */
  rebuild([codes]) {
    const tokens = codes.length / this.row;
    const found = new Float32Array(tokens * this.size);
    for (let i = 0; i < tokens; i++) found.set(this.#kind.read(this.#one(codes, i), this.size), i * this.size);
    return new Matrix(found, this.size);
  }

  #one(codes, token) {
    return codes.subarray(token * this.row, (token + 1) * this.row);
  }

  pack(stage, codes) {
    return codes;
  }

  packedBytes(stage, tokens) {
    return tokens * this.row;
  }

  /** The same bytes; an Error where length or numbers cannot be. */
  unpack(stage, bytes, tokens) {
    if (bytes.length !== tokens * this.row) {
      throw new Error(`${bytes.length} bytes of ${this.name} for ${tokens} tokens, not ${tokens * this.row}`);
    }
    if (!this.rebuild([bytes]).data.every(Number.isFinite)) throw new Error(`${this.name} codes with numbers that are not finite`);
    return bytes;
  }
}

class PlainReceiver {
  #codec;
  #last;

  constructor(codec, known) {
    this.#codec = codec;
    this.#last = known;
  }

  async decode(block, codes, start) {
    this.#last = this.#codec.rebuild(codes);
    return this.#codec.model.keyValue(block, this.#last, start);
  }

  async foresee() {}

  async standIn(block, start) {
    return this.#codec.model.keyValue(block, this.#last, start);
  }
}
