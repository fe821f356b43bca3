"""The baselines of the speed benchmark compute what they claim to: over sockets of this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.reference import pooled, run_plan, run_solo
from astra_mesh.families import Model, ModelInput
from astra_mesh.families.precision import convert
from astra_mesh.families.spec import Pooling
from astra_mesh.plan.layout import make_layout
from astra_mesh.quant.codecs import PlainCodec
from tests.unit.engine.plans import random_codec
from tests.unit.families.making import make_input, make_model
from tools.bench.baselines.group import Group, GroupError
from tools.bench.baselines.run import Baseline, Run, even
from tools.bench.baselines.sequence import SequenceParallel
from tools.bench.baselines.single import single
from tools.bench.baselines.tensor import TensorParallel

KINDS = ("gpt2", "llama", "vit", "bert", "qwen3")
# Largest difference of the final row, whose values are of order 1, to one device's.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.2, "int4": 2.0}


def free_addresses(count: int) -> list[tuple[str, int]]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [("127.0.0.1", int(one.getsockname()[1])) for one in sockets]
    for one in sockets:
        one.close()
    return found


@asynccontextmanager
async def groups_of(count: int) -> AsyncIterator[list[Group]]:
    addresses = free_addresses(count)
    groups = await asyncio.gather(*(Group.join(rank, addresses) for rank in range(count)))
    try:
        yield groups
    finally:
        for group in groups:
            await group.close()


async def run_on(
    count: int, baselines: list[Baseline], model: Model, inputs: ModelInput
) -> list[Run]:
    """The runs of all members; the answer is the last one's ``result``."""
    threads = [ComputeThread() for _ in range(count)]
    try:
        async with groups_of(count) as groups:
            runs = [
                Run(model, inputs, group, count, thread)
                for group, thread in zip(groups, threads, strict=True)
            ]
            found = await asyncio.gather(
                *(one(run) for one, run in zip(baselines, runs, strict=True))
            )
    finally:
        for thread in threads:
            thread.close()
    runs[-1].result = found[-1]  # type: ignore[attr-defined]
    return runs


async def row_of(count: int, baselines: list[Baseline], model: Model, inputs: ModelInput) -> Tensor:
    runs = await run_on(count, baselines, model, inputs)
    found = runs[-1].result  # type: ignore[attr-defined]
    assert isinstance(found, Tensor)
    return found


def solo(model: Model, inputs: ModelInput) -> Tensor:
    return pooled([run_solo(model, inputs, "last" if model.spec.causal else "class")])


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max())


def rms(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
async def test_one_device_gives_the_final_row(kind: str) -> None:
    model = make_model(kind)
    inputs = make_input(model)
    assert error(await row_of(1, [single], model, inputs), solo(model, inputs)) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3, 4])
async def test_tensor_parallel_equals_one_device(kind: str, count: int) -> None:
    """Three devices share four heads (two key/value heads) unevenly."""
    model = make_model(kind)
    inputs = make_input(model)
    found = await row_of(count, [TensorParallel() for _ in range(count)], model, inputs)
    assert error(found, solo(model, inputs)) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4"])
async def test_voltage_equals_one_device(kind: str, name: str) -> None:
    model = make_model(kind)
    inputs = make_input(model)
    one = SequenceParallel(PlainCodec(name, model))
    found = await row_of(3, [one] * 3, model, inputs)
    assert error(found, solo(model, inputs)) < TOLERANCE[name]
    if name != "fp32":  # it did go through the codec
        assert error(found, solo(model, inputs)) > 0


