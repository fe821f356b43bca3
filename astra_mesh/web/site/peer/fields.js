// What a field of a message can be: how it is read, written and checked (astra_mesh/wire/validate.py).
// A type has read(reader, depth), write(writer, value) and check(value, where).

import { ProtocolError } from "./errors.js";
import { KIND } from "./msgpack.js";
import * as limits from "./limits.js";

const NOT_PRINTABLE = /[\p{C}\p{Z}]/u; // but the space
const HEX_ID = /^[0-9a-f]{64}$/;

const ok = () => {};
const simple = (name) => ({ read: (reader) => reader[name](), write: (writer, value) => writer[name](value), check: ok });

export const bool = simple("bool");
export const int = {
  ...simple("int"),
  check(value, where) {
    const whole = typeof value === "bigint" || Number.isSafeInteger(value);
    if (!whole || value < 0 || value >= 2n ** 63n) throw out(where);
  },
};
/** A request id: always a BigInt. */
export const request = { ...int, read: (reader) => BigInt(reader.int()) };
export const float = {
  ...simple("float"),
  check(value, where) {
    if (!(value >= 0 && value < Infinity)) throw out(where);
  },
};
export const text = simple("text");
export const bytes = simple("bytes");

/** A type whose values also pass a test. */
export const such = (type, test) => ({
  ...type,
  check(value, where) {
    type.check(value, where);
    if (!test(value)) throw out(where);
  },
});

export const maybe = (type) => ({
  read(reader, depth) {
    return reader.kind() === KIND.nil ? reader.nil() : type.read(reader, depth);
  },
  write: (writer, value) => (value === null ? writer.nil() : type.write(writer, value)),
  check: (value, where) => value === null || type.check(value, where),
});

export const oneOf = (...values) => such(text, (value) => values.includes(value));

export const list = (type, most = Infinity) => ({
  read(reader, depth) {
    const found = [];
    for (let left = reader.array(depth); left > 0; left--) found.push(type.read(reader, depth - 1));
    return found;
  },
  write(writer, value) {
    writer.array(value.length);
    for (const one of value) type.write(writer, one);
  },
  check(value, where) {
    if (value.length > most) throw out(where);
    for (const one of value) type.check(one, where);
  },
});

/** A map from texts, as an object without a prototype. */
export const table = (type, keys, most) => ({
  read(reader, depth) {
    const found = Object.create(null);
    const known = new Set();
    for (let left = reader.map(depth); left > 0; left--) {
      const key = reader.key(known);
      known.add(key);
      found[key] = type.read(reader, depth - 1);
    }
    return found;
  },
  write(writer, value) {
    const entries = Object.entries(value);
    writer.map(entries.length);
    for (const [key, one] of entries) {
      writer.text(key);
      type.write(writer, one);
    }
  },
  check(value, where) {
    const entries = Object.entries(value);
    if (entries.length > most) throw out(where);
    for (const [key, one] of entries) {
      if (!keys(key)) throw out(where);
      type.check(one, where);
    }
  },
});

/**
 * A struct, as a map or (positional) as an array.
 *
 * @param name    of it, for errors
 * @param fields  name -> [type], or [type, default]
 * @param fits    a test of all fields together
 */
export function struct(name, fields, { positional = false, fits = () => true } = {}) {
  const entries = Object.entries(fields);

  function readMap(reader, depth) {
    const found = {};
    const known = new Set();
    for (let left = reader.map(depth); left > 0; left--) {
      const key = reader.key(known);
      known.add(key);
      if (Object.hasOwn(fields, key)) found[key] = fields[key][0].read(reader, depth - 1);
      else reader.skip(depth - 1);
    }
    return complete(found);
  }

  function readArray(reader, depth) {
    const found = {};
    const count = reader.array(depth);
    for (let i = 0; i < count; i++) {
      if (i < entries.length) found[entries[i][0]] = entries[i][1][0].read(reader, depth - 1);
      else reader.skip(depth - 1);
    }
    return complete(found);
  }

  function write(writer, value) {
    if (positional) writer.array(entries.length);
    else writer.map(entries.length);
    for (const [key, [type]] of entries) {
      if (!positional) writer.text(key);
      type.write(writer, value[key]);
    }
  }

  function check(value) {
    for (const [key, [type]] of entries) type.check(value[key], `${name}.${key}`);
    if (!fits(value)) throw new ProtocolError(`the fields of ${name} do not fit together`);
  }

  /** With the defaults of what was left out, the fields in the order of the table. */
  function complete(found) {
    const whole = {};
    for (const [key, [, ...fallback]] of entries) {
      if (Object.hasOwn(found, key)) whole[key] = found[key];
      else if (fallback.length) whole[key] = copyOf(fallback[0]);
      else throw new ProtocolError(`${name} without ${key}`);
    }
    return whole;
  }

  return { name, fields, positional, read: positional ? readArray : readMap, write, check, complete };
}

function copyOf(value) {
  if (Array.isArray(value)) return [...value];
  if (value instanceof Uint8Array) return value.slice();
  return value !== null && typeof value === "object" ? { ...value } : value;
}

const out = (where) => new ProtocolError(`${where} is out of range`);

// --- tests of values ------------------------------------------------------------------------------

export const isId = (value) => HEX_ID.test(value);
export const isIdOrEmpty = (value) => value === "" || isId(value);
export const between = (low, high) => (value) => value >= low && value <= high;
export const below = (limit) => between(0, limit - 1);
export const size = (most) => (value) => value.length <= most;

/** Characters as Python counts them. */
const chars = (value) => {
  let count = 0;
  for (const _ of value) count++;
  return count;
};

const printable = (value) => !NOT_PRINTABLE.test(value.replaceAll(" ", ""));
export const upTo = (most) => (value) => value.length <= most || (value.length <= 2 * most && chars(value) <= most);
export const line = (most, { empty = false } = {}) => (value) => (empty || value !== "") && upTo(most)(value) && printable(value);

/** Text made safe for logs and pages: one printable line, not too long; a cut is shown by "...". */
export function sanitise(value, limit = limits.REASON_CHARS) {
  const all = [...value];
  let clean = all.slice(0, limit + 1).map((c) => (printable(c) ? c : " ")).join("").trim();
  if (all.length > limit) clean = `${[...clean].slice(0, Math.max(0, limit - 3)).join("")}...`;
  return [...clean].slice(0, limit).join("");
}
