// A whole tab against a host without sockets, with a stand-in for the engine.

import assert from "node:assert/strict";
import { after, test } from "node:test";

import * as limits from "../../astra_mesh/web/site/peer/limits.js";
import { make } from "../../astra_mesh/web/site/peer/messages.js";
import { TabPeer } from "../../astra_mesh/web/site/peer/peer.js";
import { FakeHost, HOST, OTHER, SEAL } from "./fake_host.js";
import { C, R1, R2 } from "./helpers.js";

const MODEL = "e".repeat(64);
const BOOK = "f".repeat(64);
const SIZE = 4;
const SPEC = { hidden_size: SIZE, num_hidden_layers: 3, causal: true, has_class_token: false, vocab_size: 50, max_tokens: 32 };
const ABOUT = { id: MODEL, name: "tiny", family: "gpt2", tasks: ["generate", "embed"], bytes: 1000, codebooks: [{ id: BOOK, codec: "vq", rates: [8], default_rate: 8 }] };
const TIMING = { fixed_s: 0.001, per_token_s: 0.001, per_pair_s: 0, encode_token_s: 0, decode_token_s: 0, head_s: 0, step_s: 0 };

class FakeCodec {
  firstBlock = 1;
  able = [1];
  lacks() {
    return "";
  }
  packedBytes(stage, tokens) {
    return tokens;
  }
  pack(stage, rows) {
    return rows.slice();
  }
  unpack(stage, data) {
    if (data.includes(255)) throw new Error("a code beyond the 255 codewords of its group");
    return data.slice();
  }
}

/** Notes the steps; a step may be held back. */
class FakeRun {
  steps = [];
  constructor(layout, shard, embedded, hold, local) {
    Object.assign(this, { layout, shard, embedded, hold, local });
  }
  async encode(block, stages) {
    this.steps.push(`encode ${block}`);
    await this.hold?.(block);
    const { length } = this.layout.sent(this.shard);
    const codes = [new Uint8Array(length).fill(block)];
    return new Map([...stages.keys()].map((receiver) => [receiver, codes]));
  }
  async attendLocal(block) {
    this.steps.push(`local ${block}`);
    await this.local?.();
  }
  async foreseeOwn(block) {
    this.steps.push(`foresee own ${block}`);
  }
  async foreseeRemote(block) {
    this.steps.push(`foresee remote ${block}`);
  }
  async attendRemote(block, source, codes) {
    this.steps.push(`remote ${block} of ${source}: ${codes.length ? codes[0].join(" ") : "nothing"}`);
  }
  async finish(block) {
    this.steps.push(`finish ${block}`);
  }
  async pooled() {
    return { vector: Float32Array.of(1, 2, 3, 4), weight: 2 };
  }
}

const peers = [];
after(() => peers.forEach((peer) => peer.leave()));

/** A tab that has joined; `changes` are of the engine and of HTTP. */
async function joined({ load, hold, local, json, compare = async () => null, refused = "", host = new FakeHost() } = {}) {
  const found = { host, runs: [], posted: [], states: [] };
  const model = {
    async codec(name, book) {
      if (name !== "vq" && name !== "fp32") throw new Error(`a tab cannot use the codes "${name}"`);
      return new FakeCodec();
    },
    run(layout, shard, codec, embedded) {
      const run = new FakeRun(layout, shard, embedded, hold, local);
      found.runs.push(run);
      return run;
    },
  };
  const http = {
    refusal: async () => refused,
    json: json ?? (async (path) => (path === "/tab/models" ? [ABOUT] : { ...ABOUT, spec: SPEC })),
    post: async (path, body, point) => {
      found.posted.push([path, body, point]);
      return new Uint8Array(4 * SIZE * (body.at(-1) - 0)); // "stop" is the last number of the body
    },
  };
  const engine = {
    load: load ?? (async (manifest, progress) => (progress(500, 1000), progress(1000, 1000), model)),
    compare,
    measure: async () => ({ timing: TIMING, books: { [BOOK]: { encode_token_s: [0.1], decode_token_s: [0.2] } } }),
  };
  const device = { host: "own", cores: 1, host_cores: 8, threads: 1, system: "test", memory_bytes: 0, software: "" };
  found.peer = new TabPeer({ makeSocket: host.makeSocket, http, engine, device, name: "phone", show: (state) => found.states.push(state) });
  peers.push(found.peer);
  found.peer.start();
  found.hello = await host.next("Hello");
  return found;
}

