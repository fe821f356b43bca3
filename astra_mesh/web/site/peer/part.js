// Taking part in a request that another peer planned: check, accept, run the shard, report. As
// astra_mesh/peer/part.py.

import { embedRange } from "./engine.js";
import { CancelledError, MeshError } from "./errors.js";
import { Exchange, Patience } from "./exchange.js";
import { BadPlanError, checkPlan, partners } from "./layout.js";
import { BACK_LOOK_S, BACK_S } from "./limits.js";
import { make, sanitise } from "./messages.js";
import { Pipeline, Timeline } from "./pipeline.js";
import { telling } from "./progress.js";

/** How a proposal ends here. */
export const Ended = {
  DONE: "done", // the shard is computed
  LOST: "lost", // this tab was cut off
  STOPPED: "stopped", // whoever planned it wants it no more, or is gone
  FAILED: "failed", // by an error
  REFUSED: "refused", // not begun
};

/** Why a proposal is refused. */
export class NotTakingPartError extends Error {
  constructor(reason, text) {
    super(text);
    this.reason = reason;
  }
}

/** One proposal; run() and then close() are its whole life. */
export class Participation {
  #me;
  #models;
  #findLink;
  #mayBeBack;
  #turns;
  #isAway;
  #on;
  #abort = new AbortController();
  #layout = null;
  #exchange = null;
  #completed = false;
  #lost = false; // cut off

  /**
   * @param around  me: id of this peer; models: Models; findLink(peer): Link or null; mayBeBack(peer): whether one without
   *                a link had one a moment ago; turns: Turns; isAway(link): whether this tab is cut off, where a link was lost;
   *                on: opened(exchange) before it is accepted, began(about), block(block), computed(plan, layout, seconds) once
   *                it is done, ended(how, why): see Ended; missed(): what was done did not get there
   */
  constructor(propose, link, { me, models, findLink, mayBeBack, turns, isAway, on }) {
    this.propose = propose;
    this.link = link;
    this.#me = me;
    this.#models = models;
    this.#findLink = findLink;
    this.#mayBeBack = mayBeBack;
    this.#turns = turns;
    this.#isAway = isAway;
    this.#on = on;
  }

