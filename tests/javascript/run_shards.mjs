// Runs shards as a tab does: node run_shards.mjs CASES RESULTS (JSON files; see test_engine.py).
//
// Every shard is given the codes that Python's shards sent, so that each is judged on its own.

import { readFileSync, writeFileSync } from "node:fs";

import { embedRange, loadModel } from "../../astra_mesh/web/site/peer/engine.js";
import { Layout, pair } from "../../astra_mesh/web/site/peer/layout.js";
import { Matrix } from "../../astra_mesh/web/site/peer/matrix.js";
import { PROCESSOR } from "../../astra_mesh/web/site/peer/runtime.js";

const [from, to] = process.argv.slice(2);
const models = new Map();

async function modelOf(folder, kernels) {
  const key = `${folder} ${kernels}`;
  if (!models.has(key)) {
    const manifest = JSON.parse(readFileSync(`${folder}/manifest.json`, "utf8"));
    const getBlob = async (sha256) => new Uint8Array(readFileSync(`${folder}/${sha256}`));
    models.set(key, await loadModel(manifest, getBlob, () => {}, { place: PROCESSOR, kernels }));
  }
  return models.get(key);
}

const bytesOf = (text) => new Uint8Array(Buffer.from(text, "base64"));
const textOf = (bytes) => Buffer.from(bytes).toString("base64");

function layoutOf({ bounds, blocks, causal, classToken, pooling, stages, firstBlock }) {
  const table = new Map(stages.map(([sender, receiver, count]) => [pair(sender, receiver), count]));
  return new Layout({ bounds, blocks, causal, classToken, pooling, firstBlock, stages: table });
}

async function runShard(model, one, layout, shard) {
  const able = [...layout.stages.values(), ...one.rates.map(([, , , stages]) => stages)];
  const codec = await model.codec(one.codec, one.codebook, [...new Set(able)]);
  const size = model.spec.hidden_size;
  const whole = new Matrix(Float32Array.from(one.embedded), size);
  const run = model.run(layout, shard, codec, whole.slice(...embedRange(layout, shard)));
  const sent = [];
  for (let block = 0; block < layout.blocks; block++) {
    const codes = {};
    const rates = one.rates.filter(([b, sender]) => b === block && sender === shard).map(([, , receiver, stages]) => [receiver, stages]);
    for (const [receiver, arrays] of await run.encode(block, new Map(rates))) {
      codes[receiver] = arrays.map((codes, stage) => textOf(codec.pack(stage, codes)));
    }
    sent.push(codes);
    await run.attendLocal(block);
    if ((block + shard) % 2 === 0) {
      if (block >= layout.firstBlock) await run.foreseeRemote(block);
      if (block + 1 < layout.blocks) await run.foreseeOwn(block + 1);
    }
    if (block >= layout.firstBlock) {
      // the last first: parts come in any order
      for (const source of [...layout.sources(shard, block)].reverse()) {
        const packed = one.missing.some(([b, s]) => b === block && s === source) ? [] : one.codes[block][source][shard];
        const tokens = layout.sent(source).length;
        await run.attendRemote(block, source, packed.map((text, stage) => codec.unpack(stage, bytesOf(text), tokens)));
      }
    }
    await run.finish(block);
  }
  const { vector, weight } = await run.pooled();
  return { sent, vector: [...vector], weight };
}

const results = [];
for (const one of JSON.parse(readFileSync(from, "utf8"))) {
  const layout = layoutOf(one.layout);
  const shards = [];
  for (let shard = 0; shard < layout.bounds.length; shard++) {
    const model = await modelOf(one.folder, shard % 2 === 0); // as on one thread and on several
    shards.push(await runShard(model, one, layout, shard));
  }
  results.push(shards);
}
writeFileSync(to, JSON.stringify(results));