const shard = (peer, start, stop) => ({ peer, start, stop });
/** The tab holds tokens 0 and 1, or as given, the host the others. */
function proposal(host, { request = R2, own = [0, 2], of = 5, task = "generate", tokens = [1, 2, 3, 4, 5], image = [], changes = {}, late = "wait" } = {}) {
  const shards = own[0] ? [shard(HOST.id, 0, own[0]), shard(host.tab, ...own)] : [shard(host.tab, ...own), shard(HOST.id, own[1], of)];
  const ids = shards.map((one) => one.peer);
  const plan = {
    model: MODEL, codec: "vq", codebook: BOOK, shards, rates: [{ sender: ids[0], receiver: ids[1], stages: 1 }, { sender: ids[1], receiver: ids[0], stages: 1 }],
    answering: ids.at(-1), class_token: "none", predicted_s: 0.001, late, ...changes,
  };
  return make("Propose", { request, task, plan, inputs: { tokens, token_types: [], image: Uint8Array.from(image) } });
}
const codes = (block, first, values, request = R2) => make("Codes", { request, block, stage: 0, first, count: values.length, data: Uint8Array.from(values) });

test("it joins, greets, offers, and loads when asked to prepare", async () => {
  const { host, hello, states } = await joined();
  assert.equal(host.texts[0].name, "phone");
  assert.deepEqual(host.texts[1], { type: "open", channel: 1, to: HOST.id });
  assert.equal(hello.peer, host.tab);
  assert.equal(hello.via, HOST.id);
  assert.equal(hello.device.host, "m1");
  host.tell(make("Prepare", { request: R1, model: MODEL }));
  let status;
  do status = await host.next("Status");
  while (!status.models[0]?.timing);
  const [offer] = status.models;
  assert.deepEqual([offer.name, offer.loaded, offer.timing.per_token_s], ["tiny", true, 0.001]);
  assert.deepEqual(offer.codebooks[0].encode_token_s, [0.1]);
  const seen = states.flatMap((state) => state.models.map((one) => one.state));
  assert.deepEqual([...new Set(seen)], ["offered", "loading", "measuring", "ready"]);
  assert.deepEqual(states.at(-1).linked, ["host"]);
  assert.deepEqual([states.at(-1).id, states.at(-1).name], [host.tab, "phone"]); // as the others see it
});

test("a model that cannot be loaded: the one who asks is told, and it is offered no more", async () => {
  const load = async () => {
    throw new Error("no memory");
  };
  const { host, states } = await joined({ load });
  host.tell(make("Prepare", { request: R1, model: MODEL }));
  const fail = await host.next("Fail");
  assert.deepEqual([fail.request, fail.code, fail.text], [R1, "internal", "a browser met an error of its own: no memory"]);
  assert.match(states.at(-1).models[0].why, /no memory/);
  host.tell(make("Prepare", { request: R2, model: C }));
  assert.equal((await host.next("Fail")).code, "unknown-model");
});

test("a whole shard: codes out before anything is computed, and a report", async () => {
  const { host, runs, posted, states } = await joined();
  host.tell(proposal(host));
  await host.next("Accept");
  const first = await host.next("Codes");
  assert.deepEqual([first.block, first.first, first.count, [...first.data]], [1, 0, 2, [1, 1]]);
  assert.equal((await host.next("Codes")).block, 2);
  const { report } = await host.next("Done");
  assert.deepEqual([report.peer, report.tokens, report.late_parts], [host.tab, 2, 0]);
  assert.ok(report.sent_bytes[HOST.id] > 20 && report.finished_s >= report.compute_s);
  assert.deepEqual(runs[0].steps, [
    ...["local 0", "foresee own 1", "finish 0", "encode 1", "local 1", "foresee own 2", "finish 1", "encode 2"],
    ...["local 2", "finish 2"],
  ]);
  assert.equal(runs[0].embedded.rows, 2);
  assert.equal(posted[0][0], `/tab/models/${MODEL}/embed`);
  assert.deepEqual(posted[0][2], SEAL.point); // what the host said when it welcomed the tab
  assert.equal(states.at(-1).done, 1);
  assert.ok(states.some((state) => state.now?.block === 2));
});

