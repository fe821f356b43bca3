// Codes as a tab does: node run_codes.mjs CASES RESULTS (JSON files; see test_codes.py).
//
// Each block is given what Python kept of the blocks before, so that each is judged on its own.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";

import { RuntimeBlock } from "../../astra_mesh/web/site/peer/block.js";
import { VectorCodec } from "../../astra_mesh/web/site/peer/codes.js";
import { Model } from "../../astra_mesh/web/site/peer/engine.js";
import { Matrix } from "../../astra_mesh/web/site/peer/matrix.js";

const [from, to] = process.argv.slice(2);
const numbersOf = (text) => new Float32Array(new Uint8Array(Buffer.from(text, "base64")).buffer);
const textOf = (values) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
const matrixOf = (one) => (one ? new Matrix(numbersOf(one.data), one.columns) : undefined);

const results = [];
for (const { folder, codec: name, codebook, stages, tableBytes, blocks } of JSON.parse(readFileSync(from, "utf8"))) {
  const manifest = JSON.parse(readFileSync(`${folder}/manifest.json`, "utf8"));
  const fetched = async ({ sha256 }) => new Uint8Array(readFileSync(`${folder}/${sha256}`));
  // Without its graphs: they normalize, turn and attend, and code nothing.
  const model = new Model(manifest, {}, Array(manifest.blocks).fill(new RuntimeBlock({})), { fetched });
  const about = manifest.codebooks.find((one) => one.id === codebook);
  const codec = new VectorCodec(model, about, { fetched }, tableBytes ?? undefined);
  await codec.prepare(stages);
  if (codec.tableBytes) {
    // A request that may change its rate loads many levels: their tables share one limit.
    const tight = new VectorCodec(model, about, { fetched }, codec.tableBytes);
    for (const one of [stages, ...codec.able]) await tight.prepare(one);
    assert.equal(tight.tableBytes, codec.tableBytes);
  }
  const found = [];
  for (const { block, n, past, codes } of blocks) {
    const [given, before] = [matrixOf(n), matrixOf(past)];
    const coded = codec.encodeOne(block, stages, given, given, before);
    const sent = codes.map((one) => codec.kind.from(one));
    const rebuilt = codec.rebuild(block, sent, before);
    const one = { codes: coded.codes.map((each) => [...each]), n: textOf(rebuilt.n.data) };
    if (coded.kept) Object.assign(one, { sent: textOf(coded.kept.data), kept: textOf(rebuilt.kept.data) });
    if (before) one.predicted = textOf(codec.predict(block, stages, before).data);
    if (before) {
      // What is foreseen changes when it is computed, and nothing else.
      const foreseen = () => codec.foresee(block, stages, before);
      assert.deepEqual(codec.encodeOne(block, stages, given, given, before, foreseen().n), coded);
      const late = await codec.decodeOne(block, sent, before, 0, foreseen());
      assert.deepEqual(late, await codec.decodeOne(block, sent, before, 0));
    }
    if (name !== "astra") one.rows = textOf((await codec.decodeOne(block, sent, before, 0)).rows.data);
    found.push(one);
  }
  results.push(found);
}
writeFileSync(to, JSON.stringify(results));
