// Codes as bytes, and the codecs without a codebook: the same as Python's (tests/vectors/codes.json).

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { pack, packedBytes, unpack } from "../../astra_mesh/web/site/peer/bits.js";
import { VectorCodec, sources } from "../../astra_mesh/web/site/peer/codes.js";
import { fromHalf, rounded, toHalf } from "../../astra_mesh/web/site/peer/half.js";
import { fit } from "../../astra_mesh/web/site/peer/measure.js";
import { PLAIN, PlainCodec, cannotUse } from "../../astra_mesh/web/site/peer/plain.js";
import { Matrix } from "../../astra_mesh/web/site/peer/matrix.js";

const vectors = JSON.parse(readFileSync(new URL("../vectors/codes.json", import.meta.url)));
const bytesOf = (hex) => new Uint8Array(Buffer.from(hex, "hex"));
const numbersOf = (hex) => new Float32Array(bytesOf(hex).buffer);

test("codes are packed as in Python, and back", () => {
  for (const { bits, codes, packed } of vectors.packed) {
    assert.deepEqual(pack(codes, bits), bytesOf(packed));
    assert.equal(packedBytes(codes.length, bits), packed.length / 2);
    assert.deepEqual([...unpack(bytesOf(packed), codes.length, bits)], codes);
  }
});

test("packed codes of a wrong length, or with more bits, are refused", () => {
  assert.throws(() => unpack(new Uint8Array(3), 2, 8), /3 bytes of codes where 2 are due/);
  assert.throws(() => unpack(new Uint8Array(1), 2, 8), /1 bytes/);
  assert.throws(() => unpack(Uint8Array.of(0b1000), 1, 3), /not zero/);
  assert.throws(() => unpack(Uint8Array.of(0, 128), 1, 12), /not zero/);
});

test("rows are coded as in Python, and back", async () => {
  assert.deepEqual(vectors.rows.map((one) => one.codec), PLAIN);
  for (const { codec: name, rows, codes, rebuilt } of vectors.rows) {
    const codec = new PlainCodec(name, { spec: { hidden_size: vectors.size } });
    const n = new Matrix(numbersOf(rows), vectors.size);
    const [found] = await codec.encode(1, n, n);
    assert.deepEqual(codec.pack(0, found), bytesOf(codes), name);
    assert.equal(codec.packedBytes(0, n.rows), found.length);
    const back = codec.unpack(0, bytesOf(codes), n.rows);
    assert.deepEqual(codec.rebuild([back]).data, numbersOf(rebuilt), name);
  }
});

test("codes that a tab does not have are refused in a sentence", () => {
  assert.equal(cannotUse("zip", ""), `this tab cannot use the codec "zip": it can use the model's codebooks, fp32, fp16, int8 and int4`);
  assert.equal(cannotUse("vq", "0123456789abcdef"), 'this tab does not have the codebook 01234567 of the codec "vq"');
});

test("rows with numbers that are none are refused", () => {
  for (const [name, at, bad] of [["fp32", 3, 0x7f], ["fp16", 1, 0x7c], ["int8", 48, 0x7f], ["int4", 33, 0x7c]]) {
    const codec = new PlainCodec(name, { spec: { hidden_size: 45 } });
    const bytes = new Uint8Array(codec.row);
    bytes[at] = bad;
    bytes[at - 1] = 0x80;
    bytes[0] = 1;
    assert.throws(() => codec.unpack(0, bytes, 1), /not finite/, name);
    assert.throws(() => codec.unpack(0, bytes.subarray(1), 1), /not/, name);
  }
});

test("float16 numbers survive the way there and back", () => {
  for (let half = 0; half < 0x10000; half++) {
    const value = fromHalf(half);
    if (!Number.isNaN(value)) assert.equal(toHalf(value), half);
  }
  assert.ok(Number.isNaN(fromHalf(toHalf(NaN))));
  assert.equal(toHalf(65520), 0x7c00);
  assert.deepEqual([0.5, 1.5, 2.5, -0.5, -1.5, 0.49].map(rounded).map((one) => one + 0), [0, 2, 2, 0, -2, 0]);
});

