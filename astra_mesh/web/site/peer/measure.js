// How fast this tab runs a model, as astra_mesh/peer/measure.py and code_times.py: what planners are told.

import { firstStages } from "./fetching.js";
import { Matrix } from "./matrix.js";
import { causalKeys } from "./pace.js";

const SIZES = [8, 64, 256]; // tokens
const BLOCKS = 3; // that are run in turn: more would only take longer
const CODED = 64; // tokens that are coded
const WINDOW_MS = 40; // that a measurement takes at least
const CHECKED = 64; // tokens that figures are checked with ...
const CHECKS = 3; // in so many calls at least ...
const CHECK_MS = 20; // and for so long: a processor that slept begins slowly
const WARM_MS = 300; // WebAssembly is compiled again while it runs, for speed
const LEAST_S = 1e-9;
const ROUNDS = 5; // of a block's sizes, at most: until two agree
const AGREE = 1.25; // times that the same takes in two rounds that agree
const LEAST_SHARE = 0.1; // of the time of the largest size, that grows with the tokens: less is not believed

/** A request computed while it was measured. */
export class DisturbedError extends Error {}

const now = () => performance.now();
const random = (rows, columns) => new Matrix(Float32Array.from({ length: rows * columns }, () => 2 * Math.random() - 1), columns);

/** Let what waits be heard: computing in WebAssembly never does, and who is silent for long is given up. */
const pause = () => new Promise((done) => setTimeout(done));

/** Seconds of a call when it is called on and on: the better of two windows. */
async function steadyS(work) {
  let best = Infinity;
  for (let i = 0; i < 2; i++) {
    const began = now();
    let calls = 0;
    let took = 0;
    while (took < WINDOW_MS) {
      await work();
      calls += 1;
      took = now() - began;
    }
    best = Math.min(best, took / calls / 1000);
    await pause();
  }
  return Math.max(best, LEAST_S);
}

async function blockS(model, tokens) {
  const x = random(tokens, model.spec.hidden_size);
  let turn = 0;
  return steadyS(() => model.runBlock(turn++ % Math.min(BLOCKS, model.blocks), x));
}

/** Pairs of a token with one that its query is multiplied with. */
const pairsOf = (spec, tokens) => tokens * (spec.causal ? causalKeys(tokens) : tokens);

/**
 * How many times what `timing` says a block takes now: the best of some calls, three blocks or 20 ms of work; null if
 * something disturbed it.
 *
 * @param undisturbed  () => whether nothing else runs
 */
export async function compare(model, timing, undisturbed) {
  const { spec } = model;
  const tokens = Math.min(CHECKED, spec.max_tokens);
  const said = timing.fixed_s + timing.per_token_s * tokens + timing.per_pair_s * pairsOf(spec, tokens);
  const x = random(tokens, spec.hidden_size);
  const began = now();
  let best = Infinity;
  for (let call = 0; call < CHECKS || now() - began < CHECK_MS; call++) {
    const before = now();
    await model.runBlock(call % Math.min(BLOCKS, model.blocks), x);
    best = Math.min(best, now() - before);
    await pause();
    if (!undisturbed()) return null;
  }
  return Math.max(best / 1000, LEAST_S) / Math.max(said, LEAST_S);
}

/** Solves a small system of equations; null where it has no one solution. */
function solved(matrix, values) {
  const rows = matrix.map((row, i) => [...row, values[i]]);
  for (let i = 0; i < rows.length; i++) {
    const best = rows.slice(i).reduce((a, b) => (Math.abs(b[i]) > Math.abs(a[i]) ? b : a));
    if (Math.abs(best[i]) < 1e-12) return null;
    rows.splice(rows.indexOf(best), 1);
    rows.splice(i, 0, best);
    for (let j = 0; j < rows.length; j++) {
      if (j === i) continue;
      const factor = rows[j][i] / best[i];
      rows[j] = rows[j].map((value, k) => value - factor * best[k]);
    }
  }
  return rows.map((row, i) => row.at(-1) / row[i]);
}

/** Non-negative fixed, per-token and per-pair seconds through measured points: least squares of relative errors. */
export function fit(sizes, pairs, times) {
  const columns = sizes.map((size, i) => [1, size, pairs[i]].map((value) => value / times[i]));
  let kept = [0, 1, 2].slice(0, sizes.length);
  const solution = [0, 0, 0];
  while (kept.length) {
    const dot = (a, b) => columns.reduce((sum, row) => sum + row[a] * (b === null ? 1 : row[b]), 0);
    const scale = kept.map((a) => Math.sqrt(dot(a, a)));
    const matrix = kept.map((a, i) => kept.map((b, j) => dot(a, b) / scale[i] / scale[j]));
    const found = solved(matrix, kept.map((a, i) => dot(a, null) / scale[i]))?.map((value, i) => value / scale[i]);
    if (found && Math.min(...found) >= 0) {
      kept.forEach((a, i) => (solution[a] = found[i]));
      break;
    }
    const worst = found ? found.indexOf(Math.min(...found)) : kept.length - 1;
    kept = kept.filter((_, i) => i !== worst);
  }
  return solution;
}

