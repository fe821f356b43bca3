// The peer that serves the page, over HTTP: what does not arrive may arrive the next time.

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { FetchError, ModelError, UnknownFileError } from "../../astra_mesh/web/site/peer/errors.js";
import { hostAt } from "../../astra_mesh/web/site/peer/host.js";
import { makeKey } from "../../astra_mesh/web/site/peer/identity.js";

const real = globalThis.fetch;
afterEach(() => (globalThis.fetch = real));

const HASH = "ab".repeat(32);
const PATH = `/tab/blobs/${HASH}`;
const host = hostAt("http://peer.test", () => "secret");

/** Every request is answered so. */
const answering = (body, init) => (globalThis.fetch = async () => new Response(body, init));

async function all(pieces) {
  const found = [];
  for await (const piece of pieces) found.push(...piece);
  return found;
}

/** A body whose line breaks after a few bytes. */
const broken = () => {
  let sent = false;
  return new ReadableStream({
    pull(stream) {
      if (sent) stream.error(new TypeError("network error"));
      else stream.enqueue(Uint8Array.of(1, 2));
      sent = true;
    },
  });
};

test("pieces come in order, with the token", async () => {
  const asked = [];
  globalThis.fetch = async (url, { headers }) => {
    asked.push([String(url), headers.Authorization]);
    return new Response(Uint8Array.of(1, 2, 3));
  };
  assert.deepEqual(await all(host.pieces(PATH)), [1, 2, 3]);
  assert.deepEqual(asked, [[`http://peer.test${PATH}`, "Bearer secret"]]);
});

test("what is asked about requests is sealed, and an altered answer is none", async () => {
  const asked = [];
  globalThis.fetch = async (url, init) => {
    asked.push(init);
    return new Response(new Uint8Array(40));
  };
  const body = new TextEncoder().encode("My secret password is fish");
  await assert.rejects(host.post(PATH, body, makeKey().point), (error) => error instanceof FetchError && /altered/.test(error.message));
  const [{ method, body: sent }] = asked;
  assert.equal(method, "POST");
  assert.equal(sent.length, 65 + body.length + 16);
  assert.ok(!Buffer.from(sent).includes("password"));
});

test("a line that breaks, and a peer that does not answer, are fetched again later; no sentence has a whole hash", async () => {
  answering(null, { status: 503 });
  const tries = [() => all(host.pieces(PATH)), () => host.json(PATH), () => host.post(PATH, new Uint8Array(), makeKey().point)];
  const says = [/with status 503/, /does not answer \(\/tab\/blobs\/abababababab\)/, /line .* broke/];
  const settings = [
    () => answering(null, { status: 503 }),
    () => (globalThis.fetch = async () => Promise.reject(new TypeError("Failed to fetch"))),
    () => answering(broken()),
  ];
  for (const [i, set] of settings.entries()) {
    for (const tried of tries) {
      set();
      await assert.rejects(tried(), (error) => {
        assert.ok(error instanceof FetchError, error.message);
        assert.match(error.message, says[i]);
        assert.doesNotMatch(error.message, /[0-9a-f]{64}/);
        return true;
      });
    }
  }
});

for (const [status, code] of [[404, "model_not_found"], [429, "busy"], [500, "internal"], [401, "unauthorized"]]) {
  test(`status ${status} is for now`, async () => {
    answering(JSON.stringify({ error: { message: "not now", code } }), { status });
    await assert.rejects(host.json(PATH), (error) => error instanceof FetchError && error.message === "not now");
  });
}

test("a file that the peer knows nothing of is told from others", async () => {
  answering(JSON.stringify({ error: { message: "ask for its model again first", code: "model_not_found" } }), { status: 404 });
  await assert.rejects(all(host.pieces(PATH)), (error) => error instanceof UnknownFileError);
  answering(JSON.stringify({ error: { message: "later", code: "busy" } }), { status: 429 });
  await assert.rejects(all(host.pieces(PATH)), (error) => !(error instanceof UnknownFileError));
});

test("a model that no tab can run stays one", async () => {
  answering(JSON.stringify({ error: { message: "too large for a browser tab", code: "unsupported_model" } }), { status: 500 });
  await assert.rejects(host.json(PATH), (error) => error instanceof ModelError && !(error instanceof FetchError));
});
