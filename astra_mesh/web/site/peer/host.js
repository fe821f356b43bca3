// The peer that serves this page, as the tab's worker asks it over HTTP.

import { ModelError } from "./errors.js";

/** ask(path), json(path), post(path, body): an ArrayBuffer. `token` is null where none is wanted. */
export function hostAt(base, token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};

  async function ask(path, init = {}) {
    let response;
    try {
      response = await fetch(new URL(path, base), { headers, ...init });
    } catch {
      throw new ModelError(`the peer that serves this page does not answer (${path})`);
    }
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    throw new ModelError(error?.message ?? `the peer answers ${path} with status ${response.status}`);
  }

  return {
    ask,
    json: async (path) => (await ask(path)).json(),
    post: async (path, body) => (await ask(path, { method: "POST", body, headers: { ...headers, "Content-Type": "application/msgpack" } })).arrayBuffer(),
  };
}
