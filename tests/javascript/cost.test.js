import assert from "node:assert/strict";
import { test } from "node:test";
import { costLine } from "../../astra_mesh/web/site/cost.js";

const REPORT = {
  plan: { shards: [{ start: 0, stop: 9 }], bits_per_token: 0 },
  predicted_s: 0.3, actual_s: 0.316, predicted_solo_s: 0.3, lost_s: 8, loading_s: 0, peers: [], notes: [],
};

test("why one device answers alone is told, as all plans are", () => {
  const reason = "no other peer here holds this model and codebook";
  const told = costLine({ ...REPORT, plan: { ...REPORT.plan, reason }, notes: ["A note"] });
  assert.match(told, /^one device; .*\. Plan: no other peer here holds this model and codebook\. A note\.$/);
  for (const none of ["", undefined]) assert.doesNotMatch(costLine({ ...REPORT, plan: { ...REPORT.plan, reason: none } }), /Plan/);
});

test("a loss of accuracy is told in points, others in percent", () => {
  const told = (measure) => costLine({ ...REPORT, expected_cost: { measure, loss: 0.001 } });
  assert.match(told("accuracy"), /expected loss of accuracy: 0\.1 points\./);
  assert.match(told("perplexity"), /expected loss of perplexity: 0\.1 %\./);
});

test("what lost devices cost is told beside what the answer's plan took", () => {
  assert.match(costLine(REPORT), /took 316 ms after 8\S* s with devices that were lost/);
  for (const lost_s of [0, 0.01, undefined]) assert.doesNotMatch(costLine({ ...REPORT, lost_s }), /lost/);
});
