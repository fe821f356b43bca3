// The peer that serves this page, as the tab's worker asks it over HTTP.

import { ModelError } from "./errors.js";

const UPGRADE_REQUIRED = 426; // what GET /tab says to who could join by a WebSocket

/**
 * ask(path), json(path), post(path, body): an ArrayBuffer. `token()` is what the page has now, null where none is
 * wanted.
 */
export function hostAt(base, token) {
  const headers = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

  async function ask(path, init = {}) {
    let response;
    try {
      response = await fetch(new URL(path, base), { ...init, headers: { ...headers(), ...init.headers } });
    } catch {
      throw new ModelError(`the peer that serves this page does not answer (${path})`);
    }
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    throw new ModelError(error?.message ?? `the peer answers ${path} with status ${response.status}`);
  }

  /** Why the peer would not let a tab join now; "" where nothing speaks against it. */
  async function refusal() {
    const response = await fetch(new URL("/tab", base), { headers: headers() }).catch(() => null);
    if (!response || response.ok || response.status === UPGRADE_REQUIRED) return "";
    const { error } = await response.json().catch(() => ({}));
    return error?.message ?? "";
  }

  return {
    ask,
    refusal,
    json: async (path) => (await ask(path)).json(),
    post: async (path, body) => (await ask(path, { method: "POST", body, headers: { "Content-Type": "application/msgpack" } })).arrayBuffer(),
  };
}
