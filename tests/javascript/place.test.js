// What the panel says of where models are computed.

import assert from "node:assert/strict";
import { test } from "node:test";

import { placed, sharedReason } from "../../astra_mesh/web/site/place.js";

const ready = (why, place = "wasm") => ({ state: "ready", place, why });

test("why models are not on the GPU is said once where it is the same for all that are ready", () => {
  assert.equal(sharedReason([]), "");
  assert.equal(sharedReason([ready("no GPU"), ready("no GPU")]), "no GPU");
  assert.equal(sharedReason([ready("slower"), ready("", "webgpu"), { state: "failed", why: "too large" }]), "slower");
  assert.equal(sharedReason([ready("slower"), ready("much slower")]), "");
  assert.equal(sharedReason([{ state: "loading", why: "" }]), "");
});

test("a line says why where that is not said for all", () => {
  assert.equal(placed(ready("", "webgpu"), "slower"), "on the GPU");
  assert.equal(placed(ready("slower"), "slower"), "on the processor");
  assert.equal(placed(ready("slower"), ""), "on the processor (slower)");
  assert.equal(placed(ready(""), ""), "on the processor");
});
