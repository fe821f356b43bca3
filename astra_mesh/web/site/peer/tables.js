// Tables that turn codes into sums of rows: a row for each codeword, in which a projection is already applied
// (astra_mesh/quant/vector.py). Made in the tab, because they are many times as large as the codebook that they
// are made of.
//
// Rows of keys and values are 16-bit whole numbers with a scale for each column, added up as whole numbers: half the
// memory to read, and an error of at most 1/65,000 of the largest number of a column in each row. What both ends
// remember is summed exactly, since small differences would choose other codes later.

import { Matrix } from "./matrix.js";
import { NONE } from "./stage.js";
import { CHUNK, Panels, Workspace, copyRows, pasteRows, tall, wide } from "./workspace.js";

export const TABLE_BYTES = 2 ** 28; // of all blocks and numbers of stages of a codebook; where they would be larger, tabs multiply

const MOST = 32767; // of a number in a row

/** Bytes of a table of so many codes in one block; exact: of 32-bit numbers. */
export const tableBytes = (codes, size, columns, exact = false) => (exact ? 4 : 2) * codes * size * wide(columns);

/** Sums of rows. */
export class Table {
  #space;
  #rows; // address of the first one
  #none; // of a row of zeros
  #scale;
  #start;
  #kind; // of arrays of rows

  /**
   * @param space    where it lies
   * @param parts    Matrices of rows, in the order of the codes that they are for
   * @param columns  of a row
   * @param start    (columns,) to which sums are added; null: zeros
   * @param exact    rows of 32-bit numbers
   */
  constructor(space, parts, columns, start = null, exact = false) {
    this.#kind = exact ? Float32Array : Int16Array;
    const scale = exact ? new Float32Array(columns).fill(1) : scales(parts, columns);
    const count = parts.reduce((sum, part) => sum + part.rows, 0);
    this.#space = space;
    this.columns = columns;
    this.width = wide(columns); // of a sum: the rest is zeros
    this.#rows = space.reserve((count + 1) * this.#bytes);
    this.#none = this.#rows + count * this.#bytes;
    [this.#scale, this.#start] = [scale, start ?? new Float32Array(columns)].map((values) => {
      const address = space.reserve(4 * this.width);
      space.floats(address, columns).set(values);
      return address;
    });
    let at = this.#rows;
    for (const part of parts) {
      this.#put(part, scale, at);
      at += part.rows * this.#bytes;
    }
  }

  /** Of a row. */
  get #bytes() {
    return this.#kind.BYTES_PER_ELEMENT * this.width;
  }

  #pasted(rows) {
    const address = this.#space.room("base", this.width);
    pasteRows(this.#space, rows, address, this.width);
    return { address, stride: this.width };
  }

  #put({ data, rows, columns }, scale, address) {
    const found = this.#space.view(this.#kind, address, rows * this.width);
    for (let row = 0; row < rows; row++) {
      const [from, to] = [row * columns, row * this.width];
      if (this.#kind === Float32Array) found.set(data.subarray(from, from + columns), to);
      else for (let j = 0; j < columns; j++) found[to + j] = Math.round(data[from + j] / scale[j]);
    }
  }

  /**
   * The sums of `count` tokens from `first` on, `width` numbers each, in a room of that name; its address.
   *
   * @param codes   one array for each stage, token after token
   * @param groups  of each stage
   * @param size    codewords of each code
   * @param base    { address, stride } of rows that the sums are added to, so many numbers apart; null: start
   */
  run({ codes, groups, size }, first, count, name, base = null) {
    const bytes = this.#bytes;
    const each = tall(codes.reduce((sum, _, stage) => sum + groups[stage], 0));
    const places = this.#space.room("places", each);
    const found = this.#space.room(name, this.width);
    const view = this.#space.view(Int32Array, places, each * count).fill(this.#none);
    let index = 0;
    codes.forEach((one, stage) => {
      for (let group = 0; group < groups[stage]; group++, index++) {
        const begin = this.#rows + index * size * bytes;
        for (let token = 0; token < count; token++) {
          view[token * each + index] = begin + bytes * one[(first + token) * groups[stage] + group];
        }
      }
    });
    const sum = this.#kind === Float32Array ? this.#space.sumExact : this.#space.sum;
    const [start, stride] = base ? [base.address, base.stride] : [this.#start, 0];
    sum(places, each, this.#scale, start, 4 * stride, found, count, this.width);
    return found;
  }

  /** The sums of all tokens: a Matrix. `base`: the rows that they are added to, whose place they take; else start. */
  sum(coded, base = null) {
    const tokens = coded.codes[0].length / coded.groups[0];
    const found = base?.data ?? new Float32Array(tokens * this.columns);
    for (let first = 0; first < tokens; first += CHUNK) {
      const count = Math.min(CHUNK, tokens - first);
      const address = this.run(coded, first, count, "sums", base && this.#pasted(base.slice(first, first + count)));
      copyRows(this.#space.floats(address, count * this.width), this.width, found, first, this.columns);
    }
    return new Matrix(found, this.columns);
  }
}

/** What a column's whole numbers are multiplied by. */
function scales(parts, columns) {
  const most = new Float32Array(columns);
  for (const { data, rows } of parts) {
    for (let row = 0; row < rows; row++) {
      for (let j = 0; j < columns; j++) most[j] = Math.max(most[j], Math.abs(data[row * columns + j]));
    }
  }
  return most.map((one) => one / MOST || 1);
}

/**
 * The rows of a quantizer's codes: a Matrix for each group of each stage.
 *
 * @param stages  Stages of the quantizer
 * @param reach   (coordinates, columns): what a coordinate adds to a sum
 */
export async function rowsOf(stages, reach) {
  const found = [];
  for (const stage of stages) {
    const { groups, size, width, words } = stage;
    for (let group = 0; group < groups; group++) {
      const space = await Workspace.make(); // for this product only
      const number = (row, column) => {
        const coordinate = stage.coordinate(group * width + row);
        return coordinate === NONE ? 0 : reach.data[coordinate * reach.columns + column];
      };
      const part = new Matrix(words.subarray(group * size * width, (group + 1) * size * width), width);
      found.push(new Panels(space, width, reach.columns, number).times(part));
    }
  }
  return found;
}
