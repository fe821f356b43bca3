// The models that a tab offers: those that its host has files of. Loading one fetches its blocks, makes their
// graphs ready and measures them.

import { FetchError, ModelError, UnknownFileError } from "./errors.js";
import { embedBody, sanitise } from "./messages.js";
import { Matrix } from "./matrix.js";
import { bounded, differ, learned, shareS, slowed } from "./pace.js";

const AGAIN_MS = 30_000; // after which a model is offered again whose files did not arrive
const MEASURE_AGAIN_MS = 20_000; // after a measurement that says little
const MEASURED_AGAIN = 5; // times at most
const WITHHELD = ["failed", "interrupted"]; // states in which a model is not offered
const TIMES = ["encode_token_s", "decode_token_s", "project_token_s"];

/** A model that is ready. */
class Loaded {
  #http;
  #seal;

  constructor(http, seal, manifest, model) {
    this.#http = http;
    this.#seal = seal;
    this.manifest = manifest;
    this.model = model;
  }

  /** The rows that go into the first block, for positions `start` to `stop`: the host has the embeddings. */
  async embed(inputs, start, stop) {
    const data = await this.#http.post(`/tab/models/${this.manifest.id}/embed`, embedBody(inputs, start, stop), this.#seal());
    const { hidden_size: size } = this.manifest.spec;
    if (data.byteLength !== 4 * (stop - start) * size) throw new ModelError("the peer sent embedded rows of another size");
    return new Matrix(new Float32Array(data.slice().buffer), size);
  }
}

export class Models {
  #http;
  #seal;
  #engine;
  #changed;
  #worked;
  #timers = new Set();
  #known = new Map(); // id -> { about, loading, model, timing, books, state, done, total, why, againAt, pace, felt, shares }
  #busy = 0; // models that are loaded or measured
  #running;
  #replaced = []; // models that no request is given any more

  /**
   * @param http     json(path), post(path, bytes, point): to the host
   * @param engine   load(manifest, progress, insist): a model, whose files it gets by insist(() => a promise of one); measure(model, worked, again), compare(model, timing, undisturbed): as in
   *                 measure.js
   * @param changed  called when an offer, or what state() tells, is another
   * @param worked   a number that changes when a request computes
   * @param running  () => whether a request is here, which may have a model
   * @param seal     the host's point: what is asked of it about requests is sealed
   */
  constructor({ http, engine, changed, worked = () => 0, running = () => false, seal = () => null }) {
    this.#http = http;
    this.#seal = seal;
    this.#engine = engine;
    this.#changed = changed;
    this.#worked = worked;
    this.#running = running;
  }

  /** Measure no more. */
  close() {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }

  /**
   * Ask the host what it has; what is loaded stays. A model whose files did not arrive is offered again, at once if
   * `joined` anew. Whether anything is new or gone.
   */
  async refresh(joined = false) {
    const list = await this.#http.json("/tab/models");
    const old = ({ id, codebooks }) => {
      const one = this.#known.get(id);
      if (one && namesOf(one.about.codebooks) !== namesOf(codebooks)) return null; // its files are others now
      return one?.state === "interrupted" && (joined || Date.now() >= one.againAt) ? null : one;
    };
    const known = new Map(list.map((about) => [about.id, old(about) ?? fresh(about)]));
    const same = known.size === this.#known.size && [...known].every(([id, one]) => this.#known.get(id) === one);
    for (const [id, one] of this.#known) if (known.get(id) !== one) this.#drop(one);
    this.#known = known;
    this.tidy();
    if (!same) this.#changed();
    return !same;
  }

  #drop(known) {
    if (known.model) this.#replaced.push(known.model);
    known.model = null;
  }

