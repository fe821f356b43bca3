// The codecs without a codebook: the normalized block input itself, in fp32 or fp16 (astra_mesh/quant/codecs.py).

import { Matrix } from "./runtime.js";

const BYTES = { fp32: 4, fp16: 2 };

const single = new Float32Array(1);
const word = new Uint32Array(single.buffer);

/** The bits of a float32 number as float16, rounded to nearest even. */
export function toHalf(value) {
  single[0] = value;
  const sign = (word[0] >>> 16) & 0x8000;
  const whole = word[0] & 0x7fffffff;
  if (whole >= 0x7f800000) return sign | (whole > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (whole >= 0x477ff000) return sign | 0x7c00; // rounds beyond the largest
  if (whole < 0x38800000) {
    // below the least normal number: a multiple of 2 ** -24
    single[0] = Math.abs(value) * 2 ** 24;
    const floor = Math.floor(single[0]);
    const rest = single[0] - floor;
    return sign | (floor + (rest > 0.5 || (rest === 0.5 && floor & 1) ? 1 : 0));
  }
  const odd = (whole >>> 13) & 1;
  return sign | ((whole - 0x38000000 + 0xfff + odd) >>> 13);
}

/** The number that the bits of a float16 say. */
export function fromHalf(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >>> 10) & 31;
  const part = half & 1023;
  if (exponent === 31) return part ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + part / 1024) : sign * part * 2 ** -24;
}

/** One stage, remembers nothing but the last block's input. */
export class PlainCodec {
  able = [1];
  firstBlock = 1;

  constructor(name, model) {
    this.name = name;
    this.model = model;
    this.size = model.spec.hidden_size;
    this.row = BYTES[name] * this.size;
  }

  async prepare() {}

  async prepareBlock() {}

  pastColumns() {
    return 0;
  }

  async release() {}

  rate() {
    return 8 * this.row;
  }

  sender() {
    return this;
  }

  receiver(stages, known) {
    return new PlainReceiver(this, known);
  }

  /** See VectorSender. */
  async encode(block, x, n) {
    return [this.name === "fp32" ? Float32Array.from(n.data) : Uint16Array.from(n.data, toHalf)];
  }

  /** See VectorCodec. */
  async encodeOne(block, stages, x, n) {
    return { codes: await this.encode(block, x, n) };
  }

  /** See VectorCodec. */
  async decodeOne(block, stages, codes, past, start) {
    return { rows: await this.model.keyValue(block, this.rebuild(codes), start) };
  }

  rebuild([codes]) {
    return new Matrix(this.name === "fp32" ? codes : Float32Array.from(codes, fromHalf), this.size);
  }

  /** Little-endian. */
  pack(stage, codes) {
    const found = new Uint8Array(codes.length * codes.BYTES_PER_ELEMENT);
    const view = new DataView(found.buffer);
    const set = this.name === "fp32" ? "setFloat32" : "setUint16";
    codes.forEach((code, i) => view[set](i * codes.BYTES_PER_ELEMENT, code, true));
    return found;
  }

  packedBytes(stage, tokens) {
    return tokens * this.row;
  }

  unpack(stage, bytes, tokens) {
    if (bytes.length !== tokens * this.row) {
      throw new Error(`${bytes.length} bytes of ${this.name} for ${tokens} tokens, not ${tokens * this.row}`);
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const whole = this.name === "fp32";
    const codes = new (whole ? Float32Array : Uint16Array)(tokens * this.size);
    for (let i = 0; i < codes.length; i++) codes[i] = whole ? view.getFloat32(4 * i, true) : view.getUint16(2 * i, true);
    const finite = whole ? Number.isFinite : (half) => ((half >>> 10) & 31) !== 31;
    if (!codes.every(finite)) throw new Error(`${this.name} codes with numbers that are not finite`);
    return codes;
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

  async standIn(block, start) {
    return this.#codec.model.keyValue(block, this.#last, start);
  }
}
