// The quantizer of one block at work, as astra_mesh/quant/coders.py: n to codes, and back to n^.
//
// Of D x D products encoding takes one for the prediction and one into coordinates; decoding one for the prediction.
// What codes add is looked up in a table where it is small enough, else joined and multiplied. Predictions are known
// before a block's input or its codes are: who has them already gives them.

import { Matrix } from "./matrix.js";
import { Stage, rowSize } from "./stage.js";
import { Table, rowsOf } from "./tables.js";
import { CHUNK, Panels, wide } from "./workspace.js";

const UNLIMITED = -1;

/** Of one block, at one number of stages or, where nothing is remembered, at any up to that. */
export class Quantizer {
  #space;
  #history;
  #size; // of a row of n
  #kind; // of arrays of codes
  #center = null; // its address
  #analysis = null;
  #synthesis = null;
  #predict = null;
  #rows = null; // Table of what codes add to n

  /**
   * @param space    Workspace
   * @param tensors  (name) => tensor, or undefined
   * @param about    { stages: how many, history, hidden: columns of n, kind: of arrays of codes }
   */
  constructor(space, tensors, { stages, history, hidden, kind }) {
    this.#space = space;
    this.#history = history;
    this.#size = hidden;
    this.#kind = kind;
    const center = tensors("center")?.data ?? null;
    if (center) this.#center = space.keep(center);
    const [analysis, synthesis, predict] = ["analysis", "synthesis", "predict"].map(tensors);
    const coordinates = analysis?.shape[0] ?? hidden;
    const panels = (depth, columns, number, start) => new Panels(space, depth, columns, number, start);
    if (analysis) {
      const number = (row, column) => (column < coordinates ? analysis.data[column * hidden + row] : 0);
      this.#analysis = panels(hidden, rowSize(coordinates), number);
    }
    if (synthesis) this.#synthesis = panels(coordinates, hidden, (row, column) => synthesis.data[column * coordinates + row]);
    if (predict) this.#predict = panels(predict.shape[0], hidden, (row, column) => predict.data[row * hidden + column], center);
    const stage = (i) => new Stage(space, tensors(`codewords.${i}`), tensors(`order.${i}`)?.data ?? null, coordinates);
    this.stages = Array.from({ length: stages }, (_, i) => stage(i));
  }

  /** Make a table of what codes add to n; `reach`: the synthesis, (coordinates, hidden). */
  async tabulate(reach) {
    this.#rows = new Table(this.#space, await rowsOf(this.stages, reach), this.#size, null, true);
  }

  /** Of each stage. */
  get groups() {
    return this.stages.map((one) => one.groups);
  }

  /**
   * Codes of n, by the first `stages`: an array for each; and what both ends keep.
   *
   * @param n         (T, hidden); for the codec astra the block's input
   * @param past      what the block is predicted from, if it is
   * @param foreseen  what predict() made of that, if it was asked already
   */
  encode(n, past, stages = this.stages.length, foreseen = null) {
    const used = this.stages.slice(0, stages);
    const codes = used.map((stage) => new this.#kind(n.rows * stage.groups));
    const kept = this.#history ? new Matrix(new Float32Array(n.data.length), n.columns) : undefined;
    this.#chunks(n.rows, (first, count) => {
      const predicted = this.#predicted(past, foreseen, first, count);
      const [y, stride] = this.#coordinates(n.slice(first, first + count), predicted);
      used.forEach((stage, i) => {
        const found = stage.encode(y, stride, count);
        codes[i].set(this.#space.view(Int32Array, found, count * stage.groups), first * stage.groups);
        if (i + 1 < used.length) stage.subtract(found, y, stride, count);
      });
      if (kept) this.#keep(kept, predicted, codes, first, count);
    });
    return { codes, kept };
  }

  /** n^ of codes, and what both ends keep. */
  rebuild(codes, past, foreseen = null) {
    const tokens = codes[0].length / this.stages[0].groups;
    const found = () => new Matrix(new Float32Array(tokens * this.#size), this.#size);
    const n = found();
    const kept = this.#history ? (this.#history === UNLIMITED ? n : found()) : undefined;
    this.#chunks(tokens, (first, count) => {
      const predicted = this.#predicted(past, foreseen, first, count);
      const added = this.#added(codes, first, count);
      this.#write(n, first, count, predicted, added);
      if (kept && kept !== n) this.#write(kept, first, count, null, added);
    });
    return { n, kept };
  }

