// The models of a tab: what is offered when, and measured again.

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { FetchError, ModelError, UnknownFileError } from "../../astra_mesh/web/site/peer/errors.js";
import { Models } from "../../astra_mesh/web/site/peer/models.js";

const ID = "e".repeat(64);
const ABOUT = { id: ID, name: "tiny", family: "gpt2", tasks: [], bytes: 1000, codebooks: [] };
const realNow = Date.now;
const realTimer = globalThis.setTimeout;
afterEach(() => {
  Date.now = realNow;
  globalThis.setTimeout = realTimer;
});

/** `failing`: what loading fails with, one after the other; then it goes well. */
async function made({ failing = [], measured = [], about = ABOUT } = {}) {
  const released = [];
  const given = { models: [], running: false };
  const made = () => {
    const number = given.models.length;
    const model = { place: "wasm", why: "", isLost: false, release: async () => released.push(number) };
    given.models.push(model);
    return model;
  };
  const calls = [];
  const asked = [];
  const changes = [];
  const engine = {
    load: async (manifest, progress, insist) => {
      given.insist = insist;
      const error = failing.shift();
      if (error) throw error;
      progress(500, 1000);
      return made();
    },
    measure: async (_, worked, again = false) => {
      calls.push(again);
      const found = measured.shift();
      if (found instanceof Error) throw found;
      return { timing: { per_token_s: found?.s ?? 1 }, books: {}, sure: found?.sure ?? true };
    },
  };
  const json = async (path) => {
    asked.push(path);
    return structuredClone(path === "/tab/models" ? [about] : about);
  };
  const models = new Models({ http: { json }, engine, changed: () => changes.push(true), running: () => given.running });
  await models.refresh(true);
  return { models, calls, asked, given, released, changes };
}

const lost = () => new FetchError("the peer does not answer");
const offered = (models) => models.offers().length === 1;

test("files that did not arrive: offered again when the tab joins anew, and then loaded", async () => {
  const { models } = await made({ failing: [lost()] });
  await assert.rejects(models.load(ID), /does not answer/);
  assert.deepEqual([models.states()[0].state, offered(models)], ["interrupted", false]);
  await models.refresh();
  assert.equal(offered(models), false);
  assert.equal(await models.refresh(true), true);
  assert.deepEqual([models.states()[0].state, offered(models)], ["offered", true]);
  await models.load(ID);
  assert.equal(models.states()[0].state, "ready");
});

test("and after a while, though the tab stays joined", async () => {
  const { models } = await made({ failing: [lost()] });
  await assert.rejects(models.load(ID), /does not answer/);
  Date.now = () => realNow() + 31_000;
  assert.equal(await models.refresh(), true);
  assert.ok(offered(models));
});

test("a model whose codebooks are others now is offered with these, and loaded anew", async () => {
  const about = { ...ABOUT };
  const { models } = await made({ about });
  await models.load(ID);
  assert.equal(await models.refresh(), false);
  assert.equal(models.states()[0].state, "ready");
  const book = { id: "f".repeat(64), codec: "vq", rates: [16, 32], default_rate: 16 };
  about.codebooks = [book];
  assert.equal(await models.refresh(), true);
  assert.deepEqual([models.states()[0].state, models.offer(ID).codebooks[0].id], ["offered", book.id]);
  await models.load(ID);
  assert.equal(models.states()[0].state, "ready");
  assert.equal(await models.refresh(), false);
});

test("a file of another hash, and a model that no tab can run, are not offered again", async () => {
  const { models } = await made({ failing: [new ModelError("not the one that was promised")] });
  await assert.rejects(models.load(ID), /promised/);
  Date.now = () => realNow() + 1e9;
  await models.refresh(true);
  assert.deepEqual([models.states()[0].state, offered(models)], ["failed", false]);
  const large = await made({ about: { ...ABOUT, why: "too large" } });
  await large.models.refresh(true);
  assert.equal(offered(large.models), false);
});

