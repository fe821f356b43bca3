"""The whole plan in one process: what the mesh must equal, and how quality is measured.

:func:`run_plan` drives the same shards in lockstep, without network or threads. :func:`run_solo` is
one device on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from astra_mesh.engine.decode import Decoder
from astra_mesh.engine.pipeline import mean_of
from astra_mesh.engine.shard import ShardRun
from astra_mesh.families.model import Model, ModelInput
from astra_mesh.families.spec import Pooling
from astra_mesh.plan.layout import Layout, make_layout
from astra_mesh.quant.codecs import PlainCodec
from astra_mesh.quant.codes import Codec
from astra_mesh.wire.messages import Sampling

# (block, sender, receiver) to the number of stages that were sent
Sent = Callable[[int, int, int], int]


@torch.inference_mode()
def run_plan(
    model: Model,
    layout: Layout,
    codec: Codec,
    inputs: ModelInput,
    spare: int = 0,
    sent: Sent | None = None,
) -> list[ShardRun]:
    """All shards after the last block; ``sent``: at other rates than the layout's (a codec that
    projects)."""
    count = len(layout.bounds)
    runs = [ShardRun(model, layout, i, codec, inputs, spare) for i in range(count)]
    for block in range(layout.blocks):
        codes = [run.encode(block, _stages(run, block, sent)) for run in runs]
        for run in runs:
            run.attend_local(block)
            if block >= layout.first_block:
                for source in layout.sources(run.shard, block):
                    run.attend_remote(block, source, codes[source][run.shard])
        for run in runs:
            run.finish(block)
    return runs


def _stages(run: ShardRun, block: int, sent: Sent | None) -> dict[int, int] | None:
    if sent is None:
        return None
    return {i: sent(block, run.shard, i) for i in run.layout.receivers(run.shard, block)}


def solo_layout(model: Model, inputs: ModelInput, pooling: Pooling) -> Layout:
    """Everything on one device."""
    return make_layout(model.spec, [(0, model.count_tokens(inputs))], pooling=pooling)


def run_solo(model: Model, inputs: ModelInput, pooling: Pooling, spare: int = 0) -> ShardRun:
    """One device on its own, after the last block."""
    layout = solo_layout(model, inputs, pooling)
    return run_plan(model, layout, PlainCodec("fp32", model), inputs, spare)[0]


@torch.inference_mode()
def hidden_rows(runs: list[ShardRun]) -> Tensor:
    """Final hidden rows (T, D) of a layout with ``pooling="all"``, without class token copies."""
    rows = [run.x[int(run.layout.copies_class(run.shard)) :] for run in runs]
    return runs[0].model.final(torch.cat(rows))


@torch.inference_mode()
def pooled(runs: list[ShardRun]) -> Tensor:
    """The pooled row (D,), summed in the order in which the answering peer sums."""
    answering = runs[0].layout.answering()
    order = [run for run in runs if run.shard != answering] + [runs[answering]]
    return mean_of([run.pooled() for run in order if run.layout.wanted(run.shard)])


@torch.inference_mode()
def decode(runs: list[ShardRun], sampling: Sampling, stop_ids: Collection[int] = ()) -> list[int]:
    """New token ids of a causal plan (run with ``spare`` at least ``max_new_tokens``)."""
    decoder = Decoder(runs[runs[0].layout.answering()], sampling, stop_ids)
    found = []
    while (token := decoder.step()) is not None:
        found.append(token)
    return found