test("remote parts, also those that overtake the proposal, and marks for a person who looks on", async () => {
  const { host, runs } = await joined();
  host.tell(codes(1, 0, [7, 8, 9]));
  const wanted = proposal(host, { own: [3, 5], changes: { answering: HOST.id } });
  wanted.plan.shards.push(shard(C, 5, 5));
  wanted.plan.shards[2].peer = C;
  host.tell({ ...wanted, watch: true });
  assert.equal((await host.next("Refuse")).reason, "bad-plan"); // the owner of the last tokens has to answer
  host.tell(codes(1, 0, [7, 8, 9], R1));
  const plan = proposal(host, { request: R1, own: [0, 0] }).plan;
  plan.shards = [shard(C, 0, 0), shard(host.tab, 0, 2), shard(HOST.id, 2, 5)];
  host.tell(make("Propose", { ...proposal(host, { request: 77n }), plan, watch: true }));
  await host.next("Accept");
  const progress = await host.next("Progress");
  assert.equal(progress.marks.length % 4, 0);
  await host.next("Done");
  assert.equal(runs.length, 1);
});

const classify = { ...ABOUT, tasks: ["embed"] };
const both = async (path) => (path === "/tab/models" ? [classify] : { ...classify, spec: { ...SPEC, causal: false } });

test("who planned without this tab says why, until it takes part again", async () => {
  const { host, states } = await joined();
  host.tell(make("Cancel", { request: 91n, text: "one device is faster" }));
  host.tell(make("Cancel", { request: 92n })); // of a request that ended: nothing to say
  host.tell(proposal(host));
  await host.next("Done");
  assert.deepEqual(states.find((state) => state.leftOut).leftOut, { by: "host", why: "one device is faster" });
  assert.equal(states.at(-1).leftOut, null);
});

test("attention to tokens of others, and the pooled share", async () => {
  const { host, runs } = await joined({ json: both });
  host.tell(codes(1, 2, [7, 8, 9])); // before its proposal
  host.tell(proposal(host, { task: "embed" }));
  await host.next("Accept");
  host.tell(codes(2, 2, [4, 5]));
  host.tell(codes(2, 4, [6]));
  const pooled = await host.next("Pooled");
  assert.deepEqual([pooled.weight, pooled.vector.length], [2, 16]);
  await host.next("Done");
  assert.deepEqual(runs[0].steps.filter((step) => step.startsWith("remote")), ["remote 1 of 1: 7 8 9", "remote 2 of 1: 4 5 6"]);
  const of = (step) => runs[0].steps.indexOf(step);
  assert.ok(of("local 2") < of("foresee remote 2") && of("foresee remote 2") < of("remote 2 of 1: 4 5 6"));
  assert.equal(runs[0].embedded.rows, 5); // the first block's input of all is known exactly
});

test("with degrade it goes on without what is late", async () => {
  const { host, runs } = await joined({ json: both });
  host.tell(proposal(host, { task: "embed", late: "degrade" }));
  const { report } = await host.next("Done");
  assert.equal(report.late_parts, 2);
  assert.ok(runs[0].steps.includes("remote 1 of 1: nothing"));
});

