// Files by their SHA-256: fetched once, verified always, and no more of them kept than there is room for.

import assert from "node:assert/strict";
import { createHash, webcrypto } from "node:crypto";
import { afterEach, test } from "node:test";

import { STORE_BYTES, hashOf, openStore } from "../../astra_mesh/web/site/peer/store.js";

globalThis.crypto ??= webcrypto;

/** As much of IndexedDB as the store uses, in memory; `refuse`: what every write fails with. */
class FakeDatabase {
  stores = {};
  refuse = null;

  static requested(work) {
    const request = {};
    queueMicrotask(() => {
      try {
        request.result = work();
        request.onsuccess?.();
      } catch (error) {
        request.error = error;
        request.onerror?.();
      }
    });
    return request;
  }

  createObjectStore(name) {
    this.stores[name] = new Map();
  }

  transaction() {
    const write = (work) =>
      FakeDatabase.requested(() => {
        if (this.refuse) throw this.refuse;
        return work();
      });
    return {
      objectStore: (name) => {
        const held = this.stores[name];
        return {
          get: (key) => FakeDatabase.requested(() => held.get(key)),
          put: (value, key) => write(() => held.set(key, value)),
          delete: (key) => write(() => held.delete(key)),
          getAllKeys: () => FakeDatabase.requested(() => [...held.keys()]),
          getAll: () => FakeDatabase.requested(() => [...held.values()]),
        };
      },
    };
  }
}

/** A browser's storage; null: it has none, an error: it does not open. */
function browserWith(database) {
  if (database === null) delete globalThis.indexedDB;
  else {
    globalThis.indexedDB = {
      open: () => {
        const request = FakeDatabase.requested(() => {
          if (database instanceof Error) throw database;
          request.result = database;
          if (!Object.keys(database.stores).length) request.onupgradeneeded();
          return database;
        });
        return request;
      },
    };
  }
}

afterEach(() => browserWith(null));

const bytesOf = (text) => new TextEncoder().encode(text);
const nameOf = (data) => createHash("sha256").update(data).digest("hex");

/** A host of files; `asked`: their addresses, in order. */
function host(...files) {
  const known = new Map(files.map((data) => [`/tab/blobs/${nameOf(data)}`, data]));
  const asked = [];
  async function* pieces(path) {
    asked.push(path);
    const data = known.get(path);
    yield data.slice(0, 5);
    yield data.slice(5);
  }
  return { pieces, asked, known };
}

const A = bytesOf("weights of a block");
const B = bytesOf("others");

test("a hash is that of Node's own library", async () => {
  assert.equal(await hashOf(A), nameOf(A));
});

test("a file is fetched once, also by a page that is opened later", async () => {
  browserWith(new FakeDatabase());
  const http = host(A, B);
  const store = await openStore(http);
  assert.deepEqual(await store.get(nameOf(A), A.length), A);
  assert.deepEqual(await store.get(nameOf(A), A.length), A);
  assert.deepEqual(await (await openStore(http)).get(nameOf(A), A.length), A);
  assert.equal(http.asked.length, 1);
  assert.deepEqual(await store.get(nameOf(B), B.length), B);
  assert.equal(http.asked.length, 2);
});

for (const [what, change] of [["altered", (data) => (data[3] ^= 1)], ["cut", (data) => data.slice(1)], ["longer", (data) => [...data, 0]]]) {
  test(`a file that was ${what} on the way is refused and not kept`, async () => {
    const database = new FakeDatabase();
    browserWith(database);
    const http = host(A);
    const path = `/tab/blobs/${nameOf(A)}`;
    const bad = A.slice();
    const changed = change(bad);
    http.known.set(path, typeof changed === "number" ? bad : Uint8Array.from(changed));
    const store = await openStore(http);
    await assert.rejects(store.get(nameOf(A), A.length), /not the one that was promised/);
    assert.equal(database.stores.files.size, 0);
    http.known.set(path, A); // the next try may go well
    assert.deepEqual(await store.get(nameOf(A), A.length), A);
  });
}

test("a file that the browser's cache keeps as it came, altered, is fetched past it", async () => {
  browserWith(null);
  const bad = A.slice();
  bad[3] ^= 1;
  const asked = [];
  async function* pieces(path, cache) {
    asked.push(cache);
    yield cache === "reload" ? A : bad;
  }
  const store = await openStore({ pieces });
  assert.deepEqual(await store.get(nameOf(A), A.length), A);
  assert.deepEqual(asked, ["default", "reload"]);
});

test("a file that the browser's disk damaged is fetched again", async () => {
  const database = new FakeDatabase();
  browserWith(database);
  const http = host(A);
  const store = await openStore(http);
  await store.get(nameOf(A), A.length);
  new Uint8Array(database.stores.files.get(nameOf(A)))[0] ^= 1;
  assert.deepEqual(await store.get(nameOf(A), A.length), A);
  assert.equal(http.asked.length, 2);
  assert.deepEqual(await store.get(nameOf(A), A.length), A);
  assert.equal(http.asked.length, 2);
});

test("what was not used for longest makes room", async () => {
  const database = new FakeDatabase();
  browserWith(database);
  const http = host(A);
  const store = await openStore(http);
  for (const [name, at, bytes] of [["old", 1, 9], ["older", 0, 9], ["large", 2, STORE_BYTES - A.length - 9]]) {
    database.stores.files.set(name, new ArrayBuffer(0));
    database.stores.used.set(name, { at, bytes });
  }
  await store.get(nameOf(A), A.length);
  assert.deepEqual([...database.stores.files.keys()].sort(), ["large", "old", nameOf(A)].sort());
  assert.deepEqual([...database.stores.used.keys()].sort(), ["large", "old", nameOf(A)].sort());
});

test("a file that is used stays longer", async () => {
  const database = new FakeDatabase();
  browserWith(database);
  const store = await openStore(host(A));
  await store.get(nameOf(A), A.length);
  database.stores.used.get(nameOf(A)).at = 0;
  await store.get(nameOf(A), A.length);
  assert.ok(Date.now() - database.stores.used.get(nameOf(A)).at < 60_000);
});

test("a full store costs nothing but another download", async () => {
  const database = new FakeDatabase();
  browserWith(database);
  database.refuse = new Error("QuotaExceededError");
  const http = host(A);
  const store = await openStore(http);
  assert.deepEqual(await store.get(nameOf(A), A.length), A);
  assert.deepEqual(await store.get(nameOf(A), A.length), A);
  assert.equal(http.asked.length, 2);
});

for (const [what, database] of [["no store", null], ["a store that does not open", new Error("private window")]]) {
  test(`a browser with ${what} fetches each time`, async () => {
    browserWith(database);
    const http = host(A);
    const store = await openStore(http);
    assert.deepEqual(await store.get(nameOf(A), A.length), A);
    assert.deepEqual(await store.get(nameOf(A), A.length), A);
    assert.equal(http.asked.length, 2);
  });
}
