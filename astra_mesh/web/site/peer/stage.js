// One residual stage of a quantizer, as StageCoder of astra_mesh/quant/coders.py.

import { Panels, tall, wide } from "./workspace.js";

const BEHIND = 4; // numbers behind a row: a zero, and what is read and written with the last ones

export const NONE = -1; // instead of a coordinate

/** Numbers in a row of so many coordinates, or of places in groups: zeros behind them. */
export const rowSize = (coordinates) => wide(coordinates + BEHIND);

export class Stage {
  #space;
  #panels = null; // address of each group's codewords
  #start; // of all groups: minus half their squares
  #rows = null; // the codewords, one after the other, each filled up with zeros
  #to = null; // of each place in the groups, its coordinate's bytes within a row

  /**
   * @param space        where it lies
   * @param codewords    tensor (groups, size, width)
   * @param order        the coordinate of each place in the groups, or a number beyond them; null: they lie in order
   * @param coordinates  how many
   */
  constructor(space, { data, shape: [groups, size, width] }, order, coordinates) {
    Object.assign(this, { groups, size, width, words: data, order, coordinates });
    this.#space = space;
    this.columns = groups * width;
  }

  /** The coordinate of a place in the groups, or NONE. */
  coordinate(place) {
    const found = this.order ? this.order[place] : place;
    return found < this.coordinates ? found : NONE;
  }

  /** Of each codeword (of each group, filled up to a multiple of eight) minus half its square; else the lowest number. */
  get starts() {
    const { groups, size, width, words } = this;
    const found = new Float32Array(groups * wide(size)).fill(-Infinity);
    for (let word = 0; word < groups * size; word++) {
      let square = 0;
      for (let i = word * width; i < (word + 1) * width; i++) square += words[i] ** 2;
      found[Math.floor(word / size) * wide(size) + (word % size)] = -square / 2;
    }
    return found;
  }

  /** Lay out what `encode` and `subtract` need. */
  prepare() {
    const { groups, size, width, words } = this;
    this.#panels ??= Array.from({ length: groups }, (_, group) => {
      const begin = group * size * width;
      return new Panels(this.#space, width, size, (row, column) => words[begin + column * width + row]).address;
    });
    this.#start ??= this.#space.keep(this.starts);
    this.#keepRows();
  }

  #keepRows() {
    if (this.#rows !== null) return;
    const [each, { groups, size, width, words }] = [tall(this.width), this];
    this.#rows = this.#space.reserve(4 * groups * size * each);
    const found = this.#space.floats(this.#rows, groups * size * each);
    for (let word = 0; word < groups * size; word++) found.set(words.subarray(word * width, (word + 1) * width), word * each);
  }

  /** Codes of `count` rows in the order of the groups, `stride` numbers apart: the address of whole numbers, (count, groups). */
  encode(rows, stride, count) {
    const { groups, size, width } = this;
    const space = this.#space;
    const codes = space.room("codes", groups);
    this.#panels.forEach((panels, group) => {
      const start = this.#start + 4 * group * wide(size);
      space.nearest(rows + 4 * group * width, 4 * stride, panels, start, codes + 4 * group, 4 * groups, tall(count), wide(size), width);
    });
    return codes;
  }

  /** Subtract the codewords of codes from such rows, rowSize(columns) or more numbers apart. */
  subtract(codes, rows, stride, count) {
    this.#space.subtract(this.#rows, codes, this.groups, this.size, this.width, rows, 4 * stride, count);
  }

  /** Add the codewords of codes to `count` rows of coordinates, rowSize(coordinates) or more numbers apart. */
  add(codes, coordinates, stride, count) {
    this.#keepRows();
    const nowhere = this.coordinates + 1; // behind the coordinates
    const place = (coordinate) => 4 * (coordinate === NONE ? nowhere : coordinate);
    this.#to ??= this.#space.keep(Int32Array.from({ length: this.columns }, (_, i) => place(this.coordinate(i))));
    this.#space.add(this.#rows, codes, this.groups, this.size, this.width, this.#to, coordinates, 4 * stride, count);
  }
}
