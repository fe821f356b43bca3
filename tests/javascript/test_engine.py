"""A tab's engine (JavaScript, in node) computes what Python's shards compute, for every family."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_mesh.bundle import find_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.plan.layout import ClassToken, make_layout
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.quant.codecs import PlainCodec, VectorCodec
from astra_mesh.web.tabfiles import first_rates
from astra_mesh.wire.messages import CodebookId
from tests.javascript.golden import Case, Packed, Rates, write_model
from tests.unit.engine.plans import Bounds, cut, deep_model, random_codec
from tests.unit.families.making import CONFIGS, make_model, make_tensors

HERE = Path(__file__).parent
VENDOR = Path(__file__).parents[2] / "astra_mesh" / "web" / "site" / "vendor" / "versions.json"
RELAXED = "--experimental-wasm-relaxed-simd"
Codec = VectorCodec | PlainCodec

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="needs node"),
    pytest.mark.skipif(not VENDOR.exists(), reason="needs `make runtime`"),
    pytest.mark.timeout(300),
    pytest.mark.slow,
]


def _takes(switch: str) -> bool:
    """Whether there is a node that does."""
    node = shutil.which("node")
    if node is None:
        return False
    return (
        subprocess.run([node, switch, "-e", "0"], capture_output=True, check=False).returncode == 0
    )


# Compiling 12 MB of WebAssembly for speed takes ten times as long as small models do.
SOON = [switch for switch in ("--liftoff-only",) if _takes(switch)]


def _check(cases: list[Case], folder: Path) -> None:
    """Run all cases in one node, and compare shard by shard."""
    for case in cases:
        case.run()
    given, found = folder / "cases.json", folder / "results.json"
    given.write_text(json.dumps([case.described() for case in cases]))
    command = ["node", *SOON, str(HERE / "run_shards.mjs"), str(given), str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, shards in zip(cases, json.loads(found.read_text()), strict=True):
        for shard, result in enumerate(shards):
            vector, weight = case.pooled[shard]
            assert result["weight"] == pytest.approx(weight)
            largest = max(float(vector.abs().max()), 1e-3)
            difference = np.abs(np.array(result["vector"]) - vector.numpy()).max()
            assert difference <= 1e-3 * largest, (case.codec.name, shard)
            if weight and "generate" in case.model.spec.tasks:
                _check_logits(case.model, torch.tensor(result["vector"]), vector)
        _check_codes(case, shards)


@torch.inference_mode()
def _check_logits(model: Model, found: Tensor, wanted: Tensor) -> None:
    ours, theirs = model.logits(found[None])[0], model.logits(wanted[None])[0]
    assert int(ours.argmax()) == int(theirs.argmax())
    assert float((ours - theirs).abs().max()) <= 1e-3 * max(float(theirs.abs().max()), 1.0)


def _check_codes(case: Case, shards: list[dict]) -> None:
    same, count = 0, 0
    for block, each in enumerate(case.sent):
        for shard, wanted in enumerate(each):
            tokens = len(case.layout.sent(shard))
            sent: Packed = {
                int(receiver): [base64.b64decode(one) for one in arrays]
                for receiver, arrays in shards[shard]["sent"][block].items()
            }
            assert sent.keys() == wanted.keys()
            for receiver, arrays in wanted.items():
                assert len(sent[receiver]) == len(arrays)
                for stage, data in enumerate(arrays):
                    ours = case.codec.unpack(stage, sent[receiver][stage], tokens)
                    theirs = case.codec.unpack(stage, data, tokens)
                    if isinstance(case.codec, PlainCodec):
                        one, other = (case.codec.rebuild([c]).numpy() for c in (ours, theirs))
                        assert np.abs(one - other).mean() <= 2e-3  # int4 steps are 0.5
                    same += int((ours == theirs).sum())
                    count += ours.size
    assert count or len(case.layout.bounds) == 1
    if isinstance(case.codec, VectorCodec):
        assert same >= 0.999 * count, f"{count - same} of {count} codes differ"


def _shipped(name: str) -> tuple[Model, VectorCodec]:
    bundle = find_bundle(name)
    model = build_model(bundle.config, load_weights(bundle))
    return model, VectorCodec(model, load_codebook(bundle.path / "codebook.safetensors"))


def _case(
    folder: Path,
    codec: Codec,
    inputs: ModelInput,
    edges: list[int],
    *,
    task: str,
    stages: int | dict[tuple[int, int], int] = 1,
    class_token: ClassToken | None = None,
    missing: list[tuple[int, int]] | None = None,
    rates: Rates | None = None,
) -> Case:
    model = codec.model if isinstance(codec, VectorCodec) else codec._model
    bounds: Bounds = cut(model.count_tokens(inputs), edges)
    layout = make_layout(
        model.spec,
        bounds,
        pooling=model.spec.pooling(task),
        first_block=codec.first_block,
        class_token=class_token,
        stages=stages,
    )
    if (missing or rates) and isinstance(codec, VectorCodec):
        codec = codec.projecting()  # tables know one rate, and nothing that could stand in
    return Case(model, folder, layout, codec, inputs, missing or [], rates or {})


def _tokens(model: Model, count: int) -> ModelInput:
    generator = torch.Generator().manual_seed(5)
    return ModelInput(tokens=torch.randint(model.spec.vocab_size, (count,), generator=generator))


def test_tiny_gpt2(tmp_path: Path) -> None:
    model, codec = _shipped("tiny-gpt2")
    folder = tmp_path / "tiny-gpt2"
    write_model(model, [codec], folder)
    text = _tokens(model, 50)
    mixed = {(0, 1): 2, (0, 2): 5, (1, 2): 3}
    _check(
        [
            _case(folder, codec, text, [9, 31], task="generate", stages=4),
            _case(folder, codec, text, [30, 31], task="generate", stages=mixed),
            _case(folder, codec, text, [0, 20], task="generate", stages=3),
            _case(
                folder, codec, text, [12, 40], task="generate", stages=4, missing=[(2, 0), (4, 1)]
            ),
            # One link slower from block 2 on, and better again; another one only in block 4.
            _case(
                folder,
                codec,
                text,
                [12, 26],
                task="generate",
                stages=4,
                rates={(2, 0, 1): 2, (3, 0, 1): 3, (4, 0, 2): 3, (3, 1, 2): 2},
            ),
            _case(folder, PlainCodec("fp16", model), text, [13, 25], task="generate"),
            _case(folder, PlainCodec("fp32", model), text, [25], task="generate"),
        ],
        tmp_path,
    )


def test_vit_tiny(tmp_path: Path) -> None:
    model, codec = _shipped("vit-tiny")
    folder = tmp_path / "vit-tiny"
    write_model(model, [codec], folder)
    generator = torch.Generator().manual_seed(5)
    picture = ModelInput(pixels=torch.rand(3, 32, 32, generator=generator) * 2 - 1)
    _check(
        [
            _case(folder, codec, picture, [9, 31], task="classify", stages=4),
            _case(
                folder,
                codec,
                picture,
                [1, 40],
                task="classify",
                stages=5,
                class_token="distributed",
            ),
            _case(folder, codec, picture, [20], task="classify", stages=2, missing=[(1, 1)]),
            _case(
                folder,
                codec,
                picture,
                [20],
                task="classify",
                stages=4,
                rates={(2, 0, 1): 2, (4, 1, 0): 3},
            ),
        ],
        tmp_path,
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_llamas_with_shared_heads(kind: str, tmp_path: Path) -> None:
    model = deep_model(kind) if kind == "llama" else make_model(kind)
    assert model.spec.heads_per_kv > 1
    codecs = [random_codec(model, stages=2, history=history) for history in (0, 2)]
    folder = tmp_path / kind
    write_model(model, codecs, folder)
    text = _tokens(model, 29)
    _check(
        [
            _case(folder, codecs[0], text, [5, 6, 20], task="generate", stages=2),
            _case(
                folder, codecs[0], text, [11], task="generate", stages=1, missing=[(1, 0), (2, 0)]
            ),
            _case(folder, codecs[1], text, [5, 20], task="generate", stages=2),
            _case(folder, codecs[0], text, [11], task="generate", stages=2, rates={(2, 0, 1): 1}),
            _case(folder, PlainCodec("fp16", model), text, [17], task="generate"),
        ],
        tmp_path,
    )


def test_codes_that_a_tab_does_not_have_are_refused_by_name(tmp_path: Path) -> None:
    model = build_model(CONFIGS["bert"], make_tensors("bert"))
    write_model(model, [], tmp_path / "bert")
    codec = random_codec(model, stages=1)
    text = _tokens(model, 9)
    case = _case(tmp_path / "bert", codec, text, [4], task="embed")
    with pytest.raises(AssertionError, match="this tab does not have the codebook"):
        _check([case], tmp_path)


def test_bert(tmp_path: Path) -> None:
    model = make_model("bert")
    codecs = [random_codec(model, stages=3), random_codec(model, "astra")]
    folder = tmp_path / "bert"
    write_model(model, codecs, folder)
    text = _tokens(model, 23)
    _check(
        [
            _case(folder, codecs[0], text, [4, 15], task="embed", stages=3),
            _case(folder, codecs[0], text, [9], task="embed", stages=1, class_token="distributed"),
            _case(folder, codecs[1], text, [9, 12], task="classify"),
            _case(folder, PlainCodec("int8", model), text, [9, 12], task="classify"),
            _case(folder, PlainCodec("int4", model), text, [9, 12], task="embed"),
        ],
        tmp_path,
    )


@pytest.mark.parametrize("name", ["vit-tiny", "tiny-gpt2"])
def test_a_tab_fetches_what_the_readme_says(name: str, tmp_path: Path) -> None:
    """Until the model is ready, at the rate that requests use."""
    found = _fetched(name, tmp_path)
    parts = (found["blocks"], found["codebook"], found["blocks"] + found["codebook"])
    row = " | ".join([name, *(f"{size / 1e6:.2f} MB" for size in parts)])
    assert f"| {row} |" in (HERE.parents[1] / "peers" / "phone" / "README.md").read_text()
    _check_bar(found)


@pytest.mark.skipif(not _takes(RELAXED), reason="this node has no switch for relaxed SIMD")
def test_what_is_tried_with_the_first_block_is_fetched_once(tmp_path: Path) -> None:
    """Also where the browser keeps no files."""
    found = _fetched("vit-tiny", tmp_path, RELAXED)
    _check_bar(found)
    if found["kernels"]:  # else the codec makes what the kernels have, of all blocks
        assert found["again"] == 0


def _fetched(name: str, folder: Path, *switches: str) -> dict:
    model, codec = _shipped(name)
    first = first_rates(find_bundle(name), {CodebookId(codec.codebook.id): codec.codebook})
    write_model(model, [codec], folder / name, first)
    command = ["node", *SOON, *switches, str(HERE / "run_fetched.mjs"), str(folder / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found: dict = json.loads(done.stdout)
    return found


def _check_bar(found: dict) -> None:
    """One bar over all of it: nothing is fetched once it is full, and it never turns back."""
    arrived, totals = zip(*found["told"], strict=True)
    assert set(totals) == {found["blocks"] + found["codebook"]} == {arrived[-1]}
    assert list(arrived) == sorted(arrived)
    assert found["late"] == 0
