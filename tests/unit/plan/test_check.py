"""A participant refuses a plan that cannot be run, and says why."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec
import pytest

from astra_mesh.plan.check import BadPlanError, class_token_of, layout_of
from astra_mesh.plan.planner import choose
from astra_mesh.wire.messages import LinkRate, PeerId, Plan, Shard, Task, Use
from tests.unit.plan.making import BERT, GPT, device, job, links

PEERS = [device(name) for name in "abc"]


def good(causal: bool = True) -> Plan:
    return choose(job(90, causal, Use.ALL), PEERS[0], PEERS[1:], links(PEERS)).plan


def check(
    plan: Plan, causal: bool = True, tokens: int = 90, able: Collection[int] = (1, 2)
) -> None:
    task = Task.GENERATE if causal else Task.CLASSIFY
    layout_of(plan, GPT if causal else BERT, task, tokens, 1, able)


@pytest.mark.parametrize("causal", [True, False])
def test_good_plans_pass(causal: bool) -> None:
    check(good(causal), causal)


def change(**parts: object) -> Callable[[Plan], Plan]:
    return lambda plan: msgspec.structs.replace(plan, **parts)


def shards(edit: Callable[[list[Shard]], list[Shard]]) -> Callable[[Plan], Plan]:
    return lambda plan: msgspec.structs.replace(plan, shards=edit(list(plan.shards)))


def rates(edit: Callable[[list[LinkRate]], list[LinkRate]]) -> Callable[[Plan], Plan]:
    return lambda plan: msgspec.structs.replace(plan, rates=edit(list(plan.rates)))


def moved(shard: Shard, **parts: object) -> Shard:
    return msgspec.structs.replace(shard, **parts)


BAD: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "no shards": (change(shards=[]), "0 shards"),
    "too many shards": (
        shards(lambda s: [Shard(peer=PeerId(f"p{i}"), start=0, stop=90) for i in range(65)]),
        "65 shards",
    ),
    "one peer twice": (shards(lambda s: [s[0], moved(s[1], peer=s[0].peer), s[2]]), "two shards"),
    "not from zero": (shards(lambda s: [moved(s[0], start=1), *s[1:]]), "not contiguous"),
    "a gap": (shards(lambda s: [moved(s[0], stop=s[0].stop - 1), *s[1:]]), "not contiguous"),
    "an overlap": (shards(lambda s: [moved(s[0], stop=s[0].stop + 1), *s[1:]]), "not contiguous"),
    "backwards": (
        shards(lambda s: [moved(s[0], stop=95), moved(s[1], start=95, stop=20), s[2]]),
        "not contiguous",
    ),
    "another order": (shards(lambda s: [s[1], s[0], s[2]]), "not contiguous"),
    "too few tokens": (shards(lambda s: [*s[:2], moved(s[2], stop=89)]), "the input has 90"),
    "too many tokens": (shards(lambda s: [*s[:2], moved(s[2], stop=91)]), "the input has 90"),
    "another answering peer": (change(answering=PeerId("b")), "answering"),
    "an unknown answering peer": (change(answering=PeerId("z")), "answering"),
    "a missing rate": (rates(lambda r: r[1:]), "no valid rate"),
    "no rates": (rates(lambda r: []), "no valid rate"),
    "a rate of zero": (rates(lambda r: [moved_rate(r[0], 0), *r[1:]]), "no valid rate"),
    "a rate beyond the stages": (rates(lambda r: [moved_rate(r[0], 3), *r[1:]]), "no valid rate"),
    "a rate for a stranger": (
        rates(lambda r: [*r, LinkRate(sender=PeerId("z"), receiver=PeerId("a"), stages=1)]),
        "without a shard",
    ),
    "an unknown class token": (change(class_token="two"), "class_token 'two'"),
}


def moved_rate(rate: LinkRate, stages: int) -> LinkRate:
    return msgspec.structs.replace(rate, stages=stages)


@pytest.mark.parametrize("name", BAD)
def test_bad_plans_are_refused(name: str) -> None:
    spoil, text = BAD[name]
    with pytest.raises(BadPlanError, match=text):
        check(spoil(good()))


@pytest.mark.parametrize("able", [(2,), (2, 5), (1, 2, 4), range(1, 3)])
def test_numbers_of_stages_that_were_fitted(able: Collection[int]) -> None:
    """With history a codebook may have 2 and 5 stages, and nothing between."""
    check(good(), able=able)
    for stages in (0, 3, 6, -1):
        other = rates(lambda r, to=stages: [moved_rate(r[0], to), *r[1:]])(good())  # type: ignore[misc]
        with pytest.raises(BadPlanError, match="no valid rate for the link from shard 0 to shard"):
            check(other, able=able)
    with pytest.raises(BadPlanError, match="no valid rate"):
        check(good(), able=set(able) - {2})


def test_encoders_need_rates_both_ways() -> None:
    one_way = rates(lambda r: [rate for rate in r if rate.sender < rate.receiver])
    with pytest.raises(BadPlanError, match="no valid rate"):
        check(one_way(good(causal=False)), causal=False)


def test_empty_shards_are_allowed_and_the_last_tokens_answer() -> None:
    plan = good()
    first, second, last = plan.shards
    empty = msgspec.structs.replace(
        plan,
        shards=[first, moved(second, stop=90), moved(last, start=90, stop=90)],
        answering=second.peer,
    )
    check(empty)
    with pytest.raises(BadPlanError, match="answering"):
        check(msgspec.structs.replace(empty, answering=last.peer))


def test_a_plan_for_nothing() -> None:
    plan = msgspec.structs.replace(
        good(), shards=[Shard(peer=PeerId("a"), start=0, stop=0)], rates=[]
    )
    with pytest.raises(BadPlanError, match="without tokens"):
        check(plan, tokens=0)


def test_class_tokens_by_name() -> None:
    assert [class_token_of(n) for n in ("single", "distributed", "none", "")] == [
        "single",
        "distributed",
        "none",
        "none",
    ]
