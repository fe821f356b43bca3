// Numbers as people read them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { clipped, initial, labels, named, seconds } from "../../astra_mesh/web/site/dom.js";

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

const HEBREW = "\u05d0\u05d1\u05d2";

test("names change the order of nothing around them", () => {
  for (const steer of "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") assert.equal(named(`a${steer}b`), "ab");
  assert.equal(named("désk 1"), "désk 1");
  assert.equal(named(HEBREW), `\u2068${HEBREW}\u2069`);
  assert.equal(named(named(HEBREW)), named(HEBREW));
});

test("labels of such names keep their digits outside, and may be cut", () => {
  const found = labels([{ id: "abcd1", name: HEBREW }, { id: "ef012", name: `${HEBREW}\u202e` }, { id: "99999", name: "desk" }]);
  assert.deepEqual([...found.values()], [`\u2068${HEBREW}\u2069 (abcd)`, `\u2068${HEBREW}\u2069 (ef01)`, "desk"]);
  assert.equal(clipped(found.get("abcd1"), 20), found.get("abcd1"));
  assert.equal(clipped(found.get("abcd1"), 9), `\u2068${HEBREW[0]}…\u2069 (abcd)`);
  assert.equal(clipped("a long name", 6), "a lon…");
  assert.equal(clipped("Chrome on Android 4821", 12), "Chrome… 4821"); // which of two such phones
  assert.deepEqual([initial(found.get("abcd1")), initial("desk"), initial("")], [HEBREW[0], "D", "?"]);
});