  /** Check the proposal, accept it, run the shard and report; errors go to the coordinator. */
  async run() {
    const { request } = this.propose;
    let pipeline;
    try {
      pipeline = await this.#prepare();
    } catch (error) {
      this.#refuseFor(error);
      return;
    }
    this.#on.opened(this.#exchange);
    this.link.sendIfOpen(make("Accept", { request }));
    try {
      await this.#compute(pipeline);
      this.#on.ended(Ended.DONE);
      this.link.arrived().then((there) => there || (this.#isAway(this.link) && this.#on.missed()));
    } catch (error) {
      if (this.#lost || error instanceof CancelledError) return this.#cancelled();
      this.#on.ended(Ended.FAILED, error.message);
      const [code, text] = error instanceof MeshError ? [error.code, error.message] : ["internal", `a browser met an error of its own: ${error.message}`];
      this.link.sendIfOpen(make("Fail", { request, code, text: sanitise(text) }));
    }
  }

  #cancelled() {
    this.#on.ended(this.#lost ? Ended.LOST : Ended.STOPPED);
  }

  #refuseFor(error) {
    if (this.#lost || error instanceof CancelledError) return this.#cancelled();
    const expected = error instanceof NotTakingPartError;
    this.refuse(expected ? error.reason : "internal", expected ? error.message : `a browser met an error of its own: ${error.message}`);
  }

  /** Tell the coordinator that this peer does not take its shard. */
  refuse(reason, text = "") {
    this.#on.ended(Ended.REFUSED, text || reason);
    this.link.sendIfOpen(make("Refuse", { request: this.propose.request, reason, text: sanitise(text) }));
  }

  async #prepare() {
    const { plan, task, inputs, watch, request } = this.propose;
    if (plan.answering === this.#me) throw new NotTakingPartError("bad-plan", "the peer that plans has to answer itself");
    if (!this.#models.offer(plan.model)) throw new NotTakingPartError("unknown-model", `no model ${plan.model.slice(0, 12)} here`);
    const loaded = await this.#orRefuse("unknown-model", () => this.#models.load(plan.model));
    const tokens = countTokens(loaded.manifest, task, inputs);
    const peers = plan.shards.map((shard) => shard.peer);
    const shard = peers.indexOf(this.#me);
    const codec = await this.#orRefuse("unknown-codebook", () => loaded.model.codec(plan.codec, plan.codebook, []));
    if (shard < 0) throw new NotTakingPartError("bad-plan", "the plan has no shard for this peer");
    const layout = (this.#layout = layoutOf(plan, loaded.manifest.spec, task, tokens, codec));
    const lacks = codec.lacks([...stagesOf(layout, shard, plan.late === "wait" ? [] : codec.able)]);
    if (lacks) throw new NotTakingPartError("unknown-codebook", lacks); // nobody waits for it: the next request has it
    const patience = new Patience(plan.predicted_s, layout.blocks, plan.late);
    const embedded = await loaded.embed(inputs, ...embedRange(layout, shard));
    this.#check();
    const links = await this.#linked(partners(layout, shard).map((i) => peers[i]));
    const run = loaded.model.run(layout, shard, codec, embedded);
    this.#exchange = new Exchange({ request, layout, peers, shard, codec, links, patience });
    if (watch) this.#exchange.timeline = new Timeline();
    const { signal } = this.#abort;
    const onBlock = (block) => this.#on.block(block);
    const [start, stop] = layout.bounds[shard];
    this.#on.began({ model: sanitise(loaded.manifest.name), task, tokens: stop - start, of: tokens, peers: peers.length, blocks: layout.blocks });
    return new Pipeline({ run, layout, shard, exchange: this.#exchange, turns: this.#turns, signal, onBlock });
  }

  /** The result of work on the model; its errors are refusals. */
  async #orRefuse(reason, work) {
    let found;
    try {
      found = await work();
    } catch (error) {
      throw new NotTakingPartError(reason, error.message);
    }
    this.#check();
    return found;
  }

  /**
   * The links to these peers, once they are back: a proposal may come through before them when a network was away.
   * NotTakingPartError where one is missing.
   */
  async #linked(peers) {
    const end = performance.now() + 1000 * BACK_S;
    for (;;) {
      const links = new Map(peers.map((peer) => [peer, this.#findLink(peer)]));
      const missing = peers.filter((peer) => !links.get(peer));
      if (!missing.length) return links;
      const gone = missing.find((peer) => !this.#mayBeBack(peer));
      if (gone || performance.now() > end) throw new NotTakingPartError("not-linked", `no link to peer ${(gone ?? missing[0]).slice(0, 8)}`);
      await new Promise((done) => setTimeout(done, 1000 * BACK_LOOK_S));
      this.#check();
    }
  }

  async #compute(pipeline) {
    const { request, plan } = this.propose;
    const { timeline } = this.#exchange;
    const stop = timeline === null ? () => {} : telling(this.link, request, timeline);
    try {
      await pipeline.all();
    } finally {
      stop();
    }
    const { start, stop: end } = plan.shards.find((shard) => shard.peer === this.#me);
    const report = {
      peer: this.#me, tokens: end - start, ...pipeline.spent, finished_s: pipeline.totalS,
      sent_bytes: this.#exchange.sentBytes, decode_steps: 0, late_parts: this.#exchange.lateParts, rates: this.#exchange.rates,
      precision: "fp32",
    };
    this.link.send(make("Done", { request, report }));
    this.#completed = true;
    this.#on.computed(plan, this.#layout, pipeline.spent.compute_s);
  }

  #check() {
    if (this.#abort.signal.aborted) throw new CancelledError();
  }

  /** Stop; the coordinator is not told. `lost`: because it is out of reach. */
  cancel(lost = false) {
    this.#lost = lost;
    this.#abort.abort();
    this.#exchange?.fail(new CancelledError());
  }

  /** A link is over; before there is an exchange, checking the proposal finds that out. */
  linkGone(link, error) {
    this.#exchange?.linkGone(link, error);
  }

  /** Once run() is over: what others still send for the request is dropped. */
  close() {
    if (this.#completed) return;
    for (const { peer } of this.propose.plan.shards) this.#findLink(peer)?.end(this.propose.request);
    this.#exchange?.abandon();
  }
}

/** The number of tokens of an input; NotTakingPartError where it does not fit the model. */
function countTokens({ name, spec, tasks }, task, inputs) {
  const refuse = (text) => new NotTakingPartError("bad-plan", text);
  if (!tasks.includes(task)) throw refuse(`${name} cannot ${task}; it can ${tasks.join(", ")}: choose another model`);
  const reads = spec.vocab_size > 0 ? "text" : "images";
  if (inputs.image.length) {
    if (reads === "text") throw refuse(`${name} reads text; give a text, not an image`);
    return spec.max_tokens;
  }
  if (reads === "images") throw refuse(`${name} reads images; give an image file`);
  if (!inputs.tokens.length) throw refuse("the prompt is empty; give at least one token of text");
  if (inputs.tokens.length > spec.max_tokens) throw refuse(`${inputs.tokens.length} tokens are too many; ${name} takes ${spec.max_tokens}`);
  return inputs.tokens.length;
}

/** The numbers of stages on the links of a shard; codes may have any of `lower` below them. */
function stagesOf(layout, shard, lower) {
  const sources = layout.sources(shard, 0).map((other) => layout.stagesBetween(other, shard));
  const receivers = layout.receivers(shard, layout.firstBlock).map((other) => layout.stagesBetween(shard, other));
  const planned = [...sources, ...receivers];
  return new Set([...planned, ...lower.filter((stages) => stages < Math.max(...planned))]);
}

function layoutOf(plan, spec, task, tokens, codec) {
  try {
    return checkPlan(plan, spec, task, tokens, codec.firstBlock, codec.able);
  } catch (error) {
    if (error instanceof BadPlanError) throw new NotTakingPartError("bad-plan", error.message);
    throw error;
  }
}
