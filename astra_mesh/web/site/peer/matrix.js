// Rows of numbers.

/** A matrix: `rows` x `columns` numbers, row after row. */
export class Matrix {
  constructor(data, columns) {
    this.data = data;
    this.columns = columns;
  }

  get rows() {
    return this.data.length / this.columns;
  }

  /** Rows `start` to `stop`, sharing the numbers. */
  slice(start, stop = this.rows) {
    return new Matrix(this.data.subarray(start * this.columns, stop * this.columns), this.columns);
  }
}