const REFUSED = {
  "unknown-model": [{ changes: { model: C } }, /no model/],
  "unknown-codebook": [{ changes: { codec: "int4", codebook: "" } }, /cannot use the codes/],
  "bad-plan": [{ tokens: [1, 2, 3] }, /the input has 3/],
  "bad-plan: a task": [{ task: "classify" }, /cannot classify/],
  "bad-plan: an image": [{ tokens: [], image: [1] }, /reads text/],
  "bad-plan: an empty prompt": [{ tokens: [] }, /empty/],
  "bad-plan: too long": [{ tokens: Array(33).fill(1) }, /too many/],
  "bad-plan: to answer": [{ own: [3, 5] }, /answer itself/],
  "bad-plan: a rate": [{ changes: { rates: [{ sender: HOST.id, receiver: C, stages: 1 }] } }, /without a shard/],
};
for (const [name, [about, says]] of Object.entries(REFUSED)) {
  test(`refused: ${name}`, async () => {
    const { host, states } = await joined();
    host.tell(proposal(host, about));
    const refuse = await host.next("Refuse");
    assert.equal(refuse.reason, name.split(":")[0]);
    assert.match(refuse.text, says);
    assert.match(states.at(-1).problem, says);
  });
}

test("refused: no link to another peer of the plan, and no shard of its own", async () => {
  const { host } = await joined();
  const propose = proposal(host);
  propose.plan.shards = [shard(host.tab, 0, 2), shard(C, 2, 5)];
  propose.plan.answering = C;
  propose.plan.rates = [{ sender: host.tab, receiver: C, stages: 1 }];
  host.tell(propose);
  assert.equal((await host.next("Refuse")).reason, "not-linked");
  propose.request = R1;
  propose.plan.shards = [shard(HOST.id, 0, 2), shard(C, 2, 5)];
  propose.plan.rates = [];
  host.tell(propose);
  assert.match((await host.next("Refuse")).text, /no shard for this peer/);
});

/** Waits until something holds. */
async function until(holds) {
  while (!holds()) await new Promise((done) => setTimeout(done, 5));
}

/** A tab that was linked to another peer, too, and a plan for both. */
async function withOther() {
  const { host, states, posted } = await joined();
  host.list();
  await host.next("Hello");
  await until(() => states.at(-1).linked.includes("other"));
  const propose = proposal(host);
  propose.plan.shards[1].peer = propose.plan.answering = OTHER.id;
  propose.plan.rates = [{ sender: host.tab, receiver: OTHER.id, stages: 1 }];
  return { host, states, posted, propose };
}
const lose = (host) => host.say("closed", { channel: host.other, why: "the line is gone" });

test("links that a blip took are waited for: the proposal may come through first", async () => {
  const { host, states, propose } = await withOther();
  const before = host.other;
  lose(host);
  host.tell(propose);
  assert.equal((await host.next("Accept", "Refuse")).type, "Accept");
  assert.notEqual(host.other, before);
  await host.next("Done");
  assert.equal(states.at(-1).done, 1);
});

test("who does not come back is waited for a little", async () => {
  const { host, propose } = await withOther();
  host.isAway = true;
  lose(host);
  host.tell(propose);
  const began = performance.now();
  const refuse = await host.next("Accept", "Refuse");
  const tookS = (performance.now() - began) / 1000;
  assert.deepEqual([refuse.reason, refuse.text], ["not-linked", `no link to peer ${OTHER.id.slice(0, 8)}`]);
  assert.ok(tookS > limits.BACK_S - 0.1 && tookS < limits.BACK_S + 1.5, `${tookS}`);
});

test("a request that is cancelled meanwhile waits no more", async () => {
  const { host, states, posted, propose } = await withOther();
  lose(host);
  host.tell(propose);
  await until(() => posted.length); // the embedded rows are the last thing before it waits
  host.tell(make("Cancel", { request: propose.request }));
  await host.next("Hello"); // of the link that is back
  await new Promise((done) => setTimeout(done, 3000 * limits.BACK_LOOK_S));
  assert.ok(states.every((state) => !state.now));
  host.tell(proposal(host, { request: R1 }));
  assert.equal((await host.next("Accept", "Refuse")).request, R1);
});

test("who said goodbye is not waited for", async () => {
  const { host, states, propose } = await withOther();
  host.isAway = true;
  host.tell(make("Goodbye", { text: "leaving" }), host.other);
  await until(() => !states.at(-1).linked.includes("other"));
  await until(() => host.texts.filter((one) => one.type === "close").length);
  host.tell(propose);
  const began = performance.now();
  assert.equal((await host.next("Accept", "Refuse")).reason, "not-linked");
  assert.ok(performance.now() - began < 1000 * limits.BACK_S / 2);
});

