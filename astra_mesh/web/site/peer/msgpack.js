// MessagePack as the protocol uses it: a writer that knows what it writes, and a reader that allocates
// nothing before the limits are checked. All failures of the reader are ProtocolErrors.

import { ProtocolError } from "./errors.js";
import * as limits from "./limits.js";

const INT_LIMIT = 2n ** 63n;
const TEXT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const UTF8 = new TextEncoder();

export class Writer {
  #bytes = new Uint8Array(256);
  #view = new DataView(this.#bytes.buffer);
  #at = 0;

  /** What was written. */
  done() {
    return this.#bytes.slice(0, this.#at);
  }

  nil() {
    this.#byte(0xc0);
  }

  bool(value) {
    this.#byte(value ? 0xc3 : 0xc2);
  }

  /** An integer from 0 to 2^63 - 1, number or BigInt. */
  int(value) {
    if (value < 0x80) this.#byte(Number(value));
    else if (value < 0x100) this.#head(0xcc, 1, Number(value));
    else if (value < 0x10000) this.#head(0xcd, 2, Number(value));
    else if (value < 0x1_0000_0000) this.#head(0xce, 4, Number(value));
    else {
      this.#byte(0xcf);
      this.#room(8);
      this.#view.setBigUint64(this.#at, BigInt(value));
      this.#at += 8;
    }
  }

  float(value) {
    this.#byte(0xcb);
    this.#room(8);
    this.#view.setFloat64(this.#at, value);
    this.#at += 8;
  }

  text(value) {
    const data = UTF8.encode(value);
    if (data.length < 32) this.#byte(0xa0 | data.length);
    else this.#sized(0xd9, data.length);
    this.#raw(data);
  }

  bytes(data) {
    this.#sized(0xc4, data.length);
    this.#raw(data);
  }

  array(count) {
    if (count < 16) this.#byte(0x90 | count);
    else if (count < 0x10000) this.#head(0xdc, 2, count);
    else this.#head(0xdd, 4, count);
  }

  map(count) {
    if (count < 16) this.#byte(0x80 | count);
    else if (count < 0x10000) this.#head(0xde, 2, count);
    else this.#head(0xdf, 4, count);
  }

