// What a tab fetches until a model is ready: node run_fetched.mjs FOLDER, bytes by kind as JSON.

import { readFileSync } from "node:fs";

import { loadModel } from "../../astra_mesh/web/site/peer/engine.js";
import { measure } from "../../astra_mesh/web/site/peer/measure.js";

const [folder] = process.argv.slice(2);
const fetched = new Map();
const manifest = JSON.parse(readFileSync(`${folder}/manifest.json`, "utf8"));
const getBlob = async (sha256) => {
  const data = new Uint8Array(readFileSync(`${folder}/${sha256}`));
  fetched.set(sha256, data.length); // once: the browser keeps them
  return data;
};
const sum = () => [...fetched.values()].reduce((all, one) => all + one, 0);
const model = await loadModel(manifest, getBlob);
const blocks = sum();
await measure(model);
console.log(JSON.stringify({ blocks, codebook: sum() - blocks }));
