// Numbers as people read them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { seconds } from "../../astra_mesh/web/site/dom.js";

test("times below a clock's step are none", () => {
  assert.equal(seconds(2.31e-7), "0 ms");
  assert.equal(seconds(0), "0 ms");
  assert.equal(seconds(1.56e-6), "0 ms");
  assert.equal(seconds(5.21e-5), "0.05 ms");
  assert.equal(seconds(0.001234), "1.23 ms");
  assert.equal(seconds(0.25), "250 ms");
  assert.equal(seconds(2), "2 s");
  assert.equal(seconds(null), "?");
});
