// The models that a tab offers: those that its host has files of. Loading one fetches its blocks, makes their
// graphs ready and measures them.

import { ModelError } from "./errors.js";
import { embedBody } from "./messages.js";
import { Matrix } from "./matrix.js";

const TIMES = ["encode_token_s", "decode_token_s", "project_token_s"];

/** A model that is ready. */
class Loaded {
  #http;

  constructor(http, manifest, model) {
    this.#http = http;
    this.manifest = manifest;
    this.model = model;
  }

  /** The rows that go into the first block, for positions `start` to `stop`: the host has the embeddings. */
  async embed(inputs, start, stop) {
    const data = await this.#http.post(`/tab/models/${this.manifest.id}/embed`, embedBody(inputs, start, stop));
    const { hidden_size: size } = this.manifest.spec;
    if (data.byteLength !== 4 * (stop - start) * size) throw new ModelError("the peer sent embedded rows of another size");
    return new Matrix(new Float32Array(data), size);
  }
}

export class Models {
  #http;
  #engine;
  #changed;
  #known = new Map(); // id -> { about, loading, loaded, timing, books, state, done, total, why }

  /**
   * @param http     json(path), post(path, bytes): to the host
   * @param engine   load(manifest, progress): a model; measure(model): { timing, books: id -> times of each rate }
   * @param changed  called when an offer, or what state() tells, is another
   */
  constructor({ http, engine, changed }) {
    this.#http = http;
    this.#engine = engine;
    this.#changed = changed;
  }

  /** Ask the host what it has; what is loaded stays. Whether anything is new or gone. */
  async refresh() {
    const list = await this.#http.json("/tab/models");
    const known = new Map(list.map((about) => [about.id, this.#known.get(about.id) ?? fresh(about)]));
    const same = known.size === this.#known.size && [...known.keys()].every((id) => this.#known.has(id));
    this.#known = known;
    if (!same) this.#changed();
    return !same;
  }

  /** What is told to other peers about one model; undefined for one that is not here. */
  offer(id) {
    const known = this.#known.get(id);
    return known && offerOf(known);
  }

  offers() {
    return [...this.#known.values()].filter((one) => one.state !== "failed").map(offerOf);
  }

  /** For people. */
  states() {
    return [...this.#known.values()].map(({ about, state, done = 0, total = about.bytes ?? 0, why = "", timing = null, place }) => ({
      id: about.id, name: about.name, state, done, total, why, tokenS: timing && timing.per_token_s, place,
    }));
  }

  /** The model, ready; an Error that says why not. */
  async load(id) {
    const known = this.#known.get(id);
    if (!known) throw new ModelError(`no model ${id.slice(0, 12)} here`, "unknown-model");
    known.loading ??= this.#load(known);
    const loading = known.loading;
    const loaded = await loading;
    if (!loaded.model.isLost) return loaded;
    if (known.loading === loading) known.loading = this.#load(known); // whoever asks first; the others take what it gets
    return known.loading;
  }

  async #load(known) {
    try {
      this.#say(known, { state: "loading", done: 0, why: "" });
      const manifest = await this.#http.json(`/tab/models/${known.about.id}`);
      const model = await this.#engine.load(manifest, (done, total) => this.#say(known, { done, total }));
      this.#say(known, { state: "measuring" });
      const { timing, books } = await this.#engine.measure(model);
      this.#say(known, { state: "ready", timing, books, place: model.place, why: model.why });
      return new Loaded(this.#http, manifest, model);
    } catch (error) {
      known.loading = null; // it can be tried again
      this.#say(known, { state: "failed", why: error.message });
      throw error;
    }
  }

  #say(known, news) {
    Object.assign(known, news);
    this.#changed();
  }
}

/** A model that was not loaded yet; the host says so if a tab cannot run it. */
const fresh = (about) => (about.why ? { about, state: "failed", why: about.why } : { about, state: "offered" });

function offerOf({ about, state, timing = null, books = {} }) {
  return {
    id: about.id, name: about.name, family: about.family, tasks: about.tasks, timing, loaded: state === "ready", precision: "fp32", divergence: 0, also: [],
    codebooks: about.codebooks.map(({ id, codec, rates, default_rate }) => {
      const times = Object.fromEntries(TIMES.map((name) => [name, books[id]?.[name] ?? []]));
      return { id, codec, rates, default_rate, ...times };
    }),
  };
}
