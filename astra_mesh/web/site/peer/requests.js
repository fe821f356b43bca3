// Which requests are open on one link, and which of their messages are due; without I/O, the same rules as
// astra_mesh/mesh/requests.py. A tab proposes nothing, so all open requests are the other end's.

import { ProtocolError } from "./errors.js";
import * as limits from "./limits.js";

const ANSWERS = new Set(["Accept", "Refuse", "Progress", "Done", "Token"]); // to a proposal
const OF_REQUESTS = new Set([...ANSWERS, "Codes", "Pooled", "Cancel", "Fail"]);
const LAST = new Set(["Refuse", "Done", "Cancel", "Fail"]); // nothing follows them

export class RequestTable {
  #theirs = new Set();
  #settled = new Set(); // of these, accepted
  #ended = new Set(); // the oldest first

  /** Note a message that this end wants to send; false if its request ended and it is void. */
  sending(message) {
    return this.#pass(message, this.#theirs);
  }

  /** Note a message from the other end; false if it came late and is to be dropped. */
  receiving(message) {
    if (message.type === "Propose") {
      this.#open(message);
      return true;
    }
    return this.#pass(message, null);
  }

  /** Nothing more is wanted for a request. */
  end(request) {
    this.#theirs.delete(request);
    this.#settled.delete(request);
    this.#ended.delete(request);
    this.#ended.add(request);
    for (const oldest of this.#ended) {
      if (this.#ended.size <= limits.ENDED_REQUESTS) break;
      this.#ended.delete(oldest);
    }
  }

  #pass(message, opened) {
    const { type, request } = message;
    if (!OF_REQUESTS.has(type)) return true;
    if (this.#ended.has(request)) return false;
    if (ANSWERS.has(type)) this.#answer(type, request, opened);
    if (LAST.has(type)) this.end(request);
    return true;
  }

  #answer(type, request, opened) {
    if (!opened?.has(request)) throw new ProtocolError(`${type} for a request that was not made`);
    if (type !== "Accept" && type !== "Refuse") return;
    if (this.#settled.has(request)) throw new ProtocolError(`${type} for a proposal that was answered before`);
    this.#settled.add(request);
  }

  #open({ type, request }) {
    if (this.#theirs.has(request) || this.#ended.has(request)) throw new ProtocolError(`${type} with the id of another request`);
    if (this.#theirs.size >= limits.OPEN_REQUESTS_PER_LINK) throw new ProtocolError(`more than ${limits.OPEN_REQUESTS_PER_LINK} requests are open`);
    this.#theirs.add(request);
  }
}