// --- how fast it is now ---------------------------------------------------------------------------

/** What statuses tell of the time of a token, until one tells of a time that fits. */
async function told(host, fits) {
  for (;;) {
    const tokenS = (await host.next("Status")).models[0]?.timing?.per_token_s;
    if (tokenS && fits(tokenS)) return tokenS;
  }
}
const own = (tokenS) => tokenS === TIMING.per_token_s;
const isSlow = (tokenS) => tokenS > 1.5 * TIMING.per_token_s;
/** 90 ms where 6 should do: a tab that is 15 times slower, of which the first share teaches half. */
const slowly = () => new Promise((done) => setTimeout(done, 30));

test("what a share took is told at once, in a status", async () => {
  const { host } = await joined({ local: slowly });
  host.tell(proposal(host));
  await host.next("Done");
  assert.ok((await told(host, isSlow)) < 15 * TIMING.per_token_s);
});

/** A share that is slow, and then all that is told of the model. */
async function afterSlowShare(host) {
  host.tell(proposal(host));
  await host.next("Done");
  host.tell(make("Prepare", { request: R1, model: MODEL }));
  return told(host, () => true);
}

test("not beside a peer of the same machine: planners know that they share it", async () => {
  const host = new FakeHost();
  host.device = { host: "m1", cores: 1, host_cores: 1, threads: 1, system: "", memory_bytes: 0, software: "" };
  await joined({ local: slowly, host });
  assert.ok(own(await afterSlowShare(host)));
});

test("nor while nobody sees the page", async () => {
  const { host, peer } = await joined({ local: slowly });
  peer.visible = false;
  assert.ok(own(await afterSlowShare(host)));
});

test("it looks while somebody is there and sees the page, and tells what two looks saw", async () => {
  const real = globalThis.setTimeout;
  const pulses = [];
  globalThis.setTimeout = (work, ms) => (ms >= 1000 * limits.PULSE_AGAIN_S ? pulses.push(work) : real(work, ms));
  try {
    let looks = 0;
    const compare = async () => (looks++, 3);
    const { host, peer } = await joined({ compare });
    const pulse = pulses.findIndex((work) => /look/.test(work));
    host.tell(make("Prepare", { request: R1, model: MODEL }));
    await told(host, own);
    const beat = async () => {
      const due = pulses.splice(0).filter((work) => /look/.test(work));
      assert.equal(due.length, 1);
      due[0]();
      await until(() => pulses.some((work) => /look/.test(work)));
    };
    peer.visible = false;
    await beat();
    assert.equal(looks, 0);
    peer.visible = true;
    await beat();
    assert.equal(looks, 1);
    await beat();
    assert.equal(await told(host, isSlow), 3 * TIMING.per_token_s);
    assert.ok(pulse >= 0);
  } finally {
    globalThis.setTimeout = real;
  }
});

test("an error of the engine fails the request by name", async () => {
  const hold = () => {
    throw new Error("the memory ran out");
  };
  const { host } = await joined({ hold });
  host.tell(proposal(host));
  const fail = await host.next("Fail");
  assert.deepEqual([fail.request, fail.code], [R2, "internal"]);
  assert.match(fail.text, /the memory ran out/);
});

test("a cancelled request stops at the next step, and nobody is told", async () => {
  let go;
  const held = new Promise((done) => (go = done));
  const { host, runs, states } = await joined({ hold: (block) => (block === 1 ? held : null) });
  host.tell(proposal(host));
  await host.next("Accept");
  while (!runs[0]?.steps.includes("encode 1")) await new Promise((done) => setTimeout(done, 5));
  host.tell(make("Cancel", { request: R2 }));
  await new Promise((done) => setTimeout(done, 20));
  go();
  host.tell(proposal(host, { request: R1 }));
  assert.equal((await host.next("Accept", "Codes", "Fail", "Done")).request, R1);
  assert.equal(runs[0].steps.at(-1), "encode 1");
  await host.next("Done");
  assert.equal(states.at(-1).done, 1);
});

