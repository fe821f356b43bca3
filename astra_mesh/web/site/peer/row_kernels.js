// Rows of numbers in WebAssembly with SIMD: sums of table rows, codewords that are added and subtracted, and what lies in
// another order.

import { copy, f32, f32x4, fill, func, i32, i32x4, loop, v128 } from "./wasm.js";

export const ROWS = 4; // that are computed together: rooms for rows are a multiple of it long
export const COLUMNS = 8; // the same

/**
 * sum(places, count, scale, start, startStride, out, m, n): each row of out (m, n) is one of start's, `startStride` bytes
 * apart, + scale * the sum of `count` rows of 16-bit whole numbers, at the addresses in places (m, count). count is a
 * multiple of ROWS, n of COLUMNS. `exact`: rows are 32-bit numbers, and there is no scale.
 */
export const sum = (exact) =>
  func(
    ["places", "count", "scale", "start", "startStride", "out", "m", "n"],
    { rows: `${ROWS} i32`, todo: "i32", left: "i32", at: "i32", other: "i32", bytes: "i32" },
    ({ places, count, scale, start, startStride, out, m, n, rows, todo, left, at, other, bytes }) => {
      const [plus, load, half] = exact ? [f32x4.add, v128.load, 16] : [i32x4.add, v128.load16s, 8];
      const eight = [0, 1].map((part) =>
        v128.store(
          at.get,
          rows.reduce((total, row) => plus(total, load(row.get, half * part)), v128.load(at.get, 16 * part)),
          16 * part,
        ),
      );
      const add = loop([eight, at.grow(32), rows.map((row) => row.grow(2 * half)), left.grow(-COLUMNS)], left.get);
      const beside = (table) => v128.load(i32.add(table.get, other.get));
      const scaled = v128.store(at.get, f32x4.add(beside(start), f32x4.mul(beside(scale), f32x4.ofInts(v128.load(at.get)))));
      const scaling = [
        at.set(out.get),
        other.set(i32.of(0)),
        left.set(n.get),
        loop([scaled, at.grow(16), other.grow(16), left.grow(-4)], left.get),
      ];
      return [
        bytes.set(i32.shl(n.get, i32.of(2))),
        loop(
          [
            exact ? copy(out.get, start.get, bytes.get) : fill(out.get, i32.of(0), bytes.get),
            todo.set(count.get),
            loop(
              [
                rows.map((row, i) => row.set(i32.load(places.get, 4 * i))),
                at.set(out.get),
                left.set(n.get),
                add,
                places.grow(4 * ROWS),
                todo.grow(-ROWS),
              ],
              todo.get,
            ),
            exact ? [] : scaling,
            start.grow(startStride.get),
            out.grow(bytes.get),
            m.grow(-1),
          ],
          m.get,
        ),
      ];
    },
  );

/** combine(a, aStride, b, bStride, m, n): each row of a (m, n) plus, or less, one of b. n is a multiple of 4. */
export const combine = (change) =>
  func(["a", "aStride", "b", "bStride", "m", "n"], { at: "i32", other: "i32", left: "i32" }, (v) => {
    const { a, aStride, b, bStride, m, n, at, other, left } = v;
    return loop(
      [
        at.set(a.get),
        other.set(b.get),
        left.set(n.get),
        changed(change, v),
        a.grow(aStride.get),
        b.grow(bStride.get),
        m.grow(-1),
      ],
      m.get,
    );
  });

/** Changes the `left` numbers from `at` on by those from `other` on; moves on both. */
const changed = (change, { at, other, left }) =>
  loop([v128.store(at.get, change(v128.load(at.get), v128.load(other.get))), at.grow(16), other.grow(16), left.grow(-4)], left.get);

/**
 * follow(table, bytes, codes, codesStride, into, stride, m, n): to each row of `into` (m, n) the row of a table, of so many
 * bytes, that its code says is added. n is a multiple of 4.
 */
