// What a tab fetches until a model is ready, and what it tells of that: node run_fetched.mjs FOLDER, bytes as JSON.

import { readFileSync } from "node:fs";

import { loadModel } from "../../astra_mesh/web/site/peer/engine.js";
import { measure } from "../../astra_mesh/web/site/peer/measure.js";

const [folder] = process.argv.slice(2);
const fetched = new Map();
const again = []; // blocks' weights that were fetched once more
const manifest = JSON.parse(readFileSync(`${folder}/manifest.json`, "utf8"));
const getBlob = async (sha256) => {
  const data = new Uint8Array(readFileSync(`${folder}/${sha256}`));
  if (fetched.has(sha256) && manifest.weights.some((one) => one.sha256 === sha256)) again.push(sha256);
  fetched.set(sha256, data.length); // once: the browser keeps them
  return data;
};
const sum = (found) => found.reduce((all, [, bytes]) => all + bytes, 0);
const told = [];
const model = await loadModel(manifest, getBlob, (done, total) => told.push([done, total]));
const ready = fetched.size;
await measure(model);
const levels = manifest.codebooks.flatMap((book) => Object.values(book.levels).flat());
const ofBooks = new Set(levels.map((one) => one.sha256));
const [books, blocks] = [true, false].map((wanted) => sum([...fetched].filter(([hash]) => ofBooks.has(hash) === wanted)));
console.log(JSON.stringify({ blocks, codebook: books, told, late: fetched.size - ready, again: again.length, kernels: model.kernels }));
