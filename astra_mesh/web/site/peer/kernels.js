// The arithmetic of codes, in WebAssembly with SIMD: products and the nearest of many codewords; sums of rows are in
// row_kernels.js.
//
// onnxruntime's products are made for processors with more registers than x86 has, and its search for a largest number
// takes one at a time. Here four rows meet eight columns in eight registers. Where the browser has relaxed SIMD, a
// product and its sum are one instruction.

import { COLUMNS, ROWS, add, combine, follow, gather, subtract, sum } from "./row_kernels.js";
import { f32, f32x4, func, i32, i32x4, loop, module, select, v128, when } from "./wasm.js";

const TILE = 2 * ROWS; // registers, of four numbers each

const repeat = (count, make) => Array.from({ length: count }, (_, i) => make(i));

/** Adds the products of `steps` numbers of four rows with as many of eight columns to a tile; moves on all addresses. */
function steps(madd, count, { sums, rows, panel, left, right, one }) {
  return [
    repeat(count, (step) => [
      left.set(v128.load(panel.get, 32 * step)),
      right.set(v128.load(panel.get, 32 * step + 16)),
      rows.map((row, i) => [
        one.set(v128.splat(row.get, 4 * step)),
        sums[2 * i].set(madd(one.get, left.get, sums[2 * i].get)),
        sums[2 * i + 1].set(madd(one.get, right.get, sums[2 * i + 1].get)),
      ]),
    ]),
    rows.map((row) => row.grow(4 * count)),
    panel.grow(32 * count),
  ];
}

/** Sums the products of four rows from `row` on, `stride` bytes apart, with the panel's `depth` numbers a column. */
function tile(madd, tools, row, stride, start, depth) {
  const { sums, rows, panel, count } = tools;
  const turns = (size) => [loop([steps(madd, size, tools), count.grow(-1)], count.get)];
  return [
    rows.map((one, i) => one.set(i ? i32.add(rows[i - 1].get, stride) : row)),
    sums.map((sum, i) => sum.set(v128.load(start, 16 * (i % 2)))),
    count.set(i32.shr(depth, i32.of(2))),
    when(count.get, turns(4)),
    count.set(i32.and(depth, i32.of(3))),
    when(count.get, turns(1)),
  ];
}

// What a tile is computed with.
const TOOLS = {
  ...{ sums: `${TILE} v128`, left: "v128", right: "v128", one: "v128" },
  ...{ rows: `${ROWS} i32`, panel: "i32", count: "i32" },
};

const PRODUCT = ["a", "aStride", "b", "start", "c", "cStride", "m", "n", "depth"];
const NEAREST = ["y", "yStride", "words", "start", "codes", "codesStride", "m", "size", "depth"];

/**
 * product(a, aStride, b, start, c, cStride, m, n, depth): c (m, n) = a (m, depth) times b, plus a row of n numbers.
 * b lies in panels of eight columns. m is a multiple of ROWS, n of COLUMNS.
 */
const product = (madd) =>
  func(PRODUCT, { ...TOOLS, row: "i32", into: "i32", todo: "i32" }, (v) => {
    const { a, aStride, b, start, c, cStride, m, n, depth, row, into, todo, panel, sums } = v;
    const store = repeat(ROWS, (i) => [
      v128.store(into.get, sums[2 * i].get),
      v128.store(into.get, sums[2 * i + 1].get, 16),
      into.grow(cStride.get),
    ]);
    const down = [
      panel.set(b.get),
      tile(madd, v, row.get, aStride.get, start.get, depth.get),
      store,
      row.grow(i32.mul(aStride.get, i32.of(ROWS))),
      todo.grow(-ROWS),
    ];
    const across = [
      row.set(a.get),
      into.set(c.get),
      todo.set(m.get),
      loop(down, todo.get),
      b.grow(i32.shl(depth.get, i32.of(5))),
      start.grow(32),
      c.grow(32),
      n.grow(-COLUMNS),
    ];
    return loop(across, n.get);
  });

/**
 * nearest(y, yStride, words, start, codes, codesStride, m, size, depth): the number of the nearest of `size` codewords
 * to each row of y (m, depth), as whole numbers; of two that are as near, the first. Codewords are columns of panels;
 * start: minus half their squares. m is a multiple of ROWS, size of COLUMNS.
 */
