// One request's codes, case by case as tests/unit/peer/test_exchange.py: cut, put together, not taken.

import assert from "node:assert/strict";
import { test } from "node:test";

import { DeadlineError, PeerLostError, ProtocolError } from "../../astra_mesh/web/site/peer/errors.js";
import { Exchange, Patience } from "../../astra_mesh/web/site/peer/exchange.js";
import { Layout, pair, partners } from "../../astra_mesh/web/site/peer/layout.js";
import * as limits from "../../astra_mesh/web/site/peer/limits.js";
import { encode, make } from "../../astra_mesh/web/site/peer/messages.js";
import { A, B, C, R2 } from "./helpers.js";

const D = "d".repeat(64);
const PEERS = [A, B, C, D];

/** `groups` bytes a token and stage. */
class FakeCodec {
  firstBlock = 1;
  able = [1, 2, 3];
  constructor(...groups) {
    this.groups = groups;
  }
  rate(stages) {
    return 8 * stages;
  }
  packedBytes(stage, tokens) {
    return tokens * this.groups[stage];
  }
  pack(stage, rows) {
    return rows.slice();
  }
  unpack(stage, data, tokens) {
    if (data.length !== tokens * this.groups[stage]) throw new ProtocolError("another length");
    return data.slice();
  }
}

class FakeLink {
  isOpen = true;
  sent = [];
  ended = [];
  constructor(peer) {
    this.peer = peer;
  }
  send(message) {
    this.sent.push(message);
    return encode(message).length;
  }
  async drain() {
    if (!this.isOpen) throw new PeerLostError("the link is closed");
  }
  end(request) {
    this.ended.push(request);
  }
  under = { size: 0, bps: Infinity, measuredBps: null }; // way
  backlog() {
    return this.under;
  }
}

function layoutFor(bounds, { stages = 1, causal = true, pooling = "last", classToken = "none" } = {}) {
  const all = new Map();
  bounds.forEach((_, i) => bounds.forEach((_, j) => i !== j && all.set(pair(i, j), typeof stages === "number" ? stages : stages[`${i}${j}`])));
  return new Layout({ bounds, blocks: 3, causal, classToken, pooling, stages: all, firstBlock: 1 });
}

function exchangeOf(layout, shard, codec = new FakeCodec(128, 128, 128), patience = undefined) {
  const links = new Map(partners(layout, shard).map((i) => [PEERS[i], new FakeLink(PEERS[i])]));
  const peers = PEERS.slice(0, layout.bounds.length);
  return { links, exchange: new Exchange({ request: R2, layout, peers, shard, codec, links, patience }) };
}

const THREE = [[0, 10], [10, 25], [25, 40]];
const last = (...more) => exchangeOf(layoutFor(THREE), 2, ...more);
const codes = (first, count, { block = 1, stage = 0, fill = 0, row = 128 } = {}) =>
  make("Codes", { request: R2, block, stage, first, count, data: new Uint8Array(count * row).fill(fill) });
const rows = (tokens, columns, seed = 1) => Uint8Array.from({ length: tokens * columns }, (_, i) => (i * 7 + seed) % 251);

test("codes are cut to the size of a message", async () => {
  const { exchange, links } = exchangeOf(layoutFor([[0, 90], [90, 96]]), 0, new FakeCodec(4096));
  const all = rows(90, 4096);
  await exchange.sendCodes(1, new Map([[1, [all]]]));
  const { sent } = links.get(B);
  assert.deepEqual(sent.map((message) => message.count), [16, 16, 16, 16, 16, 10]);
  assert.deepEqual(sent.map((message) => message.first), [0, 16, 32, 48, 64, 80]);
  assert.deepEqual(Buffer.concat(sent.map((message) => message.data)), Buffer.from(all));
  assert.ok(exchange.sentBytes[B] >= all.length);
});

for (const wide of [false, true]) {
  test(`each link gets its own number of stages, ${wide ? "stage after stage" : "in one message"}`, async () => {
    const groups = wide ? [500, 600, 700] : [4, 5, 3];
    const layout = layoutFor(THREE, { stages: { "01": 1, "02": 3, "12": 2 } });
    const sender = exchangeOf(layout, 0, new FakeCodec(...groups));
    const few = [rows(10, groups[0], 3)];
    const all = groups.map((columns, i) => rows(10, columns, i));
    await sender.exchange.sendCodes(1, new Map([[2, all], [1, few]]));
    assert.equal(sender.links.get(C).sent.length, wide ? 3 : 1);
    const receiver = exchangeOf(layout, 2, new FakeCodec(...groups));
    for (const message of sender.links.get(C).sent) receiver.exchange.take(A, message);
    assert.deepEqual(await receiver.exchange.receiveCodes(1), [0, all]);
    const middle = exchangeOf(layout, 1, new FakeCodec(...groups));
    for (const message of sender.links.get(B).sent) middle.exchange.take(A, message);
    assert.deepEqual(await middle.exchange.receiveCodes(1), [0, few]);
  });
}