  /** The prediction: n^ where no codes came. */
  predict(past) {
    return this.#predict.times(past);
  }

  #chunks(tokens, work) {
    for (let first = 0; first < tokens; first += CHUNK) work(first, Math.min(CHUNK, tokens - first));
  }

  /** The address of the prediction, in rows of so many numbers (0: one row for all); null where there is none. */
  #predicted(past, foreseen, first, count) {
    if (!this.#predict) return this.#center && { address: this.#center, stride: 0 };
    if (foreseen) {
      const address = this.#space.room("predicted", this.#predict.width);
      this.#space.floats(address, count * foreseen.columns).set(foreseen.slice(first, first + count).data);
      return { address, stride: foreseen.columns };
    }
    const rows = this.#space.room("past", past.columns);
    this.#space.floats(rows, count * past.columns).set(past.slice(first, first + count).data);
    return { address: this.#predict.run(rows, past.columns, count, "predicted"), stride: this.#predict.width };
  }

  /** Address and stride of the coordinates of n less its prediction. */
  #coordinates(n, predicted) {
    const [space, size] = [this.#space, this.#size];
    const stride = rowSize(size);
    const room = space.room("residual", stride);
    const rows = space.floats(room, stride * n.rows);
    const less = predicted && space.floats(predicted.address, predicted.stride * (n.rows - 1) + size);
    for (let row = 0; row < n.rows; row++) {
      rows.set(n.slice(row, row + 1).data, row * stride);
      if (!less) continue;
      const [to, from] = [row * stride, row * predicted.stride];
      for (let j = 0; j < size; j++) rows[to + j] -= less[from + j];
    }
    if (!this.#analysis) return [room, stride];
    return [this.#analysis.run(room, stride, n.rows, "coordinates"), this.#analysis.width];
  }

  /** Address and stride of what codes add to the prediction. */
  #added(codes, first, count) {
    const [space, groups] = [this.#space, this.groups];
    if (this.#rows) {
      const address = this.#rows.run({ codes, groups, size: this.stages[0].size }, first, count, "added");
      return { address, stride: this.#rows.width };
    }
    const stride = rowSize(this.#synthesis?.depth ?? this.#size);
    const address = space.room("joined", stride);
    space.floats(address, stride * count).fill(0);
    codes.forEach((one, i) => {
      const some = space.room("codes", groups[i]);
      space.view(Int32Array, some, groups[i] * count).set(one.subarray(first * groups[i], (first + count) * groups[i]));
      this.stages[i].add(some, address, stride, count);
    });
    if (!this.#synthesis) return { address, stride };
    return { address: this.#synthesis.run(address, stride, count, "added"), stride: this.#synthesis.width };
  }

  #keep(kept, predicted, codes, first, count) {
    this.#write(kept, first, count, this.#history === UNLIMITED ? predicted : null, this.#added(codes, first, count));
  }

  /** Rows of a Matrix: the sum of what lies at two places. */
  #write(matrix, first, count, predicted, added) {
    const [space, size, { data }] = [this.#space, this.#size, matrix];
    const more = space.floats(added.address, added.stride * (count - 1) + size);
    const base = predicted && space.floats(predicted.address, predicted.stride * (count - 1) + size);
    for (let row = 0; row < count; row++) {
      const to = (first + row) * size;
      data.set(more.subarray(row * added.stride, row * added.stride + size), to);
      if (!base) continue;
      const from = row * predicted.stride;
      for (let j = 0; j < size; j++) data[to + j] += base[from + j];
    }
  }
}

/** The synthesis as what a coordinate adds to n: (coordinates, hidden). */
export function reachOf({ data, shape: [hidden, coordinates] }) {
  const found = new Float32Array(data.length);
  for (let i = 0; i < hidden; i++) for (let j = 0; j < coordinates; j++) found[j * hidden + i] = data[i * coordinates + j];
  return new Matrix(found, hidden);
}
