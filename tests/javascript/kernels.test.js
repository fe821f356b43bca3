// Products, the nearest codewords and sums of rows in WebAssembly, beside the same in plain JavaScript.

import assert from "node:assert/strict";
import { test } from "node:test";

import { kernels } from "../../astra_mesh/web/site/peer/kernels.js";
import { Matrix } from "../../astra_mesh/web/site/peer/matrix.js";
import { Scores } from "../../astra_mesh/web/site/peer/scores.js";
import { Search } from "../../astra_mesh/web/site/peer/search.js";
import { NONE, Stage, rowSize } from "../../astra_mesh/web/site/peer/stage.js";
import { Table, rowsOf } from "../../astra_mesh/web/site/peer/tables.js";
import { CHUNK, Panels, Workspace } from "../../astra_mesh/web/site/peer/workspace.js";

/** Numbers that are the same in every run. */
function numbers(count, seed = 1) {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

const close = (found, wanted, most) => wanted.forEach((one, i) => assert.ok(Math.abs(found[i] - one) <= most, `${i}: ${found[i]}, not ${one}`));

/** All that this machine can run: relaxed SIMD is not everywhere. */
async function spaces() {
  const found = [];
  for (const bytes of [kernels(false), kernels(true)]) {
    if (WebAssembly.validate(bytes)) found.push(new Workspace((await WebAssembly.instantiate(bytes)).instance.exports));
  }
  assert.ok(found.length);
  return found;
}

test("products are those of plain JavaScript, whatever the sizes", async () => {
  for (const [rows, depth, columns] of [[1, 1, 1], [3, 5, 7], [4, 8, 8], [CHUNK + 5, 34, 17], [2 * CHUNK, 3, 9]]) {
    const a = numbers(rows * depth);
    const b = numbers(depth * columns, 2);
    const start = numbers(columns, 3);
    const wanted = Float32Array.from({ length: rows * columns }, (_, i) => {
      const [row, column] = [Math.floor(i / columns), i % columns];
      let sum = start[column];
      for (let k = 0; k < depth; k++) sum += a[row * depth + k] * b[k * columns + column];
      return sum;
    });
    for (const space of await spaces()) {
      const panels = new Panels(space, depth, columns, (row, column) => b[row * columns + column], start);
      const found = panels.times(new Matrix(a, depth));
      assert.equal(found.columns, columns);
      close(found.data, wanted, 1e-5 * depth);
    }
  }
});

test("a product without a row to add begins at zero", async () => {
  for (const space of await spaces()) {
    const panels = new Panels(space, 2, 3, (row, column) => (row === column ? 2 : 0));
    assert.deepEqual([...panels.times(new Matrix(Float32Array.of(1, 2, 3, 4), 2)).data], [2, 4, 0, 6, 8, 0]);
  }
});

/** Rows of coordinates as a stage's groups have them: those beyond are zeros. */
const grouped = (y, columns, stage) =>
  Array.from({ length: y.length / columns }, (_, row) =>
    Array.from({ length: stage.columns }, (_, place) => (stage.coordinate(place) === NONE ? 0 : y[row * columns + stage.coordinate(place)])),
  );

/** Codes of a stage by their definition. */
function nearest(y, columns, stage) {
  const { groups, size, width, words } = stage;
  const found = [];
  for (const row of grouped(y, columns, stage)) {
    for (let group = 0; group < groups; group++) {
      let [best, least] = [-1, Infinity];
      for (let code = 0; code < size; code++) {
        let distance = 0;
        for (let i = 0; i < width; i++) distance += (row[group * width + i] - words[(group * size + code) * width + i]) ** 2;
        if (distance < least) [best, least] = [code, distance];
      }
      found.push(best);
    }
  }
  return found;
}

/** Rows of coordinates less the codewords of their codes. */
function less(y, columns, stage, codes) {
  const { groups, size, width, words } = stage;
  return y.map((one, at) => {
    const [row, coordinate] = [Math.floor(at / columns), at % columns];
    for (let place = 0; place < stage.columns; place++) {
      if (stage.coordinate(place) !== coordinate) continue;
      const group = Math.floor(place / width);
      one -= words[(group * size + codes[row * groups + group]) * width + (place % width)];
    }
    return one;
  });
}

/** Codes by all stages, and what is left. */
function searched(y, columns, stages) {
  const found = [];
  for (const stage of stages) {
    found.push(nearest(y, columns, stage));
    y = less(y, columns, stage, found.at(-1));
  }
  return found;
}

/** Stages of random codewords, whose places are in any order; the first place of each holds none, and some coordinates have none. */
function staged(space, groups, size, columns, ordered = false) {
  return groups.map((many, i) => {
    const width = Math.ceil((columns + 1) / many);
    const words = { data: numbers(many * size * width, 4 + i), shape: [many, size, width] };
    const inAnyOrder = Int32Array.from({ length: many * width }, (_, place) => (place ? ((place - 1) * (2 * i + 1)) % columns : columns));
    const free = new Set(); // each coordinate has one place
    const order = inAnyOrder.map((one) => (free.has(one) ? columns : (free.add(one), one)));
    return new Stage(space, words, ordered ? null : order, columns);
  });
}

/** Codes of rows by what searches them. */
function found(space, search, rows, hidden, stages) {
  const stride = search.stride(hidden);
  const count = rows.length / hidden;
  const at = space.room("rows", stride);
  for (let i = 0; i < count; i++) space.floats(at + 4 * i * stride, hidden).set(rows.subarray(i * hidden, (i + 1) * hidden));
  const codes = [];
  search.run(at, stride, count, stages.length, (i, codesAt) => codes.push([...space.view(Int32Array, codesAt, count * stages[i].groups)]));
  return codes;
}

const SIZES = [[1, [1], 2, 1], [5, [3, 1], 16, 13], [CHUNK, [2, 1, 4], 13, 15], [9, [16, 3], 256, 63], [7, [1, 1, 2], 24, 29]];

test("the nearest codewords are found stage after stage, whatever the sizes", async () => {
  for (const [rows, groups, size, columns] of SIZES) {
    for (const space of await spaces()) {
      const stages = staged(space, groups, size, columns);
      const y = numbers(rows * columns, 5);
      const search = new Search(space, stages, null);
      const wanted = searched(y, columns, stages);
      assert.deepEqual(found(space, search, y, columns, stages), wanted);
      assert.deepEqual(found(space, search, y, columns, stages.slice(0, 1)), wanted.slice(0, 1));
      assert.deepEqual(found(space, search, y, columns, stages), wanted, "what a search leaves disturbs no other");
    }
  }
});

test("stages whose groups lie alike find the same", async () => {
  for (const space of await spaces()) {
    const stages = [2, 5].map((many, i) => new Stage(space, { data: numbers(16 * 10, 4 + i), shape: [many, 16, 10 / many] }, null, 10));
    const y = numbers(6 * 10, 5);
    assert.deepEqual(found(space, new Search(space, stages, null), y, 10, stages), searched(y, 10, stages));
  }
});

test("coordinates, and scores without them, lead to the same codewords", async () => {
  for (const [rows, groups, size, columns] of SIZES) {
    const hidden = columns + 4;
    const analysis = { data: numbers(columns * hidden, 7), shape: [columns, hidden] };
    const n = numbers(rows * hidden, 8);
    const y = Float32Array.from({ length: rows * columns }, (_, i) => {
      const [row, column] = [Math.floor(i / columns), i % columns];
      let sum = 0;
      for (let k = 0; k < hidden; k++) sum += n[row * hidden + k] * analysis.data[column * hidden + k];
      return sum;
    });
    for (const space of await spaces()) {
      const stages = staged(space, groups, size, columns);
      const wanted = searched(y, columns, stages);
      for (const search of [new Search(space, stages, analysis), await Scores.make(space, stages, analysis)]) {
        assert.deepEqual(found(space, search, n, hidden, stages), wanted);
      }
    }
  }
});

test("scores cost less where codes are few", () => {
  const cost = (kind, groups) => kind.cost(staged(null, groups, 256, 538), { data: { length: 538 * 768 }, shape: [538, 768] });
  for (const groups of [[1], [1, 1], [1, 1, 2]]) assert.ok(cost(Scores, groups) < cost(Search, groups));
  for (const groups of [[16], [1, 1, 2, 4], [1, 1, 2, 4, 8]]) assert.ok(cost(Scores, groups) > cost(Search, groups));
});

test("codewords are added to the coordinates of their places", async () => {
  for (const [rows, groups, size, columns] of SIZES) {
    for (const space of await spaces()) {
      const [stage] = staged(space, groups, size, columns);
      const y = numbers(rows * columns, 5);
      const codes = Int32Array.from({ length: rows * stage.groups }, (_, i) => (7 * i) % size);
      const stride = rowSize(columns);
      const [at, codesAt] = [space.room("y", stride), space.room("codes", stage.groups)];
      const row = (i) => space.floats(at + 4 * i * stride, columns);
      for (let i = 0; i < rows; i++) row(i).set(less(y, columns, stage, codes).subarray(i * columns, (i + 1) * columns));
      space.view(Int32Array, codesAt, codes.length).set(codes);
      stage.add(codesAt, at, stride, rows);
      for (let i = 0; i < rows; i++) close(row(i), y.subarray(i * columns, (i + 1) * columns), 1e-6);
    }
  }
});

test("of codewords that are as near, the first is taken", async () => {
  const size = 24;
  for (const twins of [[0, 23], [3, 7], [5, 6], [4, 12], [1, 2]]) {
    const data = new Float32Array(size).fill(9);
    for (const twin of twins) data[twin] = 1;
    for (const space of await spaces()) {
      const stages = [new Stage(space, { data, shape: [1, size, 1] }, null, 1)];
      const analysis = { data: Float32Array.of(1), shape: [1, 1] };
      for (const search of [new Search(space, stages, null), await Scores.make(space, stages, analysis)]) {
        assert.deepEqual(found(space, search, Float32Array.of(1), 1, stages), [[twins[0]]]);
      }
    }
  }
});

for (const [exact, error] of [[false, 5 / 60000], [true, 1e-6]]) test(`a table sums its rows, ${exact ? "exactly" : "with an error far below theirs"}`, async () => {
  const [size, columns, tokens] = [16, 11, CHUNK + 3];
  const groups = [2, 3];
  const parts = [0, 1, 2, 3, 4].map((i) => new Matrix(numbers(size * columns, 10 + i), columns));
  const start = numbers(columns, 6);
  const codes = groups.map((many, stage) => Uint8Array.from({ length: many * tokens }, (_, i) => (i * (stage + 3)) % size));
  for (const space of await spaces()) {
    const table = new Table(space, parts, columns, start, exact);
    for (const stages of [1, 2]) {
      const some = codes.slice(0, stages);
      const found = table.sum({ codes: some, groups, size });
      assert.equal(found.rows, tokens);
      const wanted = Float32Array.from({ length: tokens * columns }, (_, i) => {
        const [token, column] = [Math.floor(i / columns), i % columns];
        let sum = start[column];
        let index = 0;
        some.forEach((one, stage) => {
          for (let group = 0; group < groups[stage]; group++) sum += parts[index++].data[one[token * groups[stage] + group] * columns + column];
        });
        return sum;
      });
      close(found.data, wanted, error);
      const base = numbers(tokens * columns, 8);
      const more = table.sum({ codes: some, groups, size }, new Matrix(base.slice(), columns));
      close(more.data, wanted.map((one, i) => one - start[i % columns] + base[i]), error);
    }
  }
});

test("rows of a table are codewords times what their coordinates add", async () => {
  const [space] = await spaces();
  const words = { data: Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8), shape: [2, 2, 2] };
  const order = Int32Array.of(2, 0, 1, 3); // 3: none
  const reach = new Matrix(Float32Array.of(1, 10, 100), 1);
  const found = await rowsOf([new Stage(space, words, order, 3)], reach);
  assert.deepEqual(found.map((one) => [...one.data]), [[102, 304], [50, 70]]);
});

test("memory grows as it is asked for, and what is kept stays", async () => {
  const space = await Workspace.make();
  const kept = space.keep(Float32Array.of(1, 2, 3));
  const room = space.room("a", 1000);
  assert.equal(space.room("a", 10), room);
  space.reserve(5 * 2 ** 20);
  assert.notEqual(space.room("a", 2000), room);
  assert.deepEqual([...space.floats(kept, 3)], [1, 2, 3]);
});
