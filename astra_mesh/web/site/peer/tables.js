// Tables that turn the codes of a block into its keys and values: a row for each codeword, in which the projection
// is already applied (astra_mesh/quant/vector.py). Made in the tab, because they are many times as large as the
// codebook that they are made of.
//
// Only for codebooks without history. With one, a table has the rows of all blocks that came before, and their sum
// takes as long as the products that it saves (peers/phone/README.md has figures).

import { fromHalf } from "./half.js";
import { Matrix } from "./runtime.js";

export const TABLE_BYTES = 2 ** 28; // of all blocks, at one number of stages; where they would be larger, tabs project

const AT_ONCE = 4; // rows that are added in one pass over the sum

/** Tensors of a manifest's description, by name: Float32Array, or Int32Array, and their shapes. */
export function tensorsOf({ tensors }, bytes) {
  const found = {};
  for (const { name, dtype, shape, offset } of tensors) {
    const count = shape.reduce((product, size) => product * size, 1);
    const view = new DataView(bytes.buffer, bytes.byteOffset + offset);
    const read = {
      f2: (i) => fromHalf(view.getUint16(2 * i, true)),
      f4: (i) => view.getFloat32(4 * i, true),
      i4: (i) => view.getInt32(4 * i, true),
    }[dtype];
    const data = new (dtype === "i4" ? Int32Array : Float32Array)(count);
    for (let i = 0; i < count; i++) data[i] = read(i);
    found[name] = { data, shape };
  }
  return found;
}

function transposed({ data, shape: [rows, columns] }) {
  const found = new Float32Array(data.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) found[j * rows + i] = data[i * columns + j];
  return new Matrix(found, rows);
}

/** Bytes of a table of so many codes in one block. */
export const tableBytes = (codes, size, columns) => 4 * codes * size * columns;

/** Sums of a block's rows. */
export class Table {
  #rows;
  #offset;
  #size;

  /**
   * stages: whose codes it has, or fewer; rows: (codes * size, columns); offset: (columns,), to which they are added;
   * size: codewords of each code
   */
  constructor(stages, rows, offset, size) {
    this.stages = stages;
    this.#rows = rows;
    this.#offset = offset;
    this.#size = size;
  }

  /**
   * Make one.
   *
   * @param tensors  of the block's quantizer, by name
   * @param stages   how many
   * @param project  (n) => raw keys and values, a bias included
   * @param product  (a, b) => their product
   */
  static async make(tensors, stages, project, product) {
    const toNumbers = transposed(tensors.synthesis); // (R, D)
    const columns = toNumbers.columns;
    const inputs = new Float32Array((toNumbers.rows + 2) * columns);
    inputs.set(toNumbers.data);
    inputs.set(tensors.center.data, toNumbers.rows * columns); // and a row of zeros, which gives the bias alone
    const raw = await project(new Matrix(inputs, columns));
    const width = raw.columns;
    const bias = raw.slice(-1 + raw.rows).data;
    const offset = Float32Array.from(raw.slice(raw.rows - 2, raw.rows - 1).data);
    const reach = raw.slice(0, toNumbers.rows); // each coordinate's share of keys and values
    for (let i = 0; i < reach.data.length; i++) reach.data[i] -= bias[i % width];
    const parts = [];
    for (let stage = 0; stage < stages; stage++) parts.push(...(await stageRows(tensors, stage, reach, product)));
    const rows = new Float32Array(parts.reduce((sum, one) => sum + one.data.length, 0));
    let at = 0;
    for (const part of parts) {
      rows.set(part.data, at);
      at += part.data.length;
    }
    return new Table(stages, new Matrix(rows, width), offset, tensors["codewords.0"].shape[1]);
  }

  /** Raw keys and values of codes: one array for each stage, token after token, with so many `groups`. */
  sum(codes, groups) {
    const { data, columns } = this.#rows;
    const tokens = codes[0].length / groups[0];
    const found = new Float32Array(tokens * columns);
    const places = new Int32Array(groups.slice(0, codes.length).reduce((sum, one) => sum + one, 0));
    for (let token = 0; token < tokens; token++) {
      const begin = token * columns;
      let count = 0;
      codes.forEach((one, stage) => {
        for (let group = 0; group < groups[stage]; group++, count++) {
          places[count] = (count * this.#size + one[token * groups[stage] + group]) * columns;
        }
      });
      found.set(this.#offset, begin);
      let at = 0;
      for (; at + AT_ONCE <= count; at += AT_ONCE) {
        const [a, b, c, d] = [places[at], places[at + 1], places[at + 2], places[at + 3]];
        for (let j = 0; j < columns; j++) found[begin + j] += data[a + j] + data[b + j] + data[c + j] + data[d + j];
      }
      for (; at < count; at++) {
        const a = places[at];
        for (let j = 0; j < columns; j++) found[begin + j] += data[a + j];
      }
    }
    return new Matrix(found, columns);
  }
}

/** The rows of one stage: a matrix for each group. */
async function stageRows(tensors, stage, reach, product) {
  const { data, shape } = tensors[`codewords.${stage}`];
  const [groups, size, width] = shape;
  const order = tensors[`order.${stage}`]?.data;
  const found = [];
  for (let group = 0; group < groups; group++) {
    const words = new Matrix(data.subarray(group * size * width, (group + 1) * size * width), width);
    const part = new Float32Array(width * reach.columns);
    for (let i = 0; i < width; i++) {
      const coordinate = order ? order[group * width + i] : group * width + i;
      if (coordinate < reach.rows) part.set(reach.slice(coordinate, coordinate + 1).data, i * reach.columns); // else: none
    }
    found.push(await product(words, new Matrix(part, reach.columns)));
  }
  return found;
}
