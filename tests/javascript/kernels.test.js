// Products, the nearest codewords and sums of rows in WebAssembly, beside the same in plain JavaScript.

import assert from "node:assert/strict";
import { test } from "node:test";

import { kernels } from "../../astra_mesh/web/site/peer/kernels.js";
import { Matrix } from "../../astra_mesh/web/site/peer/matrix.js";
import { Stage, rowSize } from "../../astra_mesh/web/site/peer/stage.js";
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

/** Codes of a stage by its definition. */
function nearest(y, columns, { data, shape: [groups, size, width] }, order) {
  const found = [];
  for (let row = 0; row < y.length / columns; row++) {
    for (let group = 0; group < groups; group++) {
      let [best, least] = [-1, Infinity];
      for (let code = 0; code < size; code++) {
        let distance = 0;
        for (let i = 0; i < width; i++) {
          const at = order ? order[group * width + i] : group * width + i;
          distance += ((at < columns ? y[row * columns + at] : 0) - data[(group * size + code) * width + i]) ** 2;
        }
        if (distance < least) [best, least] = [code, distance];
      }
      found.push(best);
    }
  }
  return found;
}

test("the nearest codewords are found, whatever the sizes", async () => {
  for (const [rows, groups, size, width] of [[1, 1, 2, 2], [5, 3, 16, 5], [CHUNK, 2, 13, 8], [9, 16, 256, 4]]) {
    const columns = groups * width - 1; // one place is empty
    const order = Int32Array.from({ length: groups * width }, (_, i) => (i * 7) % (groups * width));
    const words = { data: numbers(groups * size * width, 4), shape: [groups, size, width] };
    const y = numbers(rows * columns, 5);
    for (const space of await spaces()) {
      const stage = new Stage(space, words, order, columns);
      const stride = rowSize(columns);
      const at = space.room("y", stride);
      const row = (i) => space.floats(at + 4 * i * stride, columns);
      for (let i = 0; i < rows; i++) row(i).set(y.subarray(i * columns, (i + 1) * columns));
      const codes = stage.encode(at, stride, rows);
      assert.deepEqual([...space.view(Int32Array, codes, rows * groups)], nearest(y, columns, words, order));
      // What is left, less the codewords: nothing is left of it when they are added again.
      stage.subtract(codes, at, stride, rows);
      assert.ok(row(0).some((one, i) => Math.abs(one - y[i]) > 0.01));
      stage.add(codes, at, stride, rows);
      for (let i = 0; i < rows; i++) close(row(i), y.subarray(i * columns, (i + 1) * columns), 1e-6);
      assert.equal(space.floats(at + 4 * columns, 1)[0], 0); // what empty places read
    }
  }
});

test("of codewords that are as near, the first is taken", async () => {
  const size = 24;
  for (const twins of [[0, 23], [3, 7], [5, 6], [4, 12], [1, 2]]) {
    const data = new Float32Array(size).fill(9);
    for (const twin of twins) data[twin] = 1;
    for (const space of await spaces()) {
      const stage = new Stage(space, { data, shape: [1, size, 1] }, null, 1);
      const at = space.room("y", rowSize(1));
      space.floats(at, 1).fill(1);
      assert.deepEqual([...space.view(Int32Array, stage.encode(at, rowSize(1), 1), 1)], [twins[0]]);
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