test("a block is predicted from the blocks that its history says", () => {
  assert.deepEqual(sources(-1, 5), [4]);
  assert.deepEqual(sources(2, 5), [4, 3, 0]);
  assert.deepEqual(sources(2, 2), [1, 0]);
  assert.deepEqual(sources(1, 1), [0]);
});

const LOADING = "this tab is still loading 32 bits of this codebook; ready in a moment";
const settled = () => new Promise((done) => setTimeout(done));

/** Descriptions of a level's files, of both blocks. */
const files = (name) => [1000, 3000].map((bytes, i) => ({ sha256: `${name}${i}`, bytes }));

/** A codec that loads by `load` and has the rate of one stage. */
async function codecWith(load, { history = -1, source = null, tell = () => {} } = {}) {
  const levels = { 1: files("1"), 2: files("2") };
  const about = { codec: "vq", able: [1, 2], rates: [16, 32], first_block: 1, groups: [2, 2], code_bits: 8, history, levels };
  const codec = new VectorCodec({ blocks: 3, tell }, about, source);
  codec.prepareBlock = async () => {};
  await codec.prepare(history ? 1 : 2);
  if (load) codec.prepareBlock = load;
  else delete codec.prepareBlock;
  return codec;
}

test("a rate that is not there is said at once, and there for the next request", async () => {
  const asked = [];
  let come;
  const arrived = new Promise((done) => (come = done));
  const codec = await codecWith((stages, block) => (asked.push([stages, block]), arrived));
  assert.equal(codec.lacks([1]), "");
  assert.deepEqual(asked, []);
  assert.equal(codec.lacks([1, 2]), LOADING);
  assert.equal(codec.lacks([2]), LOADING);
  come();
  await settled();
  assert.equal(codec.lacks([1, 2]), "");
  assert.deepEqual(asked.map(([stages]) => stages), asked.map(() => 2));
});

test("a rate that could not be loaded says why once, and is tried again", async () => {
  let tries = 0;
  const codec = await codecWith(async () => {
    if (++tries === 1) throw new Error("the line broke");
  });
  assert.equal(codec.lacks([2]), LOADING);
  await settled();
  assert.equal(codec.lacks([2]), "the line broke");
  await settled();
  assert.equal(codec.lacks([2]), "");
});

test("how far a rate is that comes in the background is told, until it failed", async () => {
  const told = [];
  const asked = [];
  let fail;
  const held = new Promise((_, no) => (fail = no));
  const source = {
    fetched: async ({ sha256 }, arrived) => {
      asked.push(sha256);
      [400, 1000].forEach(arrived);
      await held;
    },
  };
  const codec = await codecWith(null, { source, tell: () => told.push(...codec.coming.map(({ bits, done, total }) => `${done} of ${total}, ${bits} bits`)) });
  assert.deepEqual(codec.coming, []);
  assert.equal(codec.lacks([2]), LOADING);
  await settled();
  assert.equal(codec.lacks([2]), LOADING);
  await settled();
  assert.deepEqual(told, ["0 of 4000, 32 bits", "400 of 4000, 32 bits", "1000 of 4000, 32 bits"]);
  assert.deepEqual(asked, ["20"]);
  fail(new Error("the line broke"));
  await settled();
  assert.deepEqual(codec.coming, []);
});

test("without history all rates come with the first one", async () => {
  const codec = await codecWith(() => assert.fail("nothing is missing"), { history: 0 });
  assert.equal(codec.lacks([1, 2]), "");
});

test("measured times become non-negative parts", () => {
  const sizes = [8, 64, 256];
  const pairs = sizes.map((size) => size * size);
  const exact = sizes.map((size, i) => 1e-4 + 2e-5 * size + 3e-8 * pairs[i]);
  fit(sizes, pairs, exact).forEach((part, i) => assert.ok(Math.abs(part / [1e-4, 2e-5, 3e-8][i] - 1) < 1e-6));
  const [fixed, token, pair] = fit(sizes, pairs, [5e-4, 5e-4, 5e-4]);
  assert.ok(fixed > 0 && token >= 0 && pair >= 0);
  assert.ok(fit([8], [64], [1e-3])[0] > 0);
});
