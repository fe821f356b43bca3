// One residual stage of a quantizer, as StageCoder of astra_mesh/quant/coders.py.

import { Panels, tall, wide } from "./workspace.js";

/** Numbers in a row of so many coordinates: a zero behind them, and a place for what belongs nowhere. */
export const rowSize = (coordinates) => wide(coordinates + 2);

export class Stage {
  #space;
  #panels = []; // address of each group's codewords
  #start; // of all groups: minus half their squares
  #rows; // the codewords, one after the other
  #from; // of each place in the groups, its coordinate's bytes within a row
  #to; // the same, for adding

  /**
   * @param space        where it lies
   * @param codewords    tensor (groups, size, width)
   * @param order        the coordinate of each place in the groups, or a number beyond them; null: they lie in order
   * @param coordinates  how many
   */
  constructor(space, { data, shape: [groups, size, width] }, order, coordinates) {
    Object.assign(this, { groups, size, width, words: data, order });
    this.#space = space;
    this.columns = groups * width;
    for (let group = 0; group < groups; group++) {
      const begin = group * size * width;
      this.#panels.push(new Panels(space, width, size, (row, column) => data[begin + column * width + row]).address);
    }
    this.#start = space.keep(starts(data, groups, size, width));
    this.#rows = space.keep(data);
    const places = Int32Array.from({ length: this.columns }, (_, i) => Math.min(order ? order[i] : i, coordinates));
    this.#from = order && space.keep(places.map((one) => 4 * one));
    this.#to = space.keep(places.map((one) => 4 * (one < coordinates ? one : coordinates + 1)));
  }

  /** Codes of `count` rows of coordinates, `stride` numbers apart: the address of whole numbers, (count, groups). */
  encode(coordinates, stride, count) {
    const { columns, groups, size, width } = this;
    const space = this.#space;
    const codes = space.room("codes", groups);
    let [rows, apart] = [coordinates, 4 * stride];
    if (this.#from) {
      [rows, apart] = [space.room("cut", wide(columns)), 4 * wide(columns)];
      space.gather(coordinates, 4 * stride, this.#from, rows, apart, count, columns);
    }
    this.#panels.forEach((panels, group) => {
      const start = this.#start + 4 * group * wide(size);
      space.nearest(rows + 4 * group * width, apart, panels, start, codes + 4 * group, 4 * groups, tall(count), wide(size), width);
    });
    return codes;
  }

  /** Add the codewords of codes to `count` rows of coordinates, rowSize() or more numbers apart. */
  add(codes, coordinates, stride, count) {
    this.#space.add(this.#rows, codes, this.groups, this.size, this.width, this.#to, coordinates, 4 * stride, count);
  }

  subtract(codes, coordinates, stride, count) {
    this.#space.subtract(this.#rows, codes, this.groups, this.size, this.width, this.#to, coordinates, 4 * stride, count);
  }
}

/** Minus half the squared lengths; the lowest number where there is no codeword. */
function starts(data, groups, size, width) {
  const found = new Float32Array(groups * wide(size)).fill(-Infinity);
  for (let word = 0; word < groups * size; word++) {
    let square = 0;
    for (let i = word * width; i < (word + 1) * width; i++) square += data[i] ** 2;
    found[Math.floor(word / size) * wide(size) + (word % size)] = -square / 2;
  }
  return found;
}
