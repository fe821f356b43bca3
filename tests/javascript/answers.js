// Answers what test_node.py asks, so that it can compare with Python: one JSON value per line, in and out.

import { createInterface } from "node:readline";

import { ProtocolError } from "../../astra_mesh/web/site/peer/errors.js";
import { BadPlanError, checkPlan, partners } from "../../astra_mesh/web/site/peer/layout.js";
import * as limits from "../../astra_mesh/web/site/peer/limits.js";
import { decode, encode, sanitise } from "../../astra_mesh/web/site/peer/messages.js";
import { Meter } from "../../astra_mesh/web/site/peer/meter.js";
import { shareS } from "../../astra_mesh/web/site/peer/pace.js";
import { LinkRate, Pacing } from "../../astra_mesh/web/site/peer/rates.js";
import { bytes, hex } from "./helpers.js";

const plain = (value) => (value === Infinity ? "inf" : value); // as JSON has it
const known = (value) => (value === "inf" ? Infinity : value);

const ASKED = {
  limits: () => ({ ...limits }),
  sanitise: ({ text, limit }) => sanitise(text, limit),
  /** The frame again, or null if it is refused. */
  frame({ frame }) {
    try {
      return hex(encode(decode(bytes(frame))));
    } catch (error) {
      if (error instanceof ProtocolError) return null;
      throw error;
    }
  },
  /** All that a layout tells, or why the plan is bad. */
  plan({ plan, spec, task, tokens, first_block: firstBlock, able }) {
    let layout;
    try {
      layout = checkPlan(plan, spec, task, tokens, firstBlock, able);
    } catch (error) {
      if (error instanceof BadPlanError) return error.message;
      throw error;
    }
    const range = ({ start, stop, length }) => (length ? [start, stop] : []);
    return {
      tokens: layout.tokens,
      answering: layout.answering(),
      shards: layout.bounds.map((_, i) => ({
        sent: range(layout.sent(i)), copies: layout.copiesClass(i), rows: layout.localRows(i), wanted: range(layout.wanted(i)),
        sources: Array.from({ length: layout.blocks }, (_, block) => layout.sources(i, block)),
        receivers: Array.from({ length: layout.blocks }, (_, block) => layout.receivers(i, block)),
        partners: layout.holds(i) ? partners(layout, i) : null,
      })),
    };
  },
  /** Seconds that each shard of a plan computes. */
  shares({ plan, spec, task, tokens, first_block: firstBlock, able, timing }) {
    const layout = checkPlan(plan, spec, task, tokens, firstBlock, able);
    return layout.bounds.map((_, shard) => shareS(timing, layout, shard));
  },
  /** What a meter says to each of many calls. */
  meter({ calls }) {
    const meter = new Meter();
    return calls.map(([name, ...given]) => {
      const found = meter[name](...given);
      return name === "backlog" ? [found.size, plain(found.bps), found.measuredBps] : (found ?? meter.bps);
    });
  },
  /** The stages of block after block. */
  rates({ sizes, block_s: blockS, blocks }) {
    const rate = new LinkRate(new Map(sizes));
    const pacing = new Pacing(blockS);
    return blocks.map(([block, now, busyS, [size, bps, measuredBps]]) => {
      const allowedS = pacing.allowedS(block, now, busyS);
      return [allowedS, rate.choose(block, allowedS, { size, bps: known(bps), measuredBps })];
    });
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { ask, ...about } = JSON.parse(line);
  console.log(JSON.stringify(ASKED[ask](about)));
}
