// What the page says of models that it has no form for.

import assert from "node:assert/strict";
import { test } from "node:test";

import { elsewhere } from "../../astra_mesh/web/site/elsewhere.js";

const model = (name, family, ...tasks) => ({ name, family, tasks, here: true });

test("models that the page uses itself are not told of", () => {
  const used = [model("gpt2", "gpt2", "generate", "embed"), model("vit-tiny", "vit", "classify", "embed")];
  assert.equal(elsewhere(used), "");
  assert.equal(elsewhere([{ ...model("film", "bert", "classify"), here: false }]), "");
});

test("a classifier of texts and a sentence encoder are told of, with where they are used", () => {
  const found = [model("film", "bert", "classify", "embed"), model("mini", "bert", "embed"), model("maxi", "bert", "embed")];
  assert.equal(
    elsewhere(found),
    "film (labels of texts): by the command astra-mesh classify NAME --text TEXT. " +
      "mini and maxi (vectors of texts): by POST /v1/embeddings, or the command astra-mesh embed NAME TEXT.",
  );
});

test("of many a few are named", () => {
  const many = ["a", "b", "c", "d", "e"].map((name) => model(name, "bert", "embed"));
  assert.match(elsewhere(many), /^a, b, c and 2 more \(vectors/);
  assert.match(elsewhere(many.slice(0, 3)), /^a, b and c \(vectors/);
});