@pytest.mark.parametrize("kind", KINDS)
async def test_in_bf16_they_are_as_far_from_fp32_as_one_device_is(kind: str) -> None:
    model = make_model(kind)
    inputs = make_input(model)
    exact = solo(model, inputs)
    convert(model, "bf16")
    alone = rms(await row_of(1, [single], model, inputs), exact)
    assert alone > 1e-3  # it does compute in bf16
    voltage = SequenceParallel(PlainCodec("fp32", model))
    ways: list[list[Baseline]] = [[voltage] * 3, [TensorParallel() for _ in range(3)]]
    for baselines in ways:
        found = await row_of(3, baselines, model, inputs)
        assert found.dtype is torch.float32
        assert 0.5 * alone < rms(found, exact) < 2 * alone
    # Codes near a boundary change with the last bits, so this one's answer says little.
    astra = SequenceParallel(random_codec(model, "astra", groups=4, stages=1))
    assert (await row_of(3, [astra] * 3, model, inputs)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_published_form_equals_the_reference_with_its_codes(kind: str) -> None:
    model = make_model(kind)
    inputs = make_input(model)
    codec = random_codec(model, "astra", groups=4, stages=1)
    bounds = even(model.count_tokens(inputs), 4)
    pooling: Pooling = "last" if model.spec.causal else "class"
    layout = make_layout(model.spec, bounds, pooling=pooling, first_block=0)
    wanted = pooled(run_plan(model, layout, codec, inputs))
    found = await row_of(4, [SequenceParallel(codec)] * 4, model, inputs)
    assert error(found, wanted) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("period", [1, 2])
async def test_block_parallelism_equals_its_own_reference(kind: str, period: int) -> None:
    model = make_model(kind)
    inputs = make_input(model)
    one = SequenceParallel(PlainCodec("fp32", model), period)
    found = await row_of(3, [one] * 3, model, inputs)
    assert error(found, masked(model, inputs, 3, period)) < 1e-4
    if period == 1:
        assert error(found, solo(model, inputs)) < 1e-4


@torch.inference_mode()
def masked(model: Model, inputs: ModelInput, members: int, period: int) -> Tensor:
    """All tokens at once with a mask: between gatherings a device sees its own tokens only."""
    count = model.count_tokens(inputs)
    owner = torch.tensor(
        [i for i, (start, stop) in enumerate(even(count, members)) for _ in range(start, stop)]
    )
    order = torch.arange(count)
    every = torch.ones(count, count, dtype=torch.bool)
    if model.spec.causal:
        every = order[:, None] >= order[None, :]
    own = every & (owner[:, None] == owner[None, :])
    x = model.embed(inputs, 0, count)
    for index in range(model.spec.num_hidden_layers):
        block = model.block(index)
        query, rows = block.query_key_value(block.normalize(x), 0)
        key, value = (part.transpose(0, 1).unsqueeze(1) for part in rows.unbind(1))
        scores = query @ key.transpose(-1, -2) / model.spec.head_dim**0.5
        seen = every if index % period == 0 else own
        out = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value
        x = block.mix(x, out.permute(2, 0, 1, 3).reshape(count, -1))
    return model.final(x)[count - 1 if model.spec.causal else 0]


async def test_bytes_on_the_wire_are_those_of_the_formulas() -> None:
    model = make_model("gpt2")
    inputs = make_input(model, tokens=24)
    d, blocks, header = model.spec.hidden_size, model.spec.num_hidden_layers, 16
    one = SequenceParallel(PlainCodec("fp16", model))
    for run in await run_on(3, [one] * 3, model, inputs):
        # two receivers, eight tokens, all blocks but the first, whose input is known
        assert run.group.traffic.sent_bytes == 2 * (blocks - 1) * (8 * d * 2 + header)
    runs = await run_on(3, [TensorParallel() for _ in range(3)], model, inputs)
    # two sums a block, of two passes of two steps; one row only in the last block
    whole = 3 * (blocks - 1) * 2 * 4 * (8 * d * 4 + header)
    last = 2 * (3 * 4 * header + 4 * d * 4)
    assert sum(run.group.traffic.sent_bytes for run in runs) == whole + last


async def test_a_ring_all_reduce_adds_up_and_gives_all_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    for count, rows in ((2, 7), (3, 2), (4, 16)):
        parts = [rng.standard_normal((rows, 5)).astype(np.float32) for _ in range(count)]
        async with groups_of(count) as groups:
            found = await asyncio.gather(
                *(g.all_reduce(count, 0, part) for g, part in zip(groups, parts, strict=True))
            )
        assert all(np.array_equal(one, found[0]) for one in found)
        assert np.allclose(found[0], np.sum(parts, axis=0), atol=1e-5)


async def test_members_of_a_larger_group_and_interleaved_tags() -> None:
    async with groups_of(3) as groups:
        pair = groups[:2]
        for tag in (5, 4):
            found = await asyncio.gather(
                *(g.all_gather(2, tag, bytes([g.rank, tag])) for g in pair)
            )
            assert found == [{1: bytes([1, tag])}, {0: bytes([0, tag])}]


async def test_a_lost_worker_fails_those_that_wait() -> None:
    async with groups_of(2) as groups:
        waiting = asyncio.create_task(groups[0].receive(1, 7))
        await asyncio.sleep(0)
        await groups[1].close()
        with pytest.raises(GroupError):
            await waiting