/** A file of a host that knows it once it was asked for the manifest so many times. */
function fileAfter(asked, times) {
  const begun = asked.length;
  return async () => {
    if (asked.length - begun < times) throw new UnknownFileError("ask for its model again first");
    return "the file";
  };
}

test("a file that the host forgot: the manifest is asked for once, and the file comes", async () => {
  const { models, asked, given } = await made();
  await models.load(ID);
  const before = asked.length;
  assert.equal(await given.insist(fileAfter(asked, 1)), "the file");
  assert.deepEqual(asked.slice(before), [`/tab/models/${ID}`]);
  assert.equal(await given.insist(fileAfter(asked, 0)), "the file");
  assert.equal(asked.length, before + 1);
  assert.deepEqual([models.states()[0].state, offered(models)], ["ready", true]);
});

test("a file that is none of the model's any more: it is withdrawn, and loaded anew", async () => {
  const { models, asked, given } = await made();
  const first = await models.load(ID);
  const before = asked.length;
  await assert.rejects(given.insist(fileAfter(asked, 2)), /made the model's files anew/);
  assert.equal(asked.length, before + 1);
  assert.deepEqual([models.states()[0].state, offered(models)], ["interrupted", false]);
  await models.refresh(true);
  assert.ok(offered(models));
  assert.notEqual(await models.load(ID), first);
  assert.equal(models.states()[0].state, "ready");
});

test("a model that is ready says what more of it comes", async () => {
  const { models, given, changes } = await made();
  assert.deepEqual(models.states()[0].coming, []);
  await models.load(ID);
  assert.deepEqual(models.states()[0].coming, []);
  const [model] = given.models;
  model.coming = [{ bits: 64, done: 3, total: 8 }];
  const before = changes.length;
  model.tell();
  assert.equal(changes.length, before + 1);
  assert.deepEqual(models.states()[0].coming, model.coming);
});

test("a model that is replaced gives its memory back, once no request has it", async () => {
  const about = { ...ABOUT };
  const { models, given, released } = await made({ about });
  await models.load(ID);
  given.running = true;
  given.models[0].isLost = true;
  await models.load(ID);
  assert.deepEqual([given.models.length, released], [2, []]);
  given.running = false;
  await models.tidy();
  assert.deepEqual(released, [0]);
  about.codebooks = [{ id: "f".repeat(64), codec: "vq", rates: [16], default_rate: 16 }];
  await models.refresh();
  await models.tidy();
  assert.deepEqual(released, [0, 1]);
  await models.load(ID);
  await models.tidy();
  assert.deepEqual([models.states()[0].state, released], ["ready", [0, 1]]);
});

test("a file that fails otherwise is not asked for again", async () => {
  const { models, asked, given } = await made();
  await models.load(ID);
  const before = asked.length;
  await assert.rejects(given.insist(async () => Promise.reject(lost())), /does not answer/);
  assert.equal(asked.length, before);
  assert.equal(models.states()[0].state, "ready");
});

test("what was measured while something disturbed it is measured again, until it is sure", async () => {
  const timers = [];
  globalThis.setTimeout = (work) => timers.push(work);
  const { models, calls } = await made({
    measured: [{ s: 9, sure: false }, new Error("a request computes"), { s: 5, sure: false }, { s: 2 }],
  });
  await models.load(ID);
  const timing = () => models.offer(ID).timing.per_token_s;
  const seen = [timing()];
  while (timers.length) {
    await timers.shift()();
    seen.push(timing());
  }
  assert.deepEqual(seen, [9, 9, 5, 2]);
  assert.deepEqual(calls, [false, true, true, true]);
});

test("a tab that left measures no more", async () => {
  const timers = new Set();
  globalThis.setTimeout = (work) => (timers.add(work), work);
  const stop = globalThis.clearTimeout;
  globalThis.clearTimeout = (timer) => timers.delete(timer);
  try {
    const { models } = await made({ measured: [{ sure: false }] });
    await models.load(ID);
    assert.equal(timers.size, 1);
    models.close();
    assert.equal(timers.size, 0);
  } finally {
    globalThis.clearTimeout = stop;
  }
});
