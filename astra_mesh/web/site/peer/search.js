// The nearest codewords of rows, stage after stage, by their coordinates.
//
// Coordinates lie as the first stage cuts them; each further stage gathers what the one before left of them.

import { Panels, wide } from "./workspace.js";
import { NONE, rowSize } from "./stage.js";

export class Search {
  #space;
  #stages;
  #analysis; // Panels; null: rows are coordinates
  #from; // of each stage, where its numbers are in the rows of the stage before; null: in the same places

  /**
   * @param space     where it lies
   * @param stages    Stages, at least one
   * @param analysis  tensor (coordinates, hidden), or null
   */
  constructor(space, stages, analysis) {
    this.#space = space;
    this.#stages = stages;
    const layouts = stages.map(layout);
    const number = (row, column) => {
      const coordinate = layouts[0][column] ?? NONE;
      return coordinate === NONE ? 0 : analysis.data[coordinate * analysis.shape[1] + row];
    };
    this.#analysis = analysis && new Panels(space, analysis.shape[1], rowSize(layouts[0].length), number);
    for (const stage of stages) stage.prepare();
    const given = Array.from({ length: stages[0].coordinates }, (_, i) => i);
    this.#from = layouts.map((one, i) => (i || !analysis ? between(space, layouts[i - 1] ?? given, one) : null));
  }

  /** Multiplications for one row. */
  static cost(stages, analysis) {
    return analysis.data.length + stages.reduce((sum, { columns, size }) => sum + columns * size, 0);
  }

  /** Numbers between rows of so many. */
  stride(hidden) {
    return this.#analysis ? wide(hidden) : rowSize(hidden);
  }

  /**
   * The codes of `count` rows by the first `used` stages.
   *
   * @param found  (stage, address of whole numbers, (count, groups)) => void
   */
  run(rows, stride, count, used, found) {
    const space = this.#space;
    let [at, apart] = [rows, stride];
    if (this.#analysis) [at, apart] = [this.#analysis.run(rows, stride, count, "coordinates"), this.#analysis.width];
    for (let i = 0; i < used; i++) {
      const stage = this.#stages[i];
      if (this.#from[i]) {
        const { address, width } = this.#from[i];
        const room = space.room(`cut ${i % 2}`, width);
        space.gather(at, 4 * apart, address, room, 4 * width, count, width);
        [at, apart] = [room, width];
      }
      const codes = stage.encode(at, apart, count);
      found(i, codes);
      if (i + 1 < used) stage.subtract(codes, at, apart, count);
    }
  }
}

/** The coordinates in a stage's rows: of its groups' places, then those that are in none. */
function layout(stage) {
  const found = Array.from({ length: stage.columns }, (_, place) => stage.coordinate(place));
  const grouped = new Set(found);
  for (let i = 0; i < stage.coordinates; i++) if (!grouped.has(i)) found.push(i);
  return found;
}

/** Where numbers in rows of one layout are in rows of the one before; null: in the same places. */
function between(space, before, after) {
  if (before.length === after.length && after.every((one, i) => one !== NONE && one === before[i])) return null;
  const places = new Map(before.map((coordinate, place) => [coordinate, place]));
  const place = (coordinate = NONE) => (coordinate === NONE ? before.length : places.get(coordinate)); // behind a row there is a zero
  const found = Int32Array.from({ length: rowSize(after.length) }, (_, i) => 4 * place(after[i]));
  return { address: space.keep(found), width: found.length };
}
