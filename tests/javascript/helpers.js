// What the tests of the page's compute peer share.

import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { Session } from "../../astra_mesh/web/site/peer/session.js";
import { decode, encode, make } from "../../astra_mesh/web/site/peer/messages.js";
import * as limits from "../../astra_mesh/web/site/peer/limits.js";

globalThis.crypto ??= webcrypto; // as browsers have it; node 18 hides it

export const A = "a".repeat(64);
export const B = "b".repeat(64);
export const C = "c".repeat(64);
export const R1 = 11n;
export const R2 = 2n ** 62n + 3n; // more than a double holds
export const R3 = 33n;
export const MODEL = "0".repeat(64);

export const vectors = (name) => JSON.parse(readFileSync(fileURLToPath(new URL(`../vectors/${name}`, import.meta.url))));

export const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
export const hex = (data) => Buffer.from(data).toString("hex");

export const TIMINGS = { helloS: 5, heartbeatS: 1, silenceS: 4, lostS: 8, closeS: 1 };

export const hello = (peer, changes = {}) =>
  make("Hello", { magic: "astra-mesh", version: 1, peer, name: `peer ${peer[0]}`, role: "peer", window_bytes: limits.WINDOW_MIN_BYTES, ...changes });

/** What a session writes now. */
export const sent = (session, limit = limits.FRAME_BYTES) => session.frames(limit).map(decode);

/** A session whose hello was written. */
export function started(own = hello(A), expected = null, now = 0) {
  const session = new Session(own, { timings: TIMINGS, expected });
  session.start(now);
  session.frames();
  return session;
}

/** A session of tab A with an open link to peer B, nothing queued. */
export function opened(changes = {}) {
  const session = started();
  session.receive(encode(hello(B, changes)), 0);
  return session;
}

export const plan = (...peers) => ({
  model: MODEL, codec: "fp16", codebook: "", shards: peers.map((peer, i) => ({ peer, start: i, stop: i + 1 })), rates: [],
  answering: peers.at(-1), class_token: "none", predicted_s: 0, late: "wait",
});

export const propose = (request) =>
  make("Propose", {
    request, task: "generate", plan: plan(A, B), inputs: { tokens: [1, 2], token_types: [], image: new Uint8Array(0) }, sampling: null,
  });

export const codes = (request, block = 0, size = 100) => make("Codes", { request, block, stage: 0, first: 0, count: 1, data: new Uint8Array(size) });

export const report = (peer = A) => ({
  peer, tokens: 1, compute_s: 0, encode_s: 0, decode_s: 0, wait_s: 0, finished_s: 0, sent_bytes: {}, decode_steps: 0, late_parts: 0, rates: {}, precision: "",
});

export const done = (request) => make("Done", { request, report: report() });

/** What a function throws. */
export function thrown(work) {
  try {
    work();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}
