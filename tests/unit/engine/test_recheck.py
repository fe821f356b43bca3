"""A shard computed once more: honest peers pass in every number format, liars do not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch

from astra_mesh.engine.recheck import Deviation, Recheck
from astra_mesh.engine.reference import run_shards
from astra_mesh.engine.shard import Coded, ShardRun
from astra_mesh.families import Model
from astra_mesh.families.precision import PRECISIONS, Precision, convert
from astra_mesh.families.spec import Pooling
from astra_mesh.peer.spot_check import checkable, is_false
from astra_mesh.plan.layout import ClassToken, Layout, make_layout
from astra_mesh.quant.codebook import UNLIMITED, Codebook
from astra_mesh.quant.codecs import PlainCodec, VectorCodec, make_codec
from astra_mesh.quant.codes import CodeArray
from astra_mesh.quant.fit import fit_codebook
from astra_mesh.quant.options import FitOptions
from astra_mesh.wire.messages import ModelId
from tests.unit.engine.plans import cut, deep_model, input_of

Alter = Callable[[int, int, Coded], Coded]
ME = 2  # the shard that checks
TOKENS = 24
CODES = ("vq", "remembers", "astra", "fp32", "fp16", "int8", "int4")
KINDS = (("llama", "last"), ("bert", "mean"), ("vit", "class"))
# An own format, and one of others; int8 is the coarsest.
PAIRS: list[tuple[Precision, Precision]] = [(one, "fp32") for one in PRECISIONS[1:]] + [
    ("fp32", "int8"),
    ("bf16", "int8"),
]


OPTIONS = {
    "vq": FitOptions(history=0, rates=(16,), default_rate=16, groups=4, codewords=16, iterations=5),
    "remembers": FitOptions(
        history=UNLIMITED, rates=(16,), default_rate=16, groups=4, codewords=16, iterations=5
    ),
    "astra": FitOptions("astra", history=0, groups=4, codewords=32, iterations=5),
}


@cache
def model_of(kind: str) -> Model:
    return deep_model(kind)


@cache
def book_of(kind: str, code: str) -> Codebook:
    """Fitted, so that its codes say something."""
    model = model_of(kind)
    inputs = [input_of(model, 48, seed) for seed in range(100, 120)]
    return fit_codebook(model, ModelId("a" * 64), inputs, OPTIONS[code])[0]


def codec_of(model: Model, name: str) -> PlainCodec | VectorCodec:
    if name not in OPTIONS:
        return make_codec(name, model)
    book = book_of(model.spec.family, name)
    return make_codec(book.codec, model, book)


def in_format(model: Model, precision: Precision) -> Model:
    other = copy.deepcopy(model)
    convert(other, precision)
    return other


def layout_for(model: Model, codec: PlainCodec | VectorCodec, pooling: Pooling) -> Layout:
    tokens = model.count_tokens(input_of(model, TOKENS))
    bounds = cut(tokens, [tokens // 3, 2 * tokens // 3])
    return make_layout(
        model.spec, bounds, pooling=pooling, first_block=codec.first_block, stages=codec.stages
    )


def honest(block: int, shard: int, codes: Coded) -> Coded:
    return codes


class Request:
    """One request of three shards, and what the third one keeps of it."""

    def __init__(
        self,
        theirs: Model,
        own: Model,
        code: str,
        pooling: Pooling,
        alter: Alter = honest,
        seed: int = 0,
    ) -> None:
        self.own, self.codec = own, codec_of(own, code)
        self.layout = layout_for(own, self.codec, pooling)
        self.inputs = input_of(own, TOKENS, seed)
        other = codec_of(theirs, code)
        self.runs = [
            ShardRun(theirs, self.layout, 0, other, self.inputs),
            ShardRun(theirs, self.layout, 1, other, self.inputs),
            ShardRun(own, self.layout, ME, self.codec, self.inputs),
        ]
        self.sent = run_shards(self.runs, alter)

    def kept(self, shard: int) -> dict[tuple[int, int], Sequence[CodeArray]]:
        return {
            (block, source): codes[taker]
            for (block, source), codes in self.sent.items()
            for taker in [shard if source == ME else ME]
            if taker in self.layout.receivers(source, block)
        }

    @torch.inference_mode()
    def check(self, shard: int) -> list[Deviation]:
        wanted = self.layout.wanted(shard) and self.layout.pooling != "last"
        pooled = self.runs[shard].pooled() if wanted else None
        steps = Recheck(
            self.own, self.layout, self.codec, self.inputs, shard, self.kept(shard), pooled
        )
        return [one for one in steps.blocks() if one is not None]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("kind", "pooling"), KINDS)
def test_the_same_arithmetic_deviates_by_nothing(kind: str, pooling: Pooling, code: str) -> None:
    model = model_of(kind)
    request = Request(model, model, code, pooling)
    assert checkable(request.layout, ME) == [0, 1]
    for shard in (0, 1):
        found = request.check(shard)
        coded = range(request.layout.first_block, request.layout.blocks)
        last = pooling == "class"  # the last block's codes go to the class token's shard only
        assert [one.block for one in found if not one.pooled] == list(coded[: len(coded) - last])
        assert max(abs(one.worst) for one in found) < 1e-3


@pytest.mark.parametrize("code", ["vq", "remembers", "astra", "fp16", "int4"])
@pytest.mark.parametrize(("kind", "pooling"), KINDS)
def test_an_honest_peer_passes_in_every_format(kind: str, pooling: Pooling, code: str) -> None:
    model = model_of(kind)
    formats = {name: in_format(model, name) for name in PRECISIONS}
    for theirs, own in PAIRS:
        request = Request(formats[theirs], formats[own], code, pooling)
        for shard in (0, 1):
            wrong = [one for one in request.check(shard) if is_false(one)]
            assert not wrong, f"{theirs} as seen in {own}"


def of_another_text(request: Request) -> Alter:
    return lambda block, shard, codes: request.sent[block, shard] if shard == 1 else codes


def in_one_block(alter: Alter, wrong: int) -> Alter:
    return lambda block, shard, codes: alter(block, shard, codes) if block == wrong else codes


def at_random(block: int, shard: int, codes: Coded) -> Coded:
    if shard != 1:
        return codes

    def drawn(arrays: Sequence[CodeArray]) -> list[CodeArray]:
        rng = np.random.default_rng(block)  # all takers get the same
        return [rng.integers(0, 16, one.shape).astype(one.dtype) for one in arrays]

    return {taker: drawn(arrays) for taker, arrays in codes.items()}


def of_another_order(block: int, shard: int, codes: Coded) -> Coded:
    if shard != 1:
        return codes
    return {taker: [one[::-1].copy() for one in arrays] for taker, arrays in codes.items()}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("kind", "pooling"), KINDS)
def test_codes_of_another_text_are_found(kind: str, pooling: Pooling, code: str) -> None:
    model = model_of(kind)
    alter = of_another_text(Request(model, model, code, pooling, seed=1))
    request = Request(model, model, code, pooling, alter)
    assert any(map(is_false, request.check(1)))
    assert not any(map(is_false, request.check(0)))  # whoever got them is not blamed


@pytest.mark.parametrize("code", ["vq", "remembers", "astra"])
@pytest.mark.parametrize(("kind", "pooling"), KINDS)
@pytest.mark.parametrize("alter", [at_random, of_another_order])
def test_random_and_misplaced_codes_are_found(
    kind: str, pooling: Pooling, code: str, alter: Alter
) -> None:
    model = model_of(kind)
    request = Request(model, model, code, pooling, alter)
    assert any(map(is_false, request.check(1)))
    assert not any(map(is_false, request.check(0)))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("kind", "pooling"), KINDS)
def test_one_block_of_false_codes_is_found_and_named(
    kind: str, pooling: Pooling, code: str
) -> None:
    model = model_of(kind)
    alter = in_one_block(of_another_text(Request(model, model, code, pooling, seed=1)), 3)
    request = Request(model, model, code, pooling, alter)
    # With a history, what follows was predicted from codes that did not come.
    assert next(one.block for one in request.check(1) if is_false(one)) == 3


@pytest.mark.parametrize("class_token", ["single", "distributed"])
def test_a_false_result_is_found(class_token: ClassToken) -> None:
    model = model_of("vit")
    codec = codec_of(model, "vq")
    plain = layout_for(model, codec, "class")
    layout = make_layout(
        model.spec, plain.bounds, pooling="class", class_token=class_token, stages=codec.stages
    )
    request = Request(model, model, "vq", "class")
    request.layout = layout
    request.runs = [ShardRun(model, layout, i, codec, request.inputs) for i in range(3)]
    request.sent = run_shards(request.runs)
    vector, weight = request.runs[0].pooled()
    for pooled, wrong in (
        ((vector, weight), False),
        ((vector * 1.001, weight), False),
        ((-vector, weight), True),
        ((vector.roll(1), weight), True),
        ((vector, 3 * weight), True),
        ((vector * float("nan"), weight), True),
    ):
        with torch.inference_mode():
            steps = Recheck(model, layout, codec, request.inputs, 0, request.kept(0), pooled)
            *_, last = steps.blocks()
        assert last is not None
        assert last.pooled
        assert is_false(last) is wrong


def test_a_shard_that_sends_its_result_only_is_checked() -> None:
    """Every shard has a copy of the class token, so one of it alone sends no codes."""
    model = model_of("vit")
    layout = make_layout(model.spec, [(0, 1), (1, 17)], pooling="class", class_token="distributed")
    assert checkable(layout, 1) == [0]
    assert checkable(layout, 0) == [1]  # its codes; its result goes to the answering shard


def test_a_shard_that_gets_other_rates_is_not_checked() -> None:
    model = model_of("gpt2")
    stages = {(0, 1): 1, (0, 2): 2, (1, 2): 2}
    layout = make_layout(model.spec, cut(12, [4, 8]), pooling="last", stages=stages)
    assert checkable(layout, ME) == [0]
