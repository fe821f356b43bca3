// One block of a model in WebAssembly, called on and on: what tools/bench/tab.py times, in node and in Chromium.

/** { run(tokens, calls): a Promise, codes(tokens, stages, calls, part) } of the model that `fetched(path)` reads. */
export async function bench(peer, fetched) {
  const { loadModel } = await import(`${peer}/engine.js`);
  const { Matrix } = await import(`${peer}/runtime.js`);
  const manifest = JSON.parse(new TextDecoder().decode(await fetched("manifest.json")));
  const model = await loadModel(manifest, fetched);
  const { hidden_size: size, causal } = model.spec;
  const random = (rows, columns) => new Matrix(Float32Array.from({ length: rows * columns }, () => Math.random() - 0.5), columns);

  async function run(tokens, calls) {
    const x = random(tokens, size);
    for (let i = 0; i < calls; i++) {
      const n = await model.normalize(x);
      const part = await model.attend(await model.query(0, n, 0), await model.keyValue(0, n, 0), causal);
      await model.mix(0, x, part.out);
    }
  }

  async function codes(tokens, book, stages, calls, part) {
    const about = manifest.codebooks[book];
    const codec = await model.codec(about.codec, about.id, []);
    const block = model.blocks - 1;
    await codec.prepareBlock(stages, block);
    const x = random(tokens, size);
    const columns = codec.pastColumns(block);
    const past = columns ? random(tokens, columns) : null;
    const made = await codec.encodeOne(block, stages, x, x, past);
    for (let i = 0; i < calls; i++) {
      if (part === "encode") await codec.encodeOne(block, stages, x, x, past);
      else await codec.decodeOne(block, stages, made.codes, past, 0);
    }
  }

  return { run, codes };
}
