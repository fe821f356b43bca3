// How far everything is that a model needs from the host: the runtime and the model's files, each counted once.

/**
 * The rates of a codebook that a tab uses at first: `whole`, which requests without a wish use, so that it wants all blocks, and
 * `measured`, of which it wants the last one.
 */
export function firstStages({ able, rates, first_rate: rate }) {
  return { whole: able[rates.indexOf(rate)], measured: [...new Set([able[0], able.at(-1)])] };
}

const sizesOf = (files) => new Map(files.map(({ sha256, bytes }) => [sha256, bytes]));

/** The files that a model needs until it is ready: hash -> bytes. */
export function filesOf({ graphs, weights, codebooks }, names) {
  const wanted = [...names.filter((name) => graphs[name]).map((name) => graphs[name]), ...weights];
  for (const book of codebooks) {
    const { whole, measured } = firstStages(book);
    const level = (stages) => book.levels[book.history ? stages : book.able.at(-1)];
    wanted.push(...level(whole), ...measured.map((stages) => level(stages).at(-1)));
  }
  return sizesOf(wanted);
}

export class Fetching {
  #sizes;
  #done = new Map(); // by hash
  #runtime = { done: 0, total: 0 };
  #tell;

  /** @param tell  told (done, total), in bytes as they are sent, first when the size of all is known */
  constructor(sizes, tell) {
    this.#sizes = sizes;
    this.#tell = tell;
  }

  runtime(done, total) {
    this.#runtime = { done, total };
    this.#told();
  }

  /** So many bytes of a file are here; never fewer than before. What was not counted on changes nothing. */
  file(hash, done) {
    if (!this.#sizes.has(hash) || done <= (this.#done.get(hash) ?? 0)) return;
    this.#done.set(hash, done);
    this.#told();
  }

  #told() {
    const sum = (numbers) => [...numbers].reduce((all, one) => all + one, 0);
    this.#tell(this.#runtime.done + sum(this.#done.values()), this.#runtime.total + sum(this.#sizes.values()));
  }
}

/** How far a rate is that is fetched in the background: `state` is { bits, done, total }, in bytes of its files. */
export class Further extends Fetching {
  state;

  /** @param tell  called when `state` is another */
  constructor(bits, files, tell) {
    super(sizesOf(files), (done, total) => {
      this.state = { bits, done, total };
      tell();
    });
    this.state = { bits, done: 0, total: files.reduce((sum, one) => sum + one.bytes, 0) };
  }
}