const nearest = (madd) =>
  func(
    NEAREST,
    {
      ...TOOLS,
      ...{ at: "i32", todo: "i32", best: `${ROWS} v128`, where: `${ROWS} v128`, low: "v128", high: "v128", mask: "v128" },
      ...FIRST,
    },
    (v) => {
      const { y, yStride, words, start, codes, codesStride, m, size, depth, panel, sums, at, todo, best, where, low, high, mask } = v;
      const compare = repeat(ROWS, (i) => {
        const [first, second] = [sums[2 * i], sums[2 * i + 1]];
        return [
          mask.set(f32x4.gt(second.get, first.get)),
          first.set(f32x4.max(first.get, second.get)),
          second.set(v128.bitselect(high.get, low.get, mask.get)),
          mask.set(f32x4.gt(first.get, best[i].get)),
          best[i].set(f32x4.max(best[i].get, first.get)),
          where[i].set(v128.bitselect(second.get, where[i].get, mask.get)),
        ];
      });
      const eight = v128.ints(8, 8, 8, 8);
      const across = loop(
        [
          tile(madd, v, y.get, yStride.get, at.get, depth.get),
          compare,
          low.set(i32x4.add(low.get, eight)),
          high.set(i32x4.add(high.get, eight)),
          at.grow(32),
          todo.grow(-COLUMNS),
        ],
        todo.get,
      );
      return loop(
        [
          best.map((one) => one.set(v128.floats(-Infinity))),
          where.map((one) => one.set(v128.ints(0, 0, 0, 0))),
          low.set(v128.ints(0, 1, 2, 3)),
          high.set(v128.ints(4, 5, 6, 7)),
          panel.set(words.get),
          at.set(start.get),
          todo.set(size.get),
          across,
          repeat(ROWS, (i) => [first(v, best[i], where[i]), i32.store(codes.get, v.code.get), codes.grow(codesStride.get)]),
          y.grow(i32.mul(yStride.get, i32.of(ROWS))),
          m.grow(-ROWS),
        ],
        m.get,
      );
    },
  );

// What the first of the largest is found with.
const FIRST = { most: "f32", code: "i32", value: "f32", number: "i32", better: "i32" };

/** Sets `code` to the number of the largest of four lanes; of equal ones the lowest. */
function first({ most, code, value, number, better }, best, where) {
  return [
    most.set(f32x4.lane(best.get, 0)),
    code.set(i32x4.lane(where.get, 0)),
    [1, 2, 3].map((lane) => [
      value.set(f32x4.lane(best.get, lane)),
      number.set(i32x4.lane(where.get, lane)),
      better.set(i32.or(f32.gt(value.get, most.get), i32.and(f32.eq(value.get, most.get), i32.lt(number.get, code.get)))),
      most.set(select(value.get, most.get, better.get)),
      code.set(select(number.get, code.get, better.get)),
    ]),
  ];
}

/**
 * largest(scores, stride, codes, codesStride, m, size): the number of the largest of `size` scores in each row, as whole
 * numbers; of two that are as large, the first. size is a multiple of 4.
 */
const largest = () =>
  func(
    ["scores", "stride", "codes", "codesStride", "m", "size"],
    { ...{ best: "v128", where: "v128", lanes: "v128", some: "v128", mask: "v128", at: "i32", left: "i32" }, ...FIRST },
    (v) => {
      const { scores, stride, codes, codesStride, m, size, best, where, lanes, some, mask, at, left, code } = v;
      const four = v128.ints(4, 4, 4, 4);
      return loop(
        [
          best.set(v128.floats(-Infinity)),
          where.set(v128.ints(0, 0, 0, 0)),
          lanes.set(v128.ints(0, 1, 2, 3)),
          at.set(scores.get),
          left.set(size.get),
          loop(
            [
              some.set(v128.load(at.get)),
              mask.set(f32x4.gt(some.get, best.get)),
              best.set(f32x4.max(best.get, some.get)),
              where.set(v128.bitselect(lanes.get, where.get, mask.get)),
              lanes.set(i32x4.add(lanes.get, four)),
              at.grow(16),
              left.grow(-4),
            ],
            left.get,
          ),
          first(v, best, where),
          i32.store(codes.get, code.get),
          scores.grow(stride.get),
          codes.grow(codesStride.get),
          m.grow(-1),
        ],
        m.get,
      );
    },
  );

const twice = (a, b, c) => f32x4.add(f32x4.mul(a, b), c);

/** The module's bytes; `relaxed`: with instructions that not every browser has. */
export function kernels(relaxed) {
  const madd = relaxed ? f32x4.madd : twice;
  return module({
    product: product(madd),
    nearest: nearest(madd),
    sum: sum(false),
    sumExact: sum(true),
    plus: combine(f32x4.add),
    less: combine(f32x4.sub),
    follow: follow(),
    largest: largest(),
    gather: gather(),
    add: add(),
    subtract: subtract(),
  });
}
