// The requests that a tab takes part in. As the half of astra_mesh/peer/requests.py that takes part.

import { MeshError, PeerLostError, ProtocolError } from "./errors.js";
import { EarlyCodes } from "./early.js";
import { OPEN_REQUESTS_PER_LINK, REQUESTS_PER_PEER } from "./limits.js";
import { make, sanitise } from "./messages.js";
import { Participation } from "./part.js";

export class Work {
  #around;
  #parts = new Map(); // request -> Participation
  #exchanges = new Map();
  #early = new EarlyCodes();
  #preparing = new Map(); // link -> Map of model to the requests that wait for it

  /**
   * @param around  me(): id of this peer; models, findLink, mayBeBack, turns, isAway: for Participation; status(link): sends
   *                one; on: began(about), block(block), computed(plan, layout, seconds), ended(how, why), missed(), of the
   *                shard that is computed; leftOut(link, why)
   */
  constructor(around) {
    this.#around = around;
  }

  /** Whether any shard is being worked on. */
  get running() {
    return this.#parts.size > 0;
  }

  /** Handle a message of a request; ProtocolError ends the link. */
  onMessage(link, message) {
    if (message.type === "Codes" || message.type === "Pooled") this.#codes(link, message);
    else if (message.type === "Propose") this.#propose(link, message);
    else if (message.type === "Prepare") this.#prepare(link, message);
    else if (message.type === "Cancel") this.#cancel(link, message);
  }

  /** A link is over: what needs it ends. */
  linkGone(link, error) {
    this.#early.dropLink(link);
    this.#preparing.delete(link);
    for (const part of this.#parts.values()) {
      if (part.link === link) part.cancel(this.#around.isAway(link));
      else part.linkGone(link, error ?? new PeerLostError("a peer left the mesh"));
    }
  }

  #codes(link, message) {
    const exchange = this.#exchanges.get(message.request);
    if (!exchange) return this.#early.put(link, message);
    try {
      exchange.take(link.peer, message);
    } finally {
      link.consumed(message);
    }
  }

  /** Of what was never proposed here: who planned it left this tab out, and says why. */
  #cancel(link, { request, text }) {
    const part = this.#parts.get(request);
    if (part?.link === link) part.cancel();
    else if (!part && text) this.#around.on.leftOut(link, text);
  }

  #propose(link, propose) {
    const { request } = propose;
    const { me, models, findLink, mayBeBack, turns, isAway, on } = this.#around;
    const opened = (exchange) => this.#open(request, exchange);
    const part = new Participation(propose, link, { me: me(), models, findLink, mayBeBack, turns, isAway, on: { ...on, opened } });
    if (this.#parts.has(request)) return part.refuse("bad-plan", "another request has this id");
    if (this.#parts.size >= REQUESTS_PER_PEER) {
      part.refuse("busy");
      return this.#over(part);
    }
    this.#parts.set(request, part);
    part.run().finally(() => this.#over(part));
  }

  /** Deliver codes of a request from now on, first those that came early. */
  #open(request, exchange) {
    this.#exchanges.set(request, exchange);
    for (const [link, message] of this.#early.take(request)) {
      try {
        exchange.take(link.peer, message);
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error;
        link.refuse("bad-message", sanitise(error.message));
      }
      link.consumed(message);
    }
  }

  #over(part) {
    const { request } = part.propose;
    this.#parts.delete(request);
    this.#exchanges.delete(request);
    this.#early.drop(request);
    part.close();
    this.#around.models.tidy();
  }

  /** Load a model for another peer. It gets a status, also if there is nothing new. */
  async #prepare(link, { request, model }) {
    if (!this.#preparing.has(link)) this.#preparing.set(link, new Map());
    const asked = this.#preparing.get(link);
    if (asked.has(model)) {
      if (asked.get(model).size < OPEN_REQUESTS_PER_LINK) asked.get(model).add(request);
      return;
    }
    asked.set(model, new Set([request]));
    try {
      await this.#around.models.load(model);
      this.#around.status(link);
    } catch (error) {
      const [code, why] = error instanceof MeshError ? [error.code, error.message] : ["internal", `a browser met an error of its own: ${error.message}`];
      for (const one of asked.get(model)) link.sendIfOpen(make("Fail", { request: one, code, text: sanitise(why) }));
    } finally {
      asked.delete(model);
    }
  }
}
