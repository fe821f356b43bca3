// Files by their SHA-256: from the browser's own store (IndexedDB, on http pages too), else from the host; verified
// either way.

import { sha256 } from "../vendor/noble/hashes/sha2.js";
import { ModelError } from "./errors.js";

const NAME = "astra-mesh-tab";
const FILES = "files";
const USED = "used"; // when each was used last, and its size
export const STORE_BYTES = 2 ** 30; // kept at most: what was not used for longest goes

/** The SHA-256 of bytes, hexadecimal; by the browser itself where the page's context is secure. */
export async function hashOf(bytes) {
  const digest = globalThis.crypto?.subtle ? new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)) : sha256(bytes);
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** null where the browser has no store for this page: files are then fetched each time. */
async function openFiles() {
  if (!globalThis.indexedDB) return null;
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => [FILES, USED].forEach((name) => request.result.createObjectStore(name));
  return settled(request).catch(() => null);
}

class Files {
  #base;

  constructor(base) {
    this.#base = base;
  }

  async get(hash) {
    const data = await settled(this.#base.transaction(FILES).objectStore(FILES).get(hash));
    if (data) await this.#touch(hash, data.byteLength);
    return data && new Uint8Array(data);
  }

  #touch(hash, bytes) {
    return settled(this.#base.transaction(USED, "readwrite").objectStore(USED).put({ at: Date.now(), bytes }, hash));
  }

  async put(hash, data) {
    await this.#makeRoom(data.byteLength);
    await settled(this.#base.transaction(FILES, "readwrite").objectStore(FILES).put(data, hash));
    await this.#touch(hash, data.byteLength);
  }

  async drop(hash) {
    const both = this.#base.transaction([FILES, USED], "readwrite");
    both.objectStore(FILES).delete(hash);
    await settled(both.objectStore(USED).delete(hash));
  }

  async #makeRoom(bytes) {
    const store = this.#base.transaction(USED).objectStore(USED);
    const [hashes, uses] = await Promise.all([settled(store.getAllKeys()), settled(store.getAll())]);
    const known = hashes.map((hash, i) => ({ hash, ...uses[i] })).sort((a, b) => a.at - b.at);
    let held = known.reduce((sum, one) => sum + one.bytes, bytes);
    for (const one of known) {
      if (held <= STORE_BYTES) return;
      held -= one.bytes;
      await this.drop(one.hash);
    }
  }
}

/**
 * The store of one host's files. `get(sha256, bytes, arrived)`: a Uint8Array whose hash that is; `arrived` is told how
 * many of its bytes came from the host, as they come.
 *
 * @param http  pieces(path, cache): Uint8Arrays, as they come
 */
export async function openStore(http) {
  const base = await openFiles();
  const files = base && new Files(base);

  async function kept(hash) {
    const data = await files?.get(hash).catch(() => null);
    if (!data) return null;
    if ((await hashOf(data)) === hash) return data;
    await files.drop(hash).catch(() => {}); // the browser's disk lied
    return null;
  }

  /** What comes from the host; null where that is not what was promised. */
  async function received(hash, bytes, arrived, cache) {
    const data = new Uint8Array(bytes);
    let held = 0;
    for await (const piece of http.pieces(`/tab/blobs/${hash}`, cache)) {
      if (held + piece.length > bytes) return null;
      data.set(piece, held);
      held += piece.length;
      arrived(held);
    }
    return held === bytes && (await hashOf(data)) === hash ? data : null;
  }

  async function fetched(hash, bytes, arrived) {
    // What once came altered lies in the browser's cache, too.
    const data = (await received(hash, bytes, arrived, "default")) ?? (await received(hash, bytes, arrived, "reload"));
    if (data === null) throw new ModelError("a file of the model is not the one that was promised: it was damaged or altered on the way");
    await files?.put(hash, data.buffer).catch(() => {}); // a full or forbidden store: fetched again next time
    return data;
  }

  return { get: async (hash, bytes, arrived = () => {}) => (await kept(hash)) ?? fetched(hash, bytes, arrived) };
}
