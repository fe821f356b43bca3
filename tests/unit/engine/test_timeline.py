"""What a timeline notes of a pipeline, and in which order."""

from __future__ import annotations

import asyncio
import json

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.exchange import LocalExchange
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.engine.shard import ShardRun
from astra_mesh.engine.timeline import FORMAT, Mark, Moment, Timeline
from astra_mesh.families import Model
from astra_mesh.plan.layout import make_layout
from tests.unit.engine.plans import input_of, random_codec
from tests.unit.families.making import make_model

BOUNDS = [(0, 6), (6, 16)]


async def run(model: Model, on: bool) -> list[Pipeline]:
    layout = make_layout(model.spec, BOUNDS, pooling="last" if model.spec.causal else "class")
    codec, inputs, compute = random_codec(model), input_of(model, 16), ComputeThread()
    pipelines = [
        Pipeline(
            ShardRun(model, layout, shard, codec, inputs),
            exchange,
            compute,
            Timeline() if on else None,
        )
        for shard, exchange in enumerate(LocalExchange.connect(layout))
    ]
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for pipeline in pipelines:
                group.create_task(pipeline.prefill())
    finally:
        compute.close()
    return pipelines


def marks(pipeline: Pipeline, block: int) -> list[Mark]:
    assert pipeline.timeline is not None
    return [one.mark for one in pipeline.timeline.moments if one.block == block]


async def test_the_steps_of_each_block_are_noted_in_their_order() -> None:
    model = make_model("gpt2")
    left, right = await run(model, on=True)
    for block in range(model.spec.num_hidden_layers):
        coded = block > 0
        attends = [Mark.ATTENDED] if coded else []
        # Codes are sent while the compute thread goes on.
        work = [mark for mark in marks(left, block) if mark is not Mark.SENT]
        assert work == [*([Mark.ENCODED] if coded else []), Mark.LOCAL, Mark.DONE]
        assert marks(left, block).count(Mark.SENT) == int(coded)
        assert marks(right, block) == [Mark.LOCAL, *attends, Mark.DONE]
    for pipeline in (left, right):
        assert pipeline.timeline is not None
        moments = pipeline.timeline.moments
        times = [one.at_ns for one in moments if one.mark is not Mark.SENT]
        assert times == sorted(times)
        assert times[0] >= 0


async def test_each_remote_part_has_its_shard() -> None:
    first, second = await run(make_model("vit"), on=True)
    for pipeline, other in ((first, 1), (second, 0)):
        assert pipeline.timeline is not None
        parts = {one.part for one in pipeline.timeline.moments if one.mark is Mark.ATTENDED}
        assert parts == {other}


async def test_nothing_is_noted_unless_it_is_wanted() -> None:
    assert [pipeline.timeline for pipeline in await run(make_model("gpt2"), on=False)] == [None] * 2


def test_the_document_has_one_entry_for_each_block() -> None:
    timeline = Timeline(began_ns=1000)
    timeline.moments = [
        Moment(5, Mark.ARRIVED, 1, 0),
        Moment(7, Mark.LOCAL, 0, -1),
        Moment(9, Mark.ATTENDED, 1, 0),
        Moment(11, Mark.DONE, 1, -1),
    ]
    wanted = {
        "format": FORMAT,
        "began_ns": 1000,
        "blocks": [
            {"block": 0, "local_ns": 7},
            {"block": 1, "parts": {"0": {"arrived_ns": 5, "attended_ns": 9}}, "done_ns": 11},
        ],
    }
    assert json.loads(json.dumps(timeline.document())) == wanted