for (const size of [3, 6, 12, 1]) {
  test(`${size} bytes for two tokens are no whole number of stages`, () => {
    const { exchange } = exchangeOf(layoutFor(THREE, { stages: 3 }), 2, new FakeCodec(1, 1, 3));
    const take = (bytes) => exchange.take(A, make("Codes", { request: R2, block: 1, stage: 0, first: 0, count: 2, data: new Uint8Array(bytes) }));
    assert.throws(() => take(size), ProtocolError);
    take(4); // two stages
  });
}

test("a link that became slow gets fewer stages, and the report says so", async () => {
  const layout = layoutFor(THREE, { stages: 3 });
  const { exchange, links } = exchangeOf(layout, 0, new FakeCodec(400, 500, 600), new Patience(0.3, 3, "adapt"));
  assert.deepEqual([...exchange.stages(1, 0)], [[1, 3], [2, 3]]);
  assert.deepEqual(exchange.rates, {});
  links.get(C).under = { size: 2000, bps: 600e3, measuredBps: 1e8 }; // 15,000 bytes take longer than 0.2 s
  assert.deepEqual([...exchange.stages(2, 0)], [[2, 2]]); // in the last block only shard 2 is wanted
  assert.deepEqual(exchange.rates, { [C]: [2, 16] });
});

test("where a plan waits, its rates are kept", async () => {
  const { exchange, links } = exchangeOf(layoutFor(THREE, { stages: 3 }), 0);
  links.get(C).under = { size: 1e6, bps: 1, measuredBps: 1 };
  assert.deepEqual([...exchange.stages(1, 0)], [[1, 3], [2, 3]]);
});

test("where rates may fall each message tells how many stages its block has", async () => {
  const layout = layoutFor(THREE, { stages: 3 });
  const adapting = new Patience(1, 3, "adapt");
  const groups = [400, 500, 600];
  const sender = exchangeOf(layout, 0, new FakeCodec(...groups), adapting);
  const all = groups.map((columns, i) => rows(10, columns, i));
  await sender.exchange.sendCodes(1, new Map([[1, all], [2, all]]));
  assert.ok(sender.links.get(C).sent.every(({ stage, count, data }) => stage === 0 && data.length === count * 1500));
  const receiver = exchangeOf(layout, 2, new FakeCodec(...groups), adapting);
  for (const message of sender.links.get(C).sent) receiver.exchange.take(A, message);
  assert.deepEqual(await receiver.exchange.receiveCodes(1), [0, all]);
  const take = (block, first, count, columns, stage = 0) =>
    receiver.exchange.take(A, make("Codes", { request: R2, block, stage, first, count, data: rows(count, columns) }));
  take(2, 0, 6, 900);
  assert.throws(() => take(2, 6, 4, 1500), ProtocolError); // the same block at another rate
  assert.throws(() => take(2, 6, 4, 500, 1), ProtocolError); // not from the first stage on
  take(2, 6, 4, 900);
  const [source, found] = await receiver.exchange.receiveCodes(2);
  assert.equal(source, 0);
  assert.deepEqual(found.map((one) => one.length), [4000, 5000]);
});

test("parts come together from any order, in order of arrival", async () => {
  const { exchange } = last();
  exchange.take(B, codes(18, 7, { fill: 2 }));
  exchange.take(A, codes(0, 10, { block: 2 }));
  assert.deepEqual(exchange.readyCodes(1), []);
  exchange.take(B, codes(10, 8, { fill: 1 }));
  exchange.take(A, codes(0, 10, { fill: 9 }));
  assert.ok(!exchange.misses(A) && exchange.misses(B));
  const [[source, [array]], [other]] = exchange.readyCodes(1);
  assert.deepEqual([source, other, array.length], [1, 0, 15 * 128]);
  assert.deepEqual([array[0], array[8 * 128 - 1], array[8 * 128]], [1, 1, 2]);
  assert.deepEqual((await exchange.receiveCodes(2))[0], 0);
});

const BAD = {
  "a block before the first": ["a", codes(0, 10, { block: 0 })],
  "a block after the last": ["a", codes(0, 10, { block: 3 })],
  "tokens of somebody else": ["a", codes(10, 5)],
  "tokens before the shard": ["b", codes(9, 2)],
  "more tokens than the shard": ["b", codes(20, 6)],
  "a stage beyond the rate": ["a", codes(0, 10, { stage: 1 })],
  "a wrong length": ["a", codes(0, 10, { row: 127 })],
  "the own shard": ["c", codes(25, 5)],
  "a peer without a shard": ["d", codes(0, 10)],
};
for (const [name, [from, message]] of Object.entries(BAD)) {
  test(`not taken: ${name}`, () => assert.throws(() => last().exchange.take(from.repeat(64), message), ProtocolError));
}

