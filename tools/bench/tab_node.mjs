// node tab_node.mjs PEER FOLDER TOKENS: seconds of the processor for one call of each, as JSON.

import { readFileSync } from "node:fs";
import { bench } from "./tab.mjs";

const [peer, folder, tokens] = process.argv.slice(2);
const WARM = 30;
const WINDOWS = 5;
const WINDOW_S = 0.1;

const works = await bench(peer, async (name) => new Uint8Array(readFileSync(`${folder}/${name}`)), Number(tokens));
const used = (since) => {
  const { user, system } = process.cpuUsage(since);
  return (user + system) / 1e6;
};
const found = {};
// Twice: WebAssembly is still being compiled for speed while the first ones run.
for (const [name, work] of [...Object.entries(works), ...Object.entries(works)]) {
  await work(WARM);
  const start = process.cpuUsage();
  await work(1);
  const calls = Math.max(1, Math.ceil(WINDOW_S / Math.max(used(start), 1e-4)));
  found[name] ??= Infinity;
  for (let i = 0; i < WINDOWS; i++) {
    const began = process.cpuUsage();
    await work(calls);
    found[name] = Math.min(found[name], used(began) / calls);
  }
}
console.log(JSON.stringify(found));
