// The one WebSocket: what happens in the mesh, as it happens. It comes back by itself.

import { json, socket } from "./api.js";

const FIRST_MS = 500;
const LONGEST_MS = 8000;

/**
 * @param on  mesh(message), request(message), marks(message): what the peer tells;
 *            up(), down(why): from now on it can be heard, or not; locked(): it wants a token
 */
export function listen(on) {
  let wait = FIRST_MS;

  function open() {
    const line = socket("/live", "astra-mesh.live");
    let heard = false;
    line.onmessage = (event) => {
      const message = JSON.parse(event.data);
      wait = FIRST_MS;
      if (!heard) on.up();
      heard = true;
      on[message.type]?.(message);
    };
    line.onclose = closed;
  }

  /** A WebSocket does not say why it failed; a plain question does. */
  async function closed() {
    try {
      await json("/v1/models");
      on.down("connecting again");
    } catch (error) {
      if (error.status === 401) return on.locked(open);
      on.down(error.message);
    }
    setTimeout(open, wait);
    wait = Math.min(2 * wait, LONGEST_MS);
  }

  open();
}
