// A small assembler of WebAssembly, for kernels.js: instructions are nested lists of bytes, operands first, as the text
// format folds them. Addresses are in bytes.

const I32 = 0x7f;
const F32 = 0x7d;
const V128 = 0x7b;
const KINDS = { i32: I32, f32: F32, v128: V128 };

/** A number in LEB128, unsigned. */
function leb(value) {
  const found = [];
  for (; value > 127; value = Math.floor(value / 128)) found.push((value % 128) | 128);
  return [...found, value];
}

/** The same, signed. */
function signed(value) {
  const found = [];
  for (;;) {
    const byte = value & 127;
    value >>= 7;
    if ((value === 0 && !(byte & 64)) || (value === -1 && byte & 64)) return [...found, byte];
    found.push(byte | 128);
  }
}

const plain = (code) => (...operands) => [operands, code];
const simd = (code) => (...operands) => [operands, 0xfd, leb(code)];
const lane = (code) => (value, at) => [value, 0xfd, leb(code), at];
const memory = (prefix, align) => (address, offset = 0) => [address, prefix, align, leb(offset)];

/** A local variable of a function. */
class Local {
  constructor(index) {
    this.get = [0x20, leb(index)];
    this.index = index;
  }

  set(value) {
    return [value, 0x21, leb(this.index)];
  }

  /** Add so much: a number, or a value. */
  grow(by) {
    return this.set(i32.add(this.get, typeof by === "number" ? i32.of(by) : by));
  }
}

export const i32 = {
  of: (value) => [0x41, signed(value)],
  load: memory(0x28, 2),
  store: (address, value, offset = 0) => [address, value, 0x36, 2, leb(offset)],
  add: plain(0x6a),
  sub: plain(0x6b),
  mul: plain(0x6c),
  and: plain(0x71),
  or: plain(0x72),
  shl: plain(0x74),
  shr: plain(0x76), // unsigned
  lt: plain(0x49), // unsigned
};

export const f32 = {
  load: memory(0x2a, 2),
  store: (address, value, offset = 0) => [address, value, 0x38, 2, leb(offset)],
  add: plain(0x92),
  eq: plain(0x5b),
  gt: plain(0x5e),
};

/** The first value where the condition holds, else the second. */
export const select = plain(0x1b);

export const v128 = {
  load: memory([0xfd, 0x00], 0),
  splat: memory([0xfd, 0x09], 2), // one 32-bit number in all lanes
  load16s: memory([0xfd, 0x03], 0), // four 16-bit whole numbers as 32-bit ones
  store: (address, value, offset = 0) => [address, value, 0xfd, 0x0b, 0, leb(offset)],
  bitselect: simd(0x52), // bits of the first where the third has ones, else of the second
  ints: (...lanes) => [0xfd, 0x0c, [...new Uint8Array(Int32Array.from(lanes).buffer)]],
  floats: (value) => [0xfd, 0x0c, [...new Uint8Array(new Float32Array(4).fill(value).buffer)]],
};

export const f32x4 = {
  add: simd(0xe4),
  sub: simd(0xe5),
  mul: simd(0xe6),
  max: simd(0xeb), // the second where it is larger, else the first
  gt: simd(0x44),
  lane: lane(0x1f),
  ofInts: simd(0xfa),
  madd: simd(0x105), // relaxed SIMD: a * b + c, rounded once or twice
};

export const i32x4 = { add: simd(0xae), splat: simd(0x11), lane: lane(0x1b) };

/** Fill memory with a byte. */
export const fill = (address, byte, length) => [address, byte, length, 0xfc, 0x0b, 0];
/** Copy memory. */
export const copy = (to, from, length) => [to, from, length, 0xfc, 0x0a, 0, 0];

/** Repeat while the condition holds, at least once. */
export const loop = (body, condition) => [0x03, 0x40, body, condition, 0x0d, 0, 0x0b];
export const when = (condition, body) => [condition, 0x04, 0x40, body, 0x0b];

/**
 * A function without a result.
 *
 * @param parameters  names of whole numbers
 * @param locals      kinds by name; "4 v128" are four of them, a list
 * @param body        (variables by name) => instructions
 */
export function func(parameters, locals, body) {
  const names = {};
  const kinds = [];
  let count = 0;
  for (const name of parameters) names[name] = new Local(count++);
  for (const [name, text] of Object.entries(locals)) {
    const [many, kind] = text.includes(" ") ? text.split(" ") : ["", text];
    const made = Array.from({ length: Number(many) || 1 }, () => new Local(count++));
    for (const _ of made) kinds.push([1, KINDS[kind]]);
    names[name] = many ? made : made[0];
  }
  const code = [leb(kinds.length), kinds, body(names), 0x0b].flat(Infinity);
  return { parameters: parameters.length, code };
}

const vector = (items) => [leb(items.length), items];
const section = (id, content) => {
  const bytes = content.flat(Infinity);
  return [id, leb(bytes.length), bytes];
};

/** A module with these functions, by name, and a memory of one page, "memory". */
export function module(functions) {
  const all = Object.entries(functions);
  const named = (name) => vector([...new TextEncoder().encode(name)]);
  const exported = all.map(([name], i) => [named(name), 0x00, leb(i)]);
  return Uint8Array.from(
    [
      [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
      section(1, vector(all.map(([, { parameters }]) => [0x60, vector(Array(parameters).fill(I32)), 0]))),
      section(3, vector(all.map((_, i) => leb(i)))),
      section(5, vector([[0, 1]])),
      section(7, vector([...exported, [named("memory"), 0x02, 0]])),
      section(10, vector(all.map(([, { code }]) => [leb(code.length), code]))),
    ].flat(Infinity),
  );
}
