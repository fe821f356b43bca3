// The peer that serves this page, as the tab's worker asks it over HTTP.

import { envelope } from "./envelope.js";
import { FetchError, ModelError, UnknownFileError } from "./errors.js";

const KINDS = { unsupported_model: ModelError, model_not_found: UnknownFileError }; // by code; the first is the one refusal that stays
const UPGRADE_REQUIRED = 426; // what GET /tab says to who could join by a WebSocket

/** An address as people are told it: without the digits of a hash that tell nothing. */
const short = (path) => path.replace(/[0-9a-f]{64}/g, (hash) => hash.slice(0, 12));

/**
 * json(path), post(path, body, point): bytes; pieces(path, cache): Uint8Arrays as they come, `cache` as for fetch. `token()` is what the page has
 * now, null where none is wanted. Whatever did not arrive is a FetchError.
 */
export function hostAt(base, token) {
  const headers = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

  async function ask(path, init = {}) {
    let response;
    try {
      response = await fetch(new URL(path, base), { ...init, headers: { ...headers(), ...init.headers } });
    } catch {
      throw new FetchError(`the peer that serves this page does not answer (${short(path)})`);
    }
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    const Kind = KINDS[error?.code] ?? FetchError;
    throw new Kind(error?.message ?? `the peer answers ${short(path)} with status ${response.status}`);
  }

  const arrived = (path, reading) =>
    reading.catch(() => {
      throw new FetchError(`the line to the peer that serves this page broke (${short(path)})`);
    });

  async function* pieces(path, cache = "default") {
    const reader = (await ask(path, { cache })).body.getReader();
    try {
      for (;;) {
        const { value, done } = await arrived(path, reader.read());
        if (done) return;
        yield value;
      }
    } finally {
      reader.cancel().catch(() => {}); // where nobody wants the rest
    }
  }

  async function json(path) {
    const response = await ask(path);
    return arrived(path, response.json());
  }

  /** Sealed for the host whose point this is, and so is the answer. */
  async function post(path, body, point) {
    const { message, open } = envelope(path, body, point);
    const response = await ask(path, { method: "POST", body: message, headers: { "Content-Type": "application/octet-stream" } });
    return open(new Uint8Array(await arrived(path, response.arrayBuffer())));
  }

  /** Why the peer would not let a tab join now; "" where nothing speaks against it. */
  async function refusal() {
    const response = await fetch(new URL("/tab", base), { headers: headers() }).catch(() => null);
    if (!response || response.ok || response.status === UPGRADE_REQUIRED) return "";
    const { error } = await response.json().catch(() => ({}));
    return error?.message ?? "";
  }

  return { refusal, json, post, pieces };
}
