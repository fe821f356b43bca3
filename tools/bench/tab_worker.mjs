// A worker that codes a block's tokens on and on: two at once show what a second thread can bring at most.

import { bench } from "./tab.mjs";

const file = async (name) => new Uint8Array(await (await fetch(`/files/${name}`)).arrayBuffer());
let works = null;

/** So many milliseconds of all that codes cost; answers with rounds in a second. */
onmessage = async ({ data: { tokens, ms } }) => {
  works ??= Object.entries(await bench("/page/peer", file, tokens)).filter(([name]) => !name.startsWith("block"));
  const began = performance.now();
  let rounds = 0;
  while (performance.now() - began < ms) {
    for (const [, work] of works) await work(1);
    rounds += 1;
  }
  postMessage((1000 * rounds) / (performance.now() - began));
};
