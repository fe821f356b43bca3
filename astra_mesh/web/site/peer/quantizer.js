// The quantizer of one block at work, as astra_mesh/quant/coders.py: n to codes, and back to n^.
//
// Of D x D products encoding takes one for the prediction and one into coordinates, or into scores where codes are few;
// decoding one for the prediction. What codes add is looked up in a table where it is small enough, else joined and
// multiplied. Predictions are known before a block's input or its codes are: who has them already gives them.

import { Matrix } from "./matrix.js";
import { Scores } from "./scores.js";
import { Search } from "./search.js";
import { Stage, rowSize } from "./stage.js";
import { Table, rowsOf } from "./tables.js";
import { CHUNK, Panels, copyRows, pasteRows, wide } from "./workspace.js";

const UNLIMITED = -1;

/** Of one block, at one number of stages or, where nothing is remembered, at any up to that. */
export class Quantizer {
  #space;
  #history;
  #size; // of a row of n
  #kind; // of arrays of codes
  #center = null; // its address
  #analysis; // tensor
  #synthesis = null;
  #predict = null;
  #search; // Search or Scores
  #rows = null; // Table of what codes add to n

  /** See `make`. */
  constructor(space, tensors, { stages, history, hidden, kind }) {
    this.#space = space;
    this.#history = history;
    this.#size = hidden;
    this.#kind = kind;
    const center = tensors("center")?.data ?? null;
    const [analysis, synthesis, predict] = ["analysis", "synthesis", "predict"].map((name) => tensors(name) ?? null);
    const coordinates = analysis?.shape[0] ?? hidden;
    const panels = (depth, number, start) => new Panels(space, depth, hidden, number, start);
    if (center) this.#center = this.#keepRow(center);
    this.#analysis = analysis;
    if (synthesis) this.#synthesis = panels(coordinates, (row, column) => synthesis.data[column * coordinates + row]);
    if (predict) this.#predict = panels(predict.shape[0], (row, column) => predict.data[row * hidden + column], center);
    const stage = (i) => new Stage(space, tensors(`codewords.${i}`), tensors(`order.${i}`)?.data ?? null, coordinates);
    this.stages = Array.from({ length: stages }, (_, i) => stage(i));
  }

