// One block of a model in WebAssembly, called on and on: what tools/bench/tab.py times, in node and in Chromium.

/**
 * What can be run, by name: (calls) => Promise.
 *
 * @param peer     the address of site/peer
 * @param fetched  (name of a file) => Promise of its bytes
 * @param tokens   how many
 */
export async function bench(peer, fetched, tokens) {
  const { loadModel } = await import(`${peer}/engine.js`);
  const { Matrix } = await import(`${peer}/matrix.js`);
  const { PROCESSOR } = await import(`${peer}/runtime.js`);
  const { isRelaxed } = await import(`${peer}/workspace.js`);
  const manifest = JSON.parse(new TextDecoder().decode(await fetched("manifest.json")));
  const model = await loadModel(manifest, fetched);
  const { hidden_size: size } = model.spec;
  const block = model.blocks - 1;
  const random = (rows, columns) => new Matrix(Float32Array.from({ length: rows * columns }, () => Math.random() - 0.5), columns);
  const again = (work) => async (calls) => {
    for (let i = 0; i < calls; i++) await work();
  };
  const x = random(tokens, size);
  const found = { block: again(() => model.runBlock(block, x)) };
  for (const kernels of isRelaxed() ? [false, true] : []) {
    const other = await loadModel({ ...manifest, codebooks: [] }, fetched, () => {}, { place: PROCESSOR, kernels });
    found[`block, products by ${kernels ? "our kernels" : "the runtime"}`] = again(() => other.runBlock(block, x));
  }
  for (const about of manifest.codebooks) {
    const codec = await model.codec(about.codec, about.id, []);
    for (const stages of new Set([codec.able[0], codec.able.at(-1)])) {
      await codec.prepareBlock(stages, block);
      const columns = codec.pastColumns(block);
      const past = columns ? random(tokens, columns) : undefined;
      const { codes } = await codec.encodeOne(block, stages, x, x, past);
      const name = `${codec.rate(stages)} bits, ${columns ? "history" : "no history"}`;
      let foreseen = null; // it is overwritten with each call: the numbers become others, and their time stays
      if (columns) {
        foreseen = codec.foresee(block, stages, past);
        found[`foresee own, ${name}`] = again(() => codec.predict(block, stages, past));
        found[`foresee others', ${name}`] = again(() => codec.foresee(block, stages, past));
      }
      found[`encode, ${name}`] = again(() => codec.encodeOne(block, stages, x, x, past, foreseen?.n));
      found[`decode, ${name}`] = again(() => codec.decodeOne(block, codes, past, 0, foreseen));
    }
  }
  return found;
}

/**
 * What loading a whole model takes, a sentence each.
 *
 * @param peer     the address of site/peer
 * @param fetched  (name of a file) => Promise of its bytes
 */
export async function load(peer, fetched) {
  const { loadModel } = await import(`${peer}/engine.js`);
  const manifest = JSON.parse(new TextDecoder().decode(await fetched("manifest.json")));
  const found = [];
  const timed = async (what, work) => {
    const began = performance.now();
    const made = await work();
    found.push(`${what}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
    return made;
  };
  const model = await timed(`${manifest.blocks} blocks and the default rate of each codebook`, () => loadModel(manifest, fetched));
  for (const about of manifest.codebooks) {
    const codec = await model.codec(about.codec, about.id, []);
    for (const stages of codec.able) {
      const before = codec.tableBytes;
      await timed(`${codec.rate(stages)} bits, ${about.history ? "history" : "no history"}`, () => codec.prepare(stages));
      found[found.length - 1] += `, tables ${Math.round(before / 2 ** 20)} to ${Math.round(codec.tableBytes / 2 ** 20)} MiB`;
    }
  }
  return found;
}
