// The one WebSocket: what happens in the mesh, as it happens. It comes back by itself.

import { giveUp, json, socket } from "./api.js";

const FIRST_MS = 500;
const LONGEST_MS = 8000;
const SILENCE_MS = 5000; // a peer that is there says something every two seconds
const LOOK_MS = 500; // between two looks at the silence

/**
 * @param on  mesh(message), request(message), marks(message): what the peer tells;
 *            up(), down(why): from now on it can be heard, or not; locked(): it wants a token
 */
export function listen(on) {
  let wait = FIRST_MS;

  function open() {
    const line = socket("/live", "astra-mesh.live");
    let heard = false;
    let looks = 0; // since the last word. Time would not do: a page that slept heard nothing either
    const looking = setInterval(() => {
      if (++looks * LOOK_MS >= SILENCE_MS) silent();
    }, LOOK_MS);
    line.onmessage = (event) => {
      looks = 0;
      const message = JSON.parse(event.data);
      wait = FIRST_MS;
      if (!heard) on.up();
      heard = true;
      on[message.type]?.(message);
    };
    line.onclose = () => {
      clearInterval(looking);
      closed();
    };

    /** A network that was cut and a peer that hangs close nothing. */
    function silent() {
      clearInterval(looking);
      line.onmessage = line.onclose = null; // its end would come with the peer's answer
      line.close();
      on.down(giveUp());
      setTimeout(open, FIRST_MS); // the silence was the wait
    }
  }

  /** A WebSocket does not say why it failed; a plain question does. */
  async function closed() {
    try {
      await json("/v1/models", undefined, AbortSignal.timeout(SILENCE_MS));
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