  /**
   * @param space    Workspace
   * @param tensors  (name) => tensor, or undefined
   * @param about    { stages: how many, history, hidden: columns of n, kind: of arrays of codes }
   */
  static async make(space, tensors, about) {
    const found = new Quantizer(space, tensors, about);
    const [stages, analysis] = [found.stages, found.#analysis];
    // Where nothing is remembered, requests may want fewer stages: scores of the others would be made in vain.
    const scores = analysis && about.history && Scores.cost(stages, analysis) < Search.cost(stages, analysis);
    found.#search = scores ? await Scores.make(space, stages, analysis) : new Search(space, stages, analysis);
    found.#analysis = null;
    return found;
  }

  /** The address of a row, with zeros behind it. */
  #keepRow(numbers) {
    const address = this.#space.reserve(4 * wide(numbers.length));
    this.#space.floats(address, numbers.length).set(numbers);
    return address;
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
   * @param foreseen  what predict() made of that, if it was asked already; what is kept may take its place
   */
  encode(n, past, stages = this.stages.length, foreseen = null) {
    const codes = this.stages.slice(0, stages).map((stage) => new this.#kind(n.rows * stage.groups));
    const kept = this.#history ? this.#room(n.rows, this.#history === UNLIMITED ? foreseen : null) : undefined;
    this.#chunks(n.rows, (first, count) => {
      const predicted = this.#predicted(past, foreseen, first, count);
      const [rows, stride] = this.#residual(n.slice(first, first + count), predicted);
      this.#search.run(rows, stride, count, stages, (stage, found) => {
        const { groups } = this.stages[stage];
        codes[stage].set(this.#space.view(Int32Array, found, count * groups), first * groups);
      });
      if (kept) this.#sum(kept, codes, first, count, this.#history === UNLIMITED ? predicted : null);
    });
    return { codes, kept };
  }

  /** n^ of codes, which takes the place of what was foreseen, and what both ends keep. */
  rebuild(codes, past, foreseen = null) {
    const tokens = codes[0].length / this.stages[0].groups;
    const n = this.#room(tokens, foreseen);
    const kept = this.#history ? (this.#history === UNLIMITED ? n : this.#room(tokens, null)) : undefined;
    this.#chunks(tokens, (first, count) => {
      this.#sum(n, codes, first, count, this.#predicted(past, foreseen, first, count));
      if (kept && kept !== n) this.#sum(kept, codes, first, count, null);
    });
    return { n, kept };
  }

  /** The prediction: n^ where no codes came. */
  predict(past) {
    return this.#predict.times(past);
  }

  /** A Matrix of so many rows of n: that one, if it is given. */
  #room(rows, given) {
    return given ?? new Matrix(new Float32Array(rows * this.#size), this.#size);
  }

  #chunks(tokens, work) {
    for (let first = 0; first < tokens; first += CHUNK) work(first, Math.min(CHUNK, tokens - first));
  }

  /** Address and stride of the prediction (0: one row for all); null where there is none. */
  #predicted(past, foreseen, first, count) {
    if (!this.#predict) return this.#center && { address: this.#center, stride: 0 };
    const stride = this.#predict.width;
    if (foreseen) return { address: this.#pasted("predicted", foreseen.slice(first, first + count), stride), stride };
    const rows = this.#pasted("past", past.slice(first, first + count), past.columns);
    return { address: this.#predict.run(rows, past.columns, count, "predicted"), stride };
  }

  /** The address of a room with these rows. */
  #pasted(name, rows, stride) {
    const address = this.#space.room(name, stride);
    pasteRows(this.#space, rows, address, stride);
    return address;
  }

  /** Address and stride of n less its prediction. */
  #residual(n, predicted) {
    const stride = this.#search.stride(this.#size);
    const rows = this.#pasted("residual", n, stride);
    if (predicted) this.#space.less(rows, 4 * stride, predicted.address, 4 * predicted.stride, n.rows, wide(this.#size));
    return [rows, stride];
  }

  /** Rows of a Matrix become what codes add to others, or to nothing. */
  #sum(matrix, codes, first, count, others) {
    const { address, stride } = this.#rows ? this.#looked(codes, first, count, others) : this.#joined(codes, first, count, others);
    copyRows(this.#space.floats(address, stride * count), stride, matrix.data, first, this.#size);
  }

  #looked(codes, first, count, others) {
    const coded = { codes, groups: this.groups, size: this.stages[0].size };
    return { address: this.#rows.run(coded, first, count, "added", others), stride: this.#rows.width };
  }

  #joined(codes, first, count, others) {
    const space = this.#space;
    let stride = rowSize(this.#synthesis?.depth ?? this.#size);
    let address = space.room("joined", stride);
    space.floats(address, stride * count).fill(0);
    codes.forEach((one, i) => {
      const { groups } = this.stages[i];
      const some = space.room("codes", groups);
      space.view(Int32Array, some, groups * count).set(one.subarray(first * groups, (first + count) * groups));
      this.stages[i].add(some, address, stride, count);
    });
    if (this.#synthesis) [address, stride] = [this.#synthesis.run(address, stride, count, "added"), this.#synthesis.width];
    if (others) space.plus(address, 4 * stride, others.address, 4 * others.stride, count, wide(this.#size));
    return { address, stride };
  }
}

/** The synthesis as what a coordinate adds to n: (coordinates, hidden). */
export function reachOf({ data, shape: [hidden, coordinates] }) {
  const found = new Float32Array(data.length);
  for (let i = 0; i < hidden; i++) for (let j = 0; j < coordinates; j++) found[j * hidden + i] = data[i * coordinates + j];
  return new Matrix(found, hidden);
}
