"""Whether a proposed plan can be run: every participant checks before it accepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from astra_mesh.families.spec import ModelSpec
from astra_mesh.limits import PEERS_PER_PLAN
from astra_mesh.plan.layout import ClassToken, Layout, make_layout
from astra_mesh.wire.messages import Plan, Task


class BadPlanError(ValueError):
    """A plan that does not fit the model; the text says why."""


def layout_of(
    plan: Plan, spec: ModelSpec, task: Task, tokens: int, first_block: int, able: Collection[int]
) -> Layout:
    """The layout of a plan, checked against the model and the codec, which is ``able`` to so many
    stages.

    Raises:
        BadPlanError: it cannot be run as it is.
    """
    if not 1 <= len(plan.shards) <= PEERS_PER_PLAN:
        raise BadPlanError(f"{len(plan.shards)} shards; 1 to {PEERS_PER_PLAN} are possible")
    peers = [shard.peer for shard in plan.shards]
    if max(Counter(peers).values()) > 1:
        raise BadPlanError("a peer with two shards")
    if plan.shards[-1].stop != tokens:
        raise BadPlanError(f"shards for {plan.shards[-1].stop} tokens, the input has {tokens}")
    layout = _layout(plan, spec, task, first_block)
    if plan.answering != peers[layout.answering()]:
        raise BadPlanError("the answering peer is not the owner of the last tokens")
    for receiver in range(len(peers)):
        for source in layout.sources(receiver, 0):
            if layout.stages.get((source, receiver), 0) not in able:
                raise BadPlanError(
                    f"no valid rate for the link from shard {source} to shard {receiver}"
                )
    return layout


def _layout(plan: Plan, spec: ModelSpec, task: Task, first_block: int) -> Layout:
    index = {shard.peer: i for i, shard in enumerate(plan.shards)}
    try:
        stages = {(index[rate.sender], index[rate.receiver]): rate.stages for rate in plan.rates}
    except KeyError as error:
        raise BadPlanError("a rate for a peer without a shard") from error
    try:
        return make_layout(
            spec,
            [(shard.start, shard.stop) for shard in plan.shards],
            pooling=spec.pooling(task.value),
            first_block=first_block,
            class_token=class_token_of(plan.class_token),
            stages=stages,
        )
    except ValueError as error:
        raise BadPlanError(str(error)) from error


def class_token_of(name: str) -> ClassToken:
    """The checked name; BadPlanError for an unknown one."""
    if name == "single":
        return "single"
    if name == "distributed":
        return "distributed"
    if name in ("none", ""):
        return "none"
    raise BadPlanError(f"class_token {name!r}; known: none, single, distributed")