test("codes that the plan does not allow end the link with a reason, and the tab links again", async () => {
  const { host } = await joined({ json: both });
  host.tell(proposal(host, { task: "embed" }));
  await host.next("Accept");
  host.tell(codes(1, 2, [7, 255, 9]));
  const refused = await host.next("LinkRefused");
  assert.equal(refused.reason, "bad-message");
  assert.match(refused.text, /codewords/);
  await host.next("Hello");
  assert.equal(host.texts.filter((one) => one.type === "open").at(-1).channel, 3);
});

test("a lost socket: it joins again by itself, as another peer", async () => {
  const { host, states } = await joined();
  const before = host.tab;
  host.socket.close(1000, "the host restarts");
  await host.next("Hello");
  assert.equal(host.sockets.length, 2);
  assert.equal(host.tab, before); // the key is the same, and so is this host's certificate
  const said = states.filter((state) => state.phase === "waiting").map((state) => state.why);
  const [first, now] = ["in 1 s", "now"].map((when) => said.indexOf(`the host restarts; joining again ${when}`));
  assert.ok(0 <= first && first < now, said.join("\n"));
  assert.equal(states.at(-1).phase, "joined");
});

test("a host that says nothing any more is told within seconds, and no more once it does", async () => {
  const { host, states } = await joined();
  const held = [];
  host.heard = (...said) => held.push(said);
  const began = performance.now();
  await until(() => states.at(-1).phase !== "joined");
  assert.ok(performance.now() - began < 3500, `${performance.now() - began}`);
  assert.equal(states.at(-1).phase, "waiting");
  assert.equal(states.at(-1).why, "nothing is heard of host; joining again as soon as it answers");
  delete host.heard;
  for (const said of held) host.heard(...said);
  await until(() => states.at(-1).phase === "joined");
  assert.equal(host.sockets.length, 1);
});

test("a host that is there is never said to be away", async () => {
  const { host, states } = await joined();
  await new Promise((done) => setTimeout(done, 4500));
  assert.ok(states.every((state) => state.phase !== "waiting"));
  assert.equal(host.sockets.length, 1);
});

test("who is lost midway through a request says so, and counts no share", async () => {
  const { host, states } = await joined();
  host.tell(proposal(host));
  await host.next("Done");
  await until(() => states.at(-1).newest === "done");
  let go;
  const held = new Promise((done) => (go = done));
  const other = await joined({ hold: (block) => (block === 2 ? held : null) });
  other.host.tell(proposal(other.host));
  await until(() => other.runs[0]?.steps.includes("encode 2"));
  other.host.socket.close(1000, "the network is gone");
  go();
  await until(() => other.states.at(-1).newest);
  const { newest, done, problem, now } = other.states.at(-1);
  assert.deepEqual({ newest, done, problem, now }, { newest: "lost", done: 0, problem: "", now: null });
});

test("who planned a request and says goodbye midway has stopped it", async () => {
  let go;
  const held = new Promise((done) => (go = done));
  const { host, runs, states } = await joined({ hold: (block) => (block === 2 ? held : null) });
  host.tell(proposal(host));
  await until(() => runs[0]?.steps.includes("encode 2"));
  host.tell(make("Goodbye", { text: "leaving" }));
  await new Promise((done) => setTimeout(done, 20));
  go();
  await until(() => states.at(-1).newest);
  assert.deepEqual([states.at(-1).newest, states.at(-1).done], ["stopped", 0]);
});

test("a share whose end nobody heard of was not done", async () => {
  const { host, states } = await joined({
    hold: (block) => {
      if (block === 2) host.heard = () => {};
    },
  });
  host.tell(proposal(host));
  await until(() => states.at(-1).done === 1);
  host.socket.close(1000, "the network is gone");
  await until(() => states.at(-1).newest === "lost");
  assert.equal(states.at(-1).done, 0);
});

test("a request that goes well leaves no problem of one before it", async () => {
  const { host, states } = await joined();
  host.tell(proposal(host, { tokens: [1, 2, 3] }));
  await host.next("Refuse");
  assert.deepEqual([states.at(-1).newest, states.at(-1).problem.includes("has 3")], ["refused", true]);
  host.tell(proposal(host, { request: R1 }));
  await host.next("Done");
  await until(() => states.at(-1).newest === "done");
  assert.equal(states.at(-1).problem, "");
});

