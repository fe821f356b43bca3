// The nearest codewords of rows, stage after stage, without coordinates: where codes are few this is less work.
//
// Which codeword is the nearest is told by its product with the coordinates less half its square. Coordinates are a
// product themselves, so one matrix makes the scores of all stages from a row. What a stage's codeword leaves less for
// the later stages is its product with theirs: a row of a table.

import { Matrix } from "./matrix.js";
import { NONE } from "./stage.js";
import { rowsOf } from "./tables.js";
import { Panels, wide } from "./workspace.js";

export class Scores {
  #space;
  #stages;
  #panels;
  #tables; // by stage and group: address of what its codewords add to the scores of all later stages

  constructor(space, stages, panels, tables) {
    this.#space = space;
    this.#stages = stages;
    this.#panels = panels;
    this.#tables = tables;
  }

  /** @param analysis  tensor (coordinates, hidden) */
  static async make(space, stages, { data, shape: [, hidden] }) {
    const words = (await rowsOf(stages, new Matrix(data, hidden))).flatMap(({ data: rows, rows: size }) => filled(rows, hidden, size));
    const starts = Float32Array.from(stages.flatMap((stage) => [...stage.starts]));
    const panels = new Panels(space, hidden, starts.length, (row, column) => words[column]?.[row] ?? 0, starts);
    const tables = [];
    for (let i = 0; i < stages.length; i++) {
      const later = reachOfAll(stages.slice(i + 1), stages[i].coordinates);
      tables.push(later.columns ? (await rowsOf([stages[i]], later)).map((one) => space.keep(one.data)) : []);
    }
    return new Scores(space, stages, panels, tables);
  }

  /** Multiplications and additions for one row. */
  static cost(stages, { shape: [, hidden] }) {
    const columns = stages.map(({ groups, size }) => groups * wide(size));
    const later = (i) => columns.slice(i + 1).reduce((sum, one) => sum + one, 0);
    return columns.reduce((sum, one, i) => sum + one * hidden + stages[i].groups * later(i), 0);
  }

  stride(hidden) {
    return wide(hidden);
  }

  /** As that of Search. */
  run(rows, stride, count, used, found) {
    const [space, { width }] = [this.#space, this.#panels];
    let at = this.#panels.run(rows, stride, count, "scores");
    let left = width;
    for (let i = 0; i < used; i++) {
      const { groups, size } = this.#stages[i];
      const codes = space.room("codes", groups);
      for (let group = 0; group < groups; group++, at += 4 * wide(size), left -= wide(size)) {
        space.largest(at, 4 * width, codes + 4 * group, 4 * groups, count, wide(size));
      }
      found(i, codes);
      if (i + 1 === used) return;
      this.#tables[i].forEach((table, group) => space.follow(table, 4 * left, codes + 4 * group, 4 * groups, at, 4 * width, count, left));
    }
  }
}

/** Rows of a matrix, and none behind them up to a multiple of eight. */
const filled = (data, columns, rows) =>
  Array.from({ length: wide(rows) }, (_, i) => (i < rows ? data.subarray(i * columns, (i + 1) * columns) : null));

/** What a coordinate adds to the scores of stages, where it is subtracted: (coordinates, columns). */
function reachOfAll(stages, coordinates) {
  const columns = stages.reduce((sum, { groups, size }) => sum + groups * wide(size), 0);
  const found = new Float32Array(coordinates * columns);
  let begin = 0;
  for (const stage of stages) {
    for (let group = 0; group < stage.groups; group++, begin += wide(stage.size)) {
      for (let i = 0; i < stage.width; i++) {
        const coordinate = stage.coordinate(group * stage.width + i);
        if (coordinate === NONE) continue;
        for (let word = 0; word < stage.size; word++) {
          found[coordinate * columns + begin + word] = -stage.words[(group * stage.size + word) * stage.width + i];
        }
      }
    }
  }
  return new Matrix(found, columns);
}