  #sized(first, size) {
    if (size < 0x100) this.#head(first, 1, size);
    else if (size < 0x10000) this.#head(first + 1, 2, size);
    else this.#head(first + 2, 4, size);
  }

  #head(byte, width, value) {
    this.#byte(byte);
    this.#room(width);
    if (width === 1) this.#view.setUint8(this.#at, value);
    else if (width === 2) this.#view.setUint16(this.#at, value);
    else this.#view.setUint32(this.#at, value);
    this.#at += width;
  }

  #byte(value) {
    this.#room(1);
    this.#bytes[this.#at++] = value;
  }

  #raw(data) {
    this.#room(data.length);
    this.#bytes.set(data, this.#at);
    this.#at += data.length;
  }

  #room(size) {
    if (this.#at + size <= this.#bytes.length) return;
    const larger = new Uint8Array(2 * (this.#at + size));
    larger.set(this.#bytes);
    this.#bytes = larger;
    this.#view = new DataView(larger.buffer);
  }
}

/** Kinds that a value can have. */
export const KIND = { nil: "nil", bool: "bool", int: "int", float: "float", text: "text", bytes: "bytes", array: "array", map: "map" };

/** Reads one frame from its body on, value by value, as whoever calls it expects them. */
export class Reader {
  #bytes;
  #view;
  #at = 2;
  #items = limits.FRAME_ITEMS - 3; // the frame's own array has two
  #arrayItems;

  constructor(bytes, arrayItems) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#arrayItems = arrayItems;
  }

  /** Nothing may follow. */
  end() {
    if (this.#at !== this.#bytes.length) throw new ProtocolError("bytes behind the message");
  }

  /** The kind of the next value, which is not read yet. */
  kind() {
    const byte = this.#peek();
    if (byte < 0x80 || byte >= 0xe0 || (byte >= 0xcc && byte <= 0xd3)) return KIND.int;
    if (byte < 0x90 || byte === 0xde || byte === 0xdf) return KIND.map;
    if (byte < 0xa0 || byte === 0xdc || byte === 0xdd) return KIND.array;
    if (byte < 0xc0 || (byte >= 0xd9 && byte <= 0xdb)) return KIND.text;
    if (byte === 0xc0) return KIND.nil;
    if (byte === 0xc2 || byte === 0xc3) return KIND.bool;
    if (byte >= 0xc4 && byte <= 0xc6) return KIND.bytes;
    if (byte === 0xca || byte === 0xcb) return KIND.float;
    throw new ProtocolError("a value of a type that the protocol does not use");
  }

  nil() {
    this.#expect(KIND.nil);
    this.#at++;
    return null;
  }

  bool() {
    this.#expect(KIND.bool);
    return this.#bytes[this.#at++] === 0xc3;
  }

  /** An integer from 0 to 2^63 - 1: a number up to 2^53, a BigInt above. */
  int() {
    this.#expect(KIND.int);
    const byte = this.#bytes[this.#at++];
    if (byte < 0x80) return byte;
    if (byte >= 0xe0) throw negative();
    const width = 1 << (byte - (byte < 0xd0 ? 0xcc : 0xd0));
    const at = this.#take(width);
    if (width === 8) {
      const value = byte === 0xcf ? this.#view.getBigUint64(at) : this.#view.getBigInt64(at);
      if (value < 0n || value >= INT_LIMIT) throw negative();
      return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
    }
    const read = { 1: ["getUint8", "getInt8"], 2: ["getUint16", "getInt16"], 4: ["getUint32", "getInt32"] };
    const value = this.#view[read[width][byte < 0xd0 ? 0 : 1]](at);
    if (value < 0) throw negative();
    return value;
  }

  /** A finite number from 0; integers are numbers too. */
  float() {
    if (this.kind() === KIND.int) return Number(this.int());
    this.#expect(KIND.float);
    const byte = this.#bytes[this.#at++];
    const value = byte === 0xca ? this.#view.getFloat32(this.#take(4)) : this.#view.getFloat64(this.#take(8));
    if (!(value >= 0 && value < Infinity)) throw new ProtocolError("a number is negative or not finite");
    return value;
  }

  text() {
    this.#expect(KIND.text);
    const byte = this.#bytes[this.#at++];
    const size = byte < 0xc0 ? byte & 0x1f : this.#size(byte - 0xd9);
    if (size > limits.TEXT_BYTES) throw new ProtocolError("a text is too long");
    const at = this.#take(size);
    try {
      return TEXT.decode(this.#bytes.subarray(at, at + size));
    } catch {
      throw new ProtocolError("a text is not valid UTF-8");
    }
  }

  /** A copy of the bytes. */
  bytes() {
    this.#expect(KIND.bytes);
    const size = this.#size(this.#bytes[this.#at++] - 0xc4);
    const at = this.#take(size);
    return this.#bytes.slice(at, at + size);
  }

  /** The number of items of an array at `depth` levels above the deepest. */
  array(depth) {
    this.#expect(KIND.array);
    const byte = this.#bytes[this.#at++];
    const count = byte < 0xa0 ? byte & 0x0f : this.#size(byte - 0xdc + 1);
    if (count > this.#arrayItems) throw new ProtocolError("an array is too long");
    this.#count(count, depth, 1);
    return count;
  }

  /** The number of pairs of a map. */
  map(depth) {
    this.#expect(KIND.map);
    const byte = this.#bytes[this.#at++];
    const count = byte < 0x90 ? byte & 0x0f : this.#size(byte - 0xde + 1);
    if (count > limits.MAP_ITEMS) throw new ProtocolError("a map has too many items");
    this.#count(count, depth, 2);
    return count;
  }

  /** Go past a value that nobody wants; it keeps the rules all the same. */
  skip(depth) {
    const kind = this.kind();
    if (kind === KIND.array) {
      for (let left = this.array(depth); left > 0; left--) this.skip(depth - 1);
    } else if (kind === KIND.map) {
      const keys = new Set();
      for (let left = this.map(depth); left > 0; left--) {
        keys.add(this.key(keys));
        this.skip(depth - 1);
      }
    } else if (kind === KIND.bytes) {
      this.#take(this.#size(this.#bytes[this.#at++] - 0xc4));
    } else {
      this[kind]();
    }
  }

  /** The next key of a map, which is none of `before`. */
  key(before) {
    if (this.kind() !== KIND.text) throw new ProtocolError("a map key is not text");
    const key = this.text();
    if (before.has(key)) throw new ProtocolError("a key occurs twice");
    return key;
  }

  #count(items, depth, least) {
    if (depth <= 0) throw new ProtocolError("nested too deeply");
    this.#items -= items + 1;
    if (this.#items < 0) throw new ProtocolError("too many items");
    if (items * least > this.#bytes.length - this.#at) throw cut();
  }

  /** A length of 1, 2 or 4 bytes. */
  #size(power) {
    const width = 1 << power;
    const at = this.#take(width);
    if (width === 1) return this.#view.getUint8(at);
    return width === 2 ? this.#view.getUint16(at) : this.#view.getUint32(at);
  }

  #peek() {
    if (this.#at >= this.#bytes.length) throw cut();
    return this.#bytes[this.#at];
  }

  #take(size) {
    const at = this.#at;
    if (size > this.#bytes.length - at) throw cut();
    this.#at += size;
    return at;
  }

  #expect(kind) {
    const found = this.kind();
    if (found !== kind) throw new ProtocolError(`${found} where ${kind} is due`);
  }
}

const cut = () => new ProtocolError("the message is cut off");
const negative = () => new ProtocolError("an integer is negative or too large");