test("not taken: rows that came before, pooled vectors", () => {
  const { exchange } = last();
  exchange.take(A, codes(0, 6));
  assert.throws(() => exchange.take(A, codes(5, 2)), /sent before/);
  exchange.take(A, codes(6, 4));
  assert.throws(() => exchange.take(A, codes(0, 1)), /sent before/);
  assert.throws(() => exchange.take(A, make("Pooled", { request: R2, weight: 1, vector: new Uint8Array(8) })), ProtocolError);
});

class Soon extends Patience {
  get wholeS() {
    return 0.05;
  }
}

test("what is missing is named at the deadline", async () => {
  const { exchange } = last(undefined, new Soon());
  exchange.take(A, codes(0, 10));
  exchange.readyCodes(1);
  await assert.rejects(exchange.receiveCodes(1), (error) => {
    assert.ok(error instanceof DeadlineError);
    assert.match(error.message, /no codes of block 1 came from bbbbbbbb within 0.05 s/);
    return true;
  });
});

test("with degrade a prediction stands in, and what comes late is dropped", async () => {
  const { exchange } = last(undefined, new Patience(0.001, 3, "degrade"));
  exchange.take(A, codes(0, 10));
  exchange.take(A, codes(0, 10, { block: 2 }));
  assert.equal((await exchange.receiveCodes(1))[0], 0);
  const began = performance.now();
  assert.deepEqual(await exchange.receiveCodes(1), [1, []]);
  const first = performance.now() - began;
  assert.ok(first > 1000 && first < 2500, `${first} ms for the first block`);
  exchange.take(B, codes(10, 15)); // too late
  assert.equal(exchange.lateParts, 1);
  assert.equal((await exchange.receiveCodes(2))[0], 0);
  const again = performance.now();
  assert.deepEqual(await exchange.receiveCodes(2), [1, []]);
  assert.ok(performance.now() - again < 200); // it was late before
  assert.ok(!exchange.misses(B));
});

test("patience", () => {
  assert.equal(new Patience(0.1, 4).waitS(true), 10);
  assert.equal(new Patience(1, 4).waitS(false), 20);
  assert.equal(new Patience(100, 4).waitS(false), 60);
  assert.equal(new Patience(2, 4, "degrade").waitS(false), 2);
  assert.equal(new Patience(2, 4, "degrade").waitS(true), 3);
  assert.equal(new Patience(0, 4, "degrade").waitS(false), 0.1);
});

test("a failure ends waiting now and later", async () => {
  const { exchange } = last();
  exchange.take(A, codes(0, 10, { block: 2 }));
  const waiting = exchange.receiveCodes(1);
  exchange.fail(new PeerLostError("lost b"));
  exchange.fail(new Error("another"));
  await assert.rejects(waiting, /lost b/);
  assert.deepEqual(exchange.readyCodes(2), []);
  await assert.rejects(exchange.receiveCodes(2), /lost b/);
});

test("a lost link matters while something is missing, and when sending", async () => {
  const { exchange, links } = last();
  for (const block of [1, 2]) exchange.take(A, codes(0, 10, { block }));
  exchange.linkGone(links.get(A), new PeerLostError("lost a"));
  assert.equal(exchange.readyCodes(1).length, 1);
  exchange.linkGone(links.get(B), new PeerLostError("lost b"));
  await assert.rejects(exchange.receiveCodes(1), /lost b/);
  const first = exchangeOf(layoutFor(THREE), 0);
  first.links.get(B).isOpen = false;
  await assert.rejects(first.exchange.sendCodes(1, new Map([[1, [rows(10, 128)]]])), /link to peer bbbbbbbb is gone/);
});

test("the pooled share goes to the answering peer; abandoning ends the request on every link", () => {
  const layout = layoutFor([[0, 2], [2, 4], [4, 4]], { causal: false, pooling: "mean" });
  const { exchange, links } = exchangeOf(layout, 0);
  assert.deepEqual([...links.keys()], [B]);
  exchange.sendPooled(Float32Array.of(1, 2), 3);
  const [message] = links.get(B).sent;
  assert.deepEqual([message.type, message.weight], ["Pooled", 3]);
  assert.equal(Buffer.from(message.vector).toString("hex"), "0000803f00000040");
  exchange.abandon();
  assert.deepEqual(links.get(B).ended, [R2]);
});

test("a window's worth of codes at the largest message", () => {
  const layout = layoutFor([[0, 10], [10, 12]]);
  const { exchange } = exchangeOf(layout, 1, new FakeCodec(limits.CODES_DATA_BYTES));
  for (let first = 0; first < 10; first++) exchange.take(A, codes(first, 1, { row: limits.CODES_DATA_BYTES }));
  assert.equal(exchange.readyCodes(1).length, 1);
});