/**
 * Fixed, per-token and per-pair seconds: a token is never free. `sound`: whether the fit says so by itself; else the
 * largest and the smallest size say what a token takes.
 */
export function parts(sizes, pairs, times) {
  const [size, time] = [sizes.at(-1), times.at(-1)];
  if (sizes.length === 1) return { found: [0, time / size, 0], sound: true };
  const found = fit(sizes, pairs, times);
  const least = (LEAST_SHARE * time) / size;
  if (found[1] >= least) return { found, sound: true };
  const slope = (time - times[0]) / (size - sizes[0]);
  const perToken = Math.max(slope, least);
  return { found: [Math.max(time - perToken * size, 0), perToken, 0], sound: slope < least };
}

/**
 * The parts of a block's time, from the best of some rounds; `sure`: two of them agreed and no request computed meanwhile.
 *
 * @param round   () => Promise of the seconds of each size
 * @param worked  () => a number that changes when a request computes
 */
export async function inRounds(sizes, pairs, round, worked) {
  let best = sizes.map(() => Infinity);
  for (let i = 0; i < ROUNDS; i++) {
    const before = worked();
    const times = await round();
    const agree = times.every((time, j) => time <= AGREE * best[j] && best[j] <= AGREE * time);
    best = best.map((time, j) => Math.min(time, times[j]));
    const { found, sound } = parts(sizes, pairs, best);
    if (agree && sound && worked() === before) return { found, sure: true };
  }
  return { found: parts(sizes, pairs, best).found, sure: false };
}

/** Seconds per token of encoding and of decoding one block at a number of stages. */
async function codesS(model, codec, stages) {
  const block = model.blocks - 1;
  const tokens = Math.min(CODED, model.spec.max_tokens);
  await codec.prepareBlock(stages, block);
  const x = random(tokens, model.spec.hidden_size);
  const n = await model.normalize(x);
  const columns = codec.pastColumns(block);
  const past = columns ? random(tokens, columns) : null;
  const { codes } = await codec.encodeOne(block, stages, x, n, past);
  return {
    encode: (await steadyS(() => codec.encodeOne(block, stages, x, n, past))) / tokens,
    decode: (await steadyS(() => codec.decodeOne(block, codes, past, 0))) / tokens,
  };
}

/**
 * The times of a codebook's rates: those of the smallest and the largest are measured, the others lie between. The
 * rate that requests use without a wish is then ready for the first one.
 */
async function bookTimes(model, about) {
  const codec = await model.codec(about.codec, about.id, []);
  await codec.prepare(firstStages(about).whole);
  const [low, high] = [codec.able[0], codec.able.at(-1)];
  const least = await codesS(model, codec, low);
  const most = low === high ? least : await codesS(model, codec, high);
  const span = codec.rate(high) - codec.rate(low) || 1;
  const between = (name) =>
    codec.able.map((stages) => least[name] + ((codec.rate(stages) - codec.rate(low)) / span) * Math.max(most[name] - least[name], 0));
  return { encode_token_s: between("encode"), decode_token_s: between("decode") };
}

/**
 * What a model takes here: `timing`; `books`: by codebook, seconds per token and block of each rate; `sure`: whether
 * nothing disturbed it.
 *
 * @param worked  () => a number that changes when a request computes
 * @param again   it was measured before: a DisturbedError as soon as a request computes, which shall not wait
 */
export async function measure(model, worked = () => 0, again = false) {
  const { spec } = model;
  const began = worked();
  const check = () => {
    if (again && worked() !== began) throw new DisturbedError("a request computes");
  };
  const until = now() + WARM_MS;
  const warm = random(Math.min(64, spec.max_tokens), spec.hidden_size);
  while (now() < until) {
    await model.runBlock(0, warm);
    check();
  }
  await pause();
  const sizes = [...new Set(SIZES.map((size) => Math.min(size, spec.max_tokens)))].sort((a, b) => a - b);
  const pairs = sizes.map((size) => pairsOf(spec, size));
  const round = async () => {
    const times = [];
    for (const size of sizes) {
      times.push(await blockS(model, size));
      check();
    }
    return times;
  };
  const { found, sure } = await inRounds(sizes, pairs, round, worked);
  const [fixed, perToken, perPair] = found;
  const codesBegan = worked();
  const plain = await codesS(model, await model.codec("fp16", "", []), 1);
  const books = {};
  for (const about of model.manifest.codebooks) {
    books[about.id] = await bookTimes(model, about);
    check();
  }
  const timing = {
    fixed_s: fixed, per_token_s: perToken, per_pair_s: perPair, encode_token_s: plain.encode, decode_token_s: plain.decode,
    head_s: LEAST_S, // another peer's work
    step_s: spec.causal ? model.blocks * (await blockS(model, 1)) : 0,
  };
  return { timing, books, sure: sure && worked() === codesBegan };
}