  /** Models that were replaced give their memory back, once nothing computes with them: the runtime's does not go by itself. */
  async tidy() {
    if (this.#busy || this.#running()) return;
    for (const model of this.#replaced.splice(0)) await model.release().catch(() => {}); // of a GPU that is lost, say
  }

  /** What is told to other peers about one model; undefined for one that is not here. */
  offer(id) {
    const known = this.#known.get(id);
    return known && offerOf(known);
  }

  offers() {
    return [...this.#known.values()].filter((one) => !WITHHELD.includes(one.state)).map(offerOf);
  }

  /** For people. */
  states() {
    return [...this.#known.values()].map(({ about, state, model, done = 0, total = about.bytes ?? 0, why = "", timing = null, place, pace }) => ({
      id: about.id, name: sanitise(about.name), state, done, total, why, tokenS: timing && pace * timing.per_token_s, place,
      coming: (state === "ready" && model.coming) || [],
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
    if (known.loading === loading) { // whoever asks first; the others take what it gets
      this.#drop(known);
      known.loading = this.#load(known);
    }
    return known.loading;
  }

  async #load(known) {
    this.#busy++;
    try {
      this.#say(known, { state: "loading", done: 0, total: 0, why: "" });
      const manifest = await this.#http.json(`/tab/models/${known.about.id}`);
      const model = await this.#engine.load(manifest, (done, total) => this.#say(known, { done, total }), (get) => this.#insist(known, get));
      model.tell = this.#changed;
      this.#say(known, { state: "measuring" });
      const { timing, books, sure } = await this.#engine.measure(model, this.#worked);
      this.#say(known, { state: "ready", model, timing, books, place: model.place, why: model.why, ...AS_MEASURED });
      if (sure === false) this.#measureLater(known, model, MEASURED_AGAIN);
      return new Loaded(this.#http, this.#seal, manifest, model);
    } catch (error) {
      known.loading = null; // it can be tried again
      this.#say(known, error instanceof FetchError ? interruptedBy(error) : { state: "failed", why: error.message });
      throw error;
    } finally {
      this.#busy--;
      this.tidy();
    }
  }

  /**
   * A file of a model. A host that was started again, or made files of other models since, makes those of this one when it is
   * asked for the manifest. If they are others now, what is loaded can get no more of its own: it is loaded anew.
   */
  async #insist(known, get) {
    const unlessUnknown = (error) => {
      if (!(error instanceof UnknownFileError)) throw error;
      return null;
    };
    const found = await get().catch(unlessUnknown);
    if (found !== null) return found;
    await this.#http.json(`/tab/models/${known.about.id}`);
    return (await get().catch(unlessUnknown)) ?? this.#outdated(known);
  }

  #outdated(known) {
    const error = new FetchError("the peer that serves this page made the model's files anew, and they are others");
    if (known.state === "ready") {
      known.loading = null;
      this.#drop(known);
      this.#say(known, interruptedBy(error));
    }
    throw error;
  }

  /** A figure that something disturbed does not stay: later it is measured again, while no request computes. */
  #measureLater(known, model, left) {
    const timer = setTimeout(async () => {
      this.#timers.delete(timer);
      if (this.#known.get(known.about.id) !== known || known.model !== model || model.isLost) return;
      this.#busy++;
      const found = await this.#engine.measure(model, this.#worked, true).catch(() => null);
      this.#busy--;
      this.tidy();
      if (found !== null && known.model === model) this.#say(known, { timing: found.timing, books: found.books, ...AS_MEASURED });
      if (!found?.sure && left > 1) this.#measureLater(known, model, left - 1);
    }, MEASURE_AGAIN_MS);
    this.#timers.add(timer);
  }

  // --- how fast it is now ---------------------------------------------------------------------------

  /**
   * Look how fast the models that are ready run now, as long as nothing else does, and tell others if two looks say that it
   * changed. Whether none of them has to be looked at again soon.
   *
   * @param idle  () => whether no request is here; also asked while it looks, and then a request is let first
   */
  async feel(idle) {
    const worked = this.#worked();
    const undisturbed = () => idle() && !this.#busy && this.#worked() === worked;
    for (const known of this.#known.values()) {
      if (known.state === "ready" && !known.model.isLost && undisturbed()) await this.#feel(known, undisturbed);
    }
    return undisturbed() && ![...this.#known.values()].some((one) => one.felt);
  }

  async #feel(known, undisturbed) {
    const { timing } = known;
    const ratio = await this.#engine.compare(known.model, timing, undisturbed).catch(() => null);
    if (ratio === null || known.timing !== timing) return;
    const pace = bounded(ratio);
    if (!differ(pace, known.pace)) known.felt = null;
    else if (known.felt === null || differ(pace, known.felt)) known.felt = pace;
    else this.#changePace(known, pace);
  }

  /** A shard of this tab took so long to compute: told at once where shares contradict what it tells of itself. */
  took(id, layout, shard, seconds) {
    const known = this.#known.get(id);
    if (known?.state !== "ready") return;
    known.shares = learned(known.shares, known.pace * shareS(known.timing, layout, shard), seconds);
    if (differ(known.shares, 1)) this.#changePace(known, bounded(known.shares * known.pace));
  }

  #changePace(known, pace) {
    this.#say(known, { ...AS_MEASURED, pace });
  }

  #say(known, news) {
    Object.assign(known, news);
    this.#changed();
  }
}

/** A pace of which nothing was seen: `felt` by one look, `shares` showed beside what is told. */
const AS_MEASURED = { pace: 1, felt: null, shares: 1 };

const interruptedBy = (error) => ({ state: "interrupted", why: error.message, againAt: Date.now() + AGAIN_MS });

/** A model that was not loaded yet; the host says so if a tab cannot run it. */
const fresh = (about) => ({ about, ...AS_MEASURED, ...(about.why ? { state: "failed", why: about.why } : { state: "offered" }) });

const namesOf = (codebooks = []) => codebooks.map(({ id }) => id).sort().join();

function offerOf({ about, state, timing = null, books = {}, pace }) {
  return {
    id: about.id, name: about.name, family: about.family, tasks: about.tasks, timing: slowed(timing, pace), loaded: state === "ready", precision: "fp32", divergence: 0, also: [],
    codebooks: about.codebooks.map(({ id, codec, rates, default_rate }) => {
      const times = Object.fromEntries(TIMES.map((name) => [name, books[id]?.[name] ?? []]));
      return { id, codec, rates, default_rate, ...slowed(times, pace) };
    }),
  };
}