export const follow = () =>
  func(["table", "bytes", "codes", "codesStride", "into", "stride", "m", "n"], { at: "i32", other: "i32", left: "i32" }, (v) => {
    const { table, bytes, codes, codesStride, into, stride, m, n, at, other, left } = v;
    return loop(
      [
        at.set(into.get),
        other.set(i32.add(table.get, i32.mul(i32.load(codes.get), bytes.get))),
        left.set(n.get),
        changed(f32x4.add, v),
        into.grow(stride.get),
        codes.grow(codesStride.get),
        m.grow(-1),
      ],
      m.get,
    );
  });

/** gather(from, stride, places, out, outStride, m, n): row after row, out[i] is the number places[i] bytes into the row. */
export const gather = () =>
  func(["from", "stride", "places", "out", "outStride", "m", "n"], { place: "i32", into: "i32", todo: "i32" }, (v) => {
    const { from, stride, places, out, outStride, m, n, place, into, todo } = v;
    const one = f32.store(into.get, f32.load(i32.add(from.get, i32.load(place.get))));
    return loop(
      [
        place.set(places.get),
        into.set(out.get),
        todo.set(n.get),
        loop([one, place.grow(4), into.grow(4), todo.grow(-1)], todo.get),
        from.grow(stride.get),
        out.grow(outStride.get),
        m.grow(-1),
      ],
      m.get,
    );
  });

/** Bytes of a codeword of so many numbers: of four at once. */
const wordBytes = (width) => i32.shl(i32.shr(i32.add(width, i32.of(3)), i32.of(2)), i32.of(4));

/**
 * add(words, codes, groups, size, width, places, into, stride, m): the inverse of gather, for the codewords of codes
 * (m, groups) among `size` of `width` numbers for each group, added to what is there.
 */
export const add = () =>
  func(
    ["words", "codes", "groups", "size", "width", "places", "into", "stride", "m"],
    { first: "i32", place: "i32", word: "i32", at: "i32", left: "i32", todo: "i32", bytes: "i32" },
    ({ words, codes, groups, size, width, places, into, stride, m, first, place, word, at, left, todo, bytes }) => {
      const one = [
        at.set(i32.add(into.get, i32.load(place.get))),
        f32.store(at.get, f32.add(f32.load(at.get), f32.load(word.get))),
      ];
      const group = [
        word.set(i32.add(first.get, i32.mul(i32.load(codes.get), bytes.get))),
        todo.set(width.get),
        loop([one, place.grow(4), word.grow(4), todo.grow(-1)], todo.get),
        first.grow(i32.mul(size.get, bytes.get)),
        codes.grow(4),
        left.grow(-1),
      ];
      return [
        bytes.set(wordBytes(width.get)),
        loop(
          [first.set(words.get), place.set(places.get), left.set(groups.get), loop(group, left.get), into.grow(stride.get), m.grow(-1)],
          m.get,
        ),
      ];
    },
  );

/**
 * subtract(words, codes, groups, size, width, rows, stride, m): the codewords of codes (m, groups), as `add` has them, from
 * rows in which each group follows the one before. Up to three numbers behind a row are read and written as they are.
 */
export const subtract = () =>
  func(
    ["words", "codes", "groups", "size", "width", "rows", "stride", "m"],
    { first: "i32", at: "i32", begin: "i32", other: "i32", left: "i32", todo: "i32", bytes: "i32" },
    (v) => {
      const { words, codes, groups, size, width, rows, stride, m, first, at, begin, other, left, todo, bytes } = v;
      const group = [
        at.set(begin.get),
        other.set(i32.add(first.get, i32.mul(i32.load(codes.get), bytes.get))),
        left.set(i32.shr(bytes.get, i32.of(2))),
        changed(f32x4.sub, v),
        begin.grow(i32.shl(width.get, i32.of(2))),
        first.grow(i32.mul(size.get, bytes.get)),
        codes.grow(4),
        todo.grow(-1),
      ];
      return [
        bytes.set(wordBytes(width.get)),
        loop(
          [first.set(words.get), begin.set(rows.get), todo.set(groups.get), loop(group, todo.get), rows.grow(stride.get), m.grow(-1)],
          m.get,
        ),
      ];
    },
  );
