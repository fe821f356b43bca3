// Who holds which tokens of a request, and who needs whose codes; and whether a proposed plan can be run.
// The same arithmetic as astra_mesh/plan/layout.py and check.py.

import * as limits from "./limits.js";

/** A plan that does not fit the model; the text says why. */
export class BadPlanError extends Error {}

const range = (start, stop) => ({ start, stop, length: Math.max(0, stop - start) });
const numbers = (count) => Array.from({ length: count }, (_, i) => i);

/** The key of a link in `stages`. */
export const pair = (sender, receiver) => sender * limits.PEERS_PER_PLAN + receiver;

/** The shards of one request, in token order: see the Python class for what each field holds. */
export class Layout {
  #sources;
  #receivers;

  constructor({ bounds, blocks, causal, classToken, pooling, stages, firstBlock }) {
    Object.assign(this, { bounds, blocks, causal, classToken, pooling, stages, firstBlock });
    let at = 0;
    for (const [start, stop] of bounds) {
      if (start !== at || stop < start) throw new BadPlanError(`shards ${JSON.stringify(bounds)} are not contiguous from 0`);
      at = stop;
    }
    if (at === 0) throw new BadPlanError("a request without tokens");
    const shards = numbers(bounds.length);
    const senders = shards.filter((i) => this.sent(i).length);
    const of = (shard, last) => {
      if (!this.holds(shard) || (last && !this.wanted(shard).length)) return [];
      return senders.filter((i) => i < shard || (i > shard && !causal));
    };
    this.#sources = [false, true].map((last) => shards.map((shard) => of(shard, last)));
    this.#receivers = this.#sources.map((sources) => shards.map((shard) => shards.filter((i) => sources[i].includes(shard))));
  }

  /** T, class token included. */
  get tokens() {
    return this.bounds.at(-1)[1];
  }

  /** Whether each shard has its own class token. */
  get distributed() {
    return this.classToken === "distributed";
  }

  /** Positions whose codes the shard sends. */
  sent(shard) {
    const [start, stop] = this.bounds[shard];
    return range(this.distributed ? Math.max(start, 1) : start, stop);
  }

  /** Whether the shard holds a copy of position 0 that is not in its bounds. */
  copiesClass(shard) {
    return this.distributed && this.bounds[shard][0] > 0 && this.holds(shard);
  }

  /** Whether the shard has tokens at all. */
  holds(shard) {
    const [start, stop] = this.bounds[shard];
    return stop > start;
  }

  /** Rows that the shard computes. */
  localRows(shard) {
    const [start, stop] = this.bounds[shard];
    return stop - start + (this.copiesClass(shard) ? 1 : 0);
  }

  /** Local rows whose output of the last block is needed. */
  wanted(shard) {
    const rows = this.localRows(shard);
    if (this.pooling === "mean" || this.pooling === "all") return range(0, rows);
    if (this.pooling === "last") return this.bounds[shard][1] === this.tokens && rows ? range(rows - 1, rows) : range(0, 0);
    return rows && (this.distributed || this.bounds[shard][0] === 0) ? range(0, 1) : range(0, 0);
  }

  /** Shards whose codes this one needs to finish `block`, in token order. */
  sources(shard, block) {
    return this.#sources[block === this.blocks - 1 ? 1 : 0][shard];
  }

  /** Shards that need this one's codes of `block`. */
  receivers(shard, block) {
    return block < this.firstBlock ? [] : this.#receivers[block === this.blocks - 1 ? 1 : 0][shard];
  }

  /** Stages of the code from one shard to another; 0 if the plan has no rate for that. */
  stagesBetween(sender, receiver) {
    return this.stages.get(pair(sender, receiver)) ?? 0;
  }

  /** The shard of the last token. */
  answering() {
    return numbers(this.bounds.length).findLast((i) => this.holds(i));
  }
}

/** The other shards that codes or pooled vectors go to or come from. */
export function partners(layout, shard) {
  const answering = layout.answering();
  const found = new Set([...layout.sources(shard, 0), ...layout.receivers(shard, layout.firstBlock)]);
  if (shard === answering) numbers(layout.bounds.length).filter((i) => layout.holds(i)).forEach((i) => found.add(i));
  else if (layout.wanted(shard).length) found.add(answering);
  found.delete(shard);
  return [...found].sort((a, b) => a - b);
}

/** Which final rows the task's head reads (astra_mesh/families/spec.py). */
export const poolingOf = (task) => ({ generate: "last", classify: "class", embed: "mean" })[task];

/**
 * The layout of a plan, checked against the model and the codec, which is `able` to so many stages.
 * BadPlanError if it cannot be run as it is.
 */
export function checkPlan(plan, spec, task, tokens, firstBlock, able) {
  const peers = plan.shards.map((shard) => shard.peer);
  if (peers.length < 1 || peers.length > limits.PEERS_PER_PLAN) throw new BadPlanError(`${peers.length} shards; 1 to ${limits.PEERS_PER_PLAN} are possible`);
  if (new Set(peers).size < peers.length) throw new BadPlanError("a peer with two shards");
  if (plan.shards.at(-1).stop !== tokens) throw new BadPlanError(`shards for ${plan.shards.at(-1).stop} tokens, the input has ${tokens}`);
  const layout = layoutOf(plan, peers, spec, task, firstBlock);
  if (plan.answering !== peers[layout.answering()]) throw new BadPlanError("the answering peer is not the owner of the last tokens");
  for (const receiver of peers.keys()) {
    for (const source of layout.sources(receiver, 0)) {
      if (!able.includes(layout.stagesBetween(source, receiver))) throw new BadPlanError(`no valid rate for the link from shard ${source} to shard ${receiver}`);
    }
  }
  return layout;
}

function layoutOf(plan, peers, spec, task, firstBlock) {
  const index = new Map(peers.map((peer, i) => [peer, i]));
  const stages = new Map();
  for (const rate of plan.rates) {
    if (!index.has(rate.sender) || !index.has(rate.receiver)) throw new BadPlanError("a rate for a peer without a shard");
    stages.set(pair(index.get(rate.sender), index.get(rate.receiver)), rate.stages);
  }
  const classToken = classTokenOf(plan.class_token);
  return new Layout({
    bounds: plan.shards.map((shard) => [shard.start, shard.stop]),
    blocks: spec.num_hidden_layers,
    causal: spec.causal,
    classToken: spec.has_class_token ? classToken : "none",
    pooling: poolingOf(task),
    stages,
    firstBlock,
  });
}

function classTokenOf(name) {
  if (name === "single" || name === "distributed") return name;
  if (name === "none" || name === "") return "none";
  throw new BadPlanError(`class_token ${JSON.stringify(name)}; known: none, single, distributed`);
}
