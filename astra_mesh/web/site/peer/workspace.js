// The memory that kernels.js computes in: what stays there (matrices, tables), and rooms that calls share.

import { kernels } from "./kernels.js";
import { Matrix } from "./matrix.js";
import { COLUMNS, ROWS } from "./row_kernels.js";

export const CHUNK = 64; // rows that are computed at once: they stay in a processor's cache

const PAGE = 2 ** 16;
const LINE = 64; // what lies here begins at a multiple of it

const upTo = (count, step) => Math.ceil(count / step) * step;
export const wide = (columns) => upTo(columns, COLUMNS);
export const tall = (rows) => upTo(rows, ROWS);

/** Rows that lie `width` numbers apart, from row `first` on into others with fewer `columns`. */
export function copyRows(from, width, into, first, columns) {
  for (let i = 0; i * width < from.length; i++) into.set(from.subarray(i * width, i * width + columns), (first + i) * columns);
}

/** The inverse: rows of a Matrix to an address, `width` numbers apart. */
export function pasteRows(space, { data, columns, rows }, address, width) {
  const into = space.floats(address, width * rows);
  if (columns === width) into.set(data);
  else for (let i = 0; i < rows; i++) into.set(data.subarray(i * columns, (i + 1) * columns), i * width);
}

let compiled = null;

/** Whether the browser has relaxed SIMD, which makes products twice as fast. */
export const isRelaxed = () => WebAssembly.validate(kernels(true));

/** The module, compiled once; with relaxed SIMD where the browser has it. */
function compile() {
  compiled ??= WebAssembly.compile(kernels(isRelaxed()));
  return compiled;
}

export class Workspace {
  #exports;
  #end = LINE; // of what is in use; nothing has the address 0
  #rooms = new Map(); // by name: { address, bytes }

  constructor(exports) {
    this.#exports = exports;
    for (const [name, one] of Object.entries(exports)) if (typeof one === "function") this[name] = one; // see kernels.js
  }

  static async make() {
    const instance = await WebAssembly.instantiate(await compile());
    return new Workspace(instance.exports);
  }

  /** The address of so many bytes, zeros at first. Views are void afterwards. */
  reserve(bytes) {
    const address = this.#end;
    this.#end = upTo(address + bytes, LINE);
    const missing = this.#end - this.#exports.memory.buffer.byteLength;
    if (missing > 0) this.#exports.memory.grow(Math.ceil(missing / PAGE));
    return address;
  }

  /** A copy of numbers that stays; its address. */
  keep(numbers) {
    const address = this.reserve(numbers.byteLength);
    this.view(numbers.constructor, address, numbers.length).set(numbers);
    return address;
  }

  /**
   * The address of a room for CHUNK rows of so many 32-bit numbers; the next call with that name has the same one, or
   * a larger one. Views are void afterwards.
   */
  room(name, columns) {
    const bytes = 4 * CHUNK * columns;
    const known = this.#rooms.get(name);
    if (known?.bytes >= bytes) return known.address;
    const address = this.reserve(bytes);
    this.#rooms.set(name, { address, bytes });
    return address;
  }

  floats(address, count) {
    return this.view(Float32Array, address, count);
  }

  view(kind, address, count) {
    return new kind(this.#exports.memory.buffer, address, count);
  }
}

/** A matrix (depth, columns) and a row to add, ready to be multiplied with. */
export class Panels {
  #space;
  #start;

  /**
   * @param space    where it lies
   * @param depth    its rows
   * @param columns  as many as there are
   * @param number   (row, column) => a number of it; null: they are filled in later
   * @param start    (columns,) to which products are added; null: zeros
   */
  constructor(space, depth, columns, number, start = null) {
    this.#space = space;
    this.depth = depth;
    this.columns = columns;
    this.width = wide(columns); // of a product: the rest is zeros
    this.address = space.reserve(4 * this.width * depth);
    this.#start = space.reserve(4 * this.width);
    space.floats(this.#start, columns).set(start ?? new Float32Array(columns));
    if (number) this.#fill((found, begin, column) => {
      for (let row = 0; row < depth; row++) found[begin + row * COLUMNS] = number(row, column);
    });
  }

  /** Of weights (columns, depth), whose columns are multiplied with `factors` (depth,): faster than number by number. */
  static ofWeights(space, { data, shape: [columns, depth] }, factors, start = null) {
    const made = new Panels(space, depth, columns, null, start);
    made.#fill((found, begin, column) => {
      const at = column * depth;
      for (let row = 0; row < depth; row++) found[begin + row * COLUMNS] = data[at + row] * factors[row];
    });
    return made;
  }

  /** `fill` gets all numbers, the place of a column's first one, and which column; its next one is COLUMNS further. */
  #fill(fill) {
    const found = this.#space.floats(this.address, this.width * this.depth);
    for (let column = 0; column < this.columns; column++) {
      fill(found, (column - (column % COLUMNS)) * this.depth + (column % COLUMNS), column);
    }
  }

  /** The product with `count` rows at an address, `stride` numbers apart, into a room of that name; its address. */
  run(rows, stride, count, name) {
    const found = this.#space.room(name, this.width);
    this.#space.product(rows, 4 * stride, this.address, this.#start, found, 4 * this.width, tall(count), this.width, this.depth);
    return found;
  }

  /** The product with a Matrix. */
  times(matrix) {
    const space = this.#space;
    const found = new Float32Array(matrix.rows * this.columns);
    const rows = space.room("rows", this.depth);
    for (let first = 0; first < matrix.rows; first += CHUNK) {
      const some = matrix.slice(first, Math.min(first + CHUNK, matrix.rows));
      space.floats(rows, some.data.length).set(some.data);
      const address = this.run(rows, this.depth, some.rows, "product");
      copyRows(space.floats(address, some.rows * this.width), this.width, found, first, this.columns);
    }
    return new Matrix(found, this.columns);
  }
}