/** The clock of this process so many seconds later, for good; what sets it right. */
function later(seconds) {
  const real = Date.now;
  Date.now = () => real() + 1000 * seconds;
  return () => (Date.now = real);
}

for (const [what, away, says] of [
  ["joined again", ({ host }) => (host.socket.close(1000, "the host restarts"), host.next("Hello")), "since-joined"],
  ["slept for a little", ({ peer, states }) => (peer.hurry(), until(() => states.at(-1).newest === "since-woke")), "since-woke"],
]) {
  test(`who ${what} knows no more which request was the newest`, async () => {
    const tab = await joined();
    const { host, states } = tab;
    assert.equal(states.at(-1).newest, null);
    host.tell(proposal(host));
    await host.next("Done");
    host.tell(make("Cancel", { request: 91n, text: "one device is faster" }));
    await until(() => states.at(-1).leftOut !== null);
    assert.equal(states.at(-1).newest, "done");
    const right = later(says === "since-woke" ? limits.SILENCE_S + 1 : 0);
    try {
      await away(tab);
    } finally {
      right();
    }
    const { newest, leftOut, done } = states.at(-1);
    assert.deepEqual({ newest, leftOut, done }, { newest: says, leftOut: null, done: 1 });
    host.tell(proposal(host, { request: R1 }));
    await host.next("Done");
    await until(() => states.at(-1).newest === "done");
  });
}

test("who was lost midway still says so when it joined again, and no more the next time", async () => {
  let go;
  const held = new Promise((done) => (go = done));
  const { host, runs, states } = await joined({ hold: (block) => (block === 2 ? held : null) });
  host.tell(proposal(host));
  await until(() => runs[0]?.steps.includes("encode 2"));
  for (const newest of ["lost", "since-joined"]) {
    host.socket.close(1000, "the network is gone");
    go();
    await host.next("Hello");
    assert.equal(states.at(-1).newest, newest);
  }
});

test("a device that slept joins anew at once", async () => {
  const { host, peer } = await joined();
  const real = Date.now;
  Date.now = () => real() + 1000 * (limits.LOST_S + 1);
  try {
    peer.hurry();
    await host.next("Hello");
  } finally {
    Date.now = real;
  }
  assert.equal(host.sockets.length, 2);
});

test("a tab that may not join says why", async () => {
  const states = [];
  const sockets = [];
  const makeSocket = () => {
    const socket = { close() {}, readyState: 3 };
    sockets.push(socket);
    return socket;
  };
  const http = { refusal: async () => "8 tabs take part already" };
  const peer = new TabPeer({ makeSocket, http, engine: {}, device: {}, name: "x", show: (state) => states.push(state) });
  peers.push(peer);
  peer.start();
  sockets[0].onclose({ reason: "" });
  while (!states.at(-1)?.why.includes("8 tabs")) await new Promise((done) => setTimeout(done, 5));
  assert.equal(states.at(-1).phase, "waiting");
  peer.leave();
});

test("a host with a certificate that does not fit, or another version, is not believed", async () => {
  for (const wrong of [{ peer: C }, { version: 2 }]) {
    const host = new FakeHost();
    const say = host.say.bind(host);
    host.say = (type, fields) => say(type, type === "welcome" ? { ...fields, ...wrong } : fields);
    const states = [];
    const peer = new TabPeer({ makeSocket: host.makeSocket, http: { refusal: async () => "" }, engine: {}, device: {}, name: "x", show: (state) => states.push(state) });
    peers.push(peer);
    peer.start();
    while (states.at(-1)?.phase !== "waiting") await new Promise((done) => setTimeout(done, 5));
    assert.match(states.at(-1).why, /certificate|version/);
    peer.leave();
  }
});

test("it leaves with a goodbye and does not come back", async () => {
  const { host, peer, states } = await joined();
  peer.leave();
  assert.equal((await host.next("Goodbye")).text, "leaving");
  await new Promise((done) => setTimeout(done, 700));
  assert.equal(host.sockets.length, 1);
  assert.equal(states.at(-1).phase, "left");
});
