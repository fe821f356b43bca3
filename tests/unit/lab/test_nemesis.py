"""Schedules of faults are those of their seed, and the check of a history finds what is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tools.lab.faults import KINDS, RARE, Fault, draw
from tools.lab.history import Asked, Held, History, Seen
from tools.lab.invariants import violations
from tools.lab.nemesis import row
from tools.lab.soak import Soaked, findings, slope, summary

NAMES = ["attic", "cellar", "kitchen"]
HELD = Held(descriptors=20, threads=8, memory_bytes=300 << 20)


def question(**options: Any) -> dict[str, Any]:
    given = {"codec": "fp32", "max_new_tokens": 2} | options
    return {"task": "generate", "tokens": (1, 2, 3), "options": given}


def answered(device: str = "attic", began_s: float = 1.0, **changes: Any) -> Asked:
    answer = {"tokens": [7, 8], "report": {"finish": "length"}}
    return replace(Asked(device, question(), began_s, began_s + 0.5, answer=answer), **changes)


def history(*faults: Fault, **parts: Any) -> History:
    seen = [
        Seen(0.0, one, "peer-joined", other) for one in NAMES for other in NAMES if one != other
    ]
    seen += parts.pop("seen", [])
    rest = {"finally_seen": {name: list(NAMES) for name in NAMES}} | parts
    return History(1, NAMES, list(faults), seen=seen, **rest)


def broken(found: History) -> list[str]:
    return violations(found, departs, deadline_s=30.0, slack_s=1.0)


def departs(question: dict[str, Any], tokens: list[int]) -> str:
    return "" if tokens == [7, 8] else f"was answered {tokens} instead of [7, 8]"


@pytest.mark.parametrize("seed", range(50))
def test_a_seed_is_a_schedule(seed: int) -> None:
    faults = draw(seed, NAMES, 20.0)
    assert faults == draw(seed, NAMES, 20.0)
    assert faults
    for fault in faults:
        shortest, longest = (KINDS | RARE)[fault.kind]
        assert shortest <= fault.until_s - fault.at_s <= longest
        assert 0 < fault.at_s < 20.0
        meanwhile = [one for one in faults if one.at_s <= fault.at_s < one.until_s]
        assert len({one.device for one in meanwhile if one.is_away}) < len(NAMES)
        assert len({one.device for one in meanwhile}) == len(meanwhile)
    assert sum(fault.kind in RARE for fault in faults) <= 1


def test_every_kind_is_drawn() -> None:
    drawn = {fault.kind for seed in range(50) for fault in draw(seed, NAMES, 20.0)}
    assert drawn == KINDS.keys() | RARE.keys()


def test_a_good_history_has_nothing_broken() -> None:
    kill = Fault("kill", "cellar", 10.0, 16.0)
    told = [
        Seen(10.1, "attic", "peer-left", "cellar"),
        Seen(10.2, "kitchen", "peer-left", "cellar"),
    ]
    told += [Seen(19.0, "cellar", "started")]
    told += [Seen(19.5, one, "peer-joined", "cellar") for one in ("attic", "kitchen")]
    gone = Asked("cellar", question(), 10.1, 10.2, error="no-peer")
    assert broken(history(kill, seen=told, asked=[answered(), gone])) == []


def test_a_peer_is_away_until_it_is_ready_again() -> None:
    """Starting takes as long as the machine is busy; then the promises hold again."""
    kill = Fault("kill", "cellar", 10.0, 12.0)
    told = [Seen(10.1, one, "peer-left", "cellar") for one in ("attic", "kitchen")]
    told += [Seen(30.0, "cellar", "started")]
    told += [Seen(30.5, one, "peer-joined", "cellar") for one in ("attic", "kitchen")]
    early, late = (
        Asked("cellar", question(), at_s, at_s + 0.1, error="no-peer") for at_s in (25.0, 34.0)
    )
    assert broken(history(kill, seen=told, asked=[early])) == []
    namesake = Fault("namesake", "cellar", 14.0, 20.0)  # meanwhile
    assert broken(history(kill, namesake, seen=told, asked=[early])) == []
    assert "though nothing happened" in broken(history(kill, seen=told, asked=[late]))[0]


def test_a_request_that_another_peer_could_have_continued() -> None:
    lost = Asked("cellar", question(), 9.9, 10.2, error="peer-lost")
    kill = Fault("kill", "cellar", 10.0, 12.0)
    (found,) = broken(history(kill, asked=[lost]))
    assert "was not continued, though attic was there" in found
    others = [Fault("blip", "attic", 9.0, 12.0), Fault("slow", "kitchen", 9.0, 12.0)]
    assert "though kitchen was there" in broken(history(kill, *others, asked=[lost]))[0]
    assert broken(history(Fault("blip", "cellar", 10.0, 12.0), asked=[lost])) == []


def test_a_namesake_that_leaves_may_cost_a_new_plan() -> None:
    again = {"finish": "length", "notes": ["planned again without a1b2c3d4: it left"]}
    asked = answered(began_s=9.8, answer={"tokens": [7, 8], "report": again})
    assert broken(history(Fault("namesake", "cellar", 5.0, 10.0), asked=[asked])) == []
    (found,) = broken(history(Fault("namesake", "cellar", 5.0, 8.5), asked=[asked]))
    assert "though no peer was away" in found


def test_two_of_one_name_are_two_in_the_end() -> None:
    ghosts = {name: list(NAMES) for name in NAMES} | {"attic": sorted([*NAMES, "cellar"])}
    (found,) = broken(history(finally_seen=ghosts))
    assert "attic saw attic, cellar, cellar, kitchen" in found


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (answered(ended_s=99.0), "took 98.0 s"),
        (answered(answer={"tokens": [7, 9], "report": {"finish": "length"}}), "instead of"),
        (answered(error="peer-lost", message="gone"), "though nothing happened to its device"),
        (answered(error="internal", message="oops"), "ended by internal"),
        (answered(error="asker", message="dead"), "ended by asker"),
    ],
)
def test_requests_that_break_a_promise(asked: Asked, says: str) -> None:
    (found,) = broken(history(asked=[asked]))
    assert says in found


def test_a_caller_who_leaves_is_no_failure() -> None:
    gone = answered(error="deadline", cancelled=True)
    assert broken(history(asked=[gone])) == []


@pytest.mark.parametrize(
    ("kind", "left_s", "fine"),
    [("kill", 5.9, True), ("kill", 6.1, False), ("leave", 1.4, True), ("leave", 1.6, False)],
)
def test_how_late_a_departure_is_noticed(kind: str, left_s: float, fine: bool) -> None:
    fault = Fault(kind, "cellar", 10.0, 18.0)
    told = [Seen(10.0 + left_s, one, "peer-left", "cellar") for one in ("attic", "kitchen")]
    found = broken(history(fault, seen=told))
    assert (found == []) is fine
    assert fine or all("noticed" in text for text in found)


@pytest.mark.parametrize(
    ("fault", "fine"),
    [
        (Fault("blip", "cellar", 0.5, 5.5), False),
        (Fault("slow", "cellar", 0.5, 5.5), False),
        (Fault("stop", "cellar", 0.5, 12.5), True),
        (Fault("partition", "kitchen", 0.5, 8.5), True),
        (Fault("kill", "kitchen", 50.0, 52.0), False),
    ],
)
def test_a_blip_costs_no_new_plan(fault: Fault, fine: bool) -> None:
    notes = ["planned again without 0a1b2c3d: silent"]
    answer = {"tokens": [7, 8], "report": {"finish": "length", "notes": notes}}
    found = [one for one in broken(history(fault, asked=[answered(answer=answer)])) if "was" in one]
    assert any("longer than a blip" in one for one in found) is not fine


def test_a_departure_that_is_never_noticed() -> None:
    found = broken(history(Fault("stop", "cellar", 10.0, 20.0)))
    assert len(found) == 2
    assert all("noticed never" in text for text in found)


def test_a_peer_that_does_not_come_back() -> None:
    fault = Fault("partition", "cellar", 10.0, 20.0)
    told = [Seen(14.5, one, "peer-left", "cellar") for one in ("attic", "kitchen")]
    told.append(Seen(23.9, "attic", "peer-joined", "cellar"))
    told.append(Seen(24.5, "kitchen", "peer-joined", "cellar"))
    (found,) = broken(history(fault, seen=told))
    assert "for kitchen 4.50 s later" in found


def test_ghosts_and_missing_peers_in_the_end() -> None:
    seen = {name: list(NAMES) for name in NAMES} | {"attic": ["attic", "cellar"]}
    assert broken(history(finally_seen=seen)) == ["in the end attic saw attic, cellar"]


@pytest.mark.parametrize("part", ["descriptors", "threads", "memory_bytes"])
def test_what_is_left_behind(part: str) -> None:
    more = replace(HELD, **{part: 3 * getattr(HELD, part)})
    (found,) = broken(history(before={"attic": HELD}, after={"attic": more}))
    assert "attic" in found


def test_a_traceback_in_a_log() -> None:
    assert broken(history(logs={"attic": "Traceback (most recent"})) != []


def test_a_row_of_the_table() -> None:
    gone = Asked("cellar", question(), 10.1, 10.2, error="no-peer")
    cancelled = Asked("cellar", question(), 10.1, 10.2, error="deadline", cancelled=True)
    found = history(
        Fault("kill", "cellar", 10.0, 12.0),
        asked=[answered(), gone, cancelled],
        before={"attic": HELD},
        after={"attic": replace(HELD, memory_bytes=HELD.memory_bytes + 7)},
        lasted_s=20.04,
    )
    assert row(found, ["oh"]) == {
        "seed": 1,
        "devices": 3,
        "faults": ["kill"],
        "answered": 1,
        "errors": {"no-peer": 1},
        "most_bytes_more": 7,
        "lasted_s": 20.0,
        "broken": ["oh"],
    }
    assert row(history(), [])["most_bytes_more"] is None


def test_growth_is_found() -> None:
    def samples(per_s: float) -> list[tuple[float, Held]]:
        return [
            (t, replace(HELD, memory_bytes=int(HELD.memory_bytes + per_s * t)))
            for t in range(0, 3600, 60)
        ]

    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx((2.0, 0.0))
    assert slope([(0, 0), (1, 3), (2, 0), (3, 3)]) == pytest.approx((0.6, 0.72**0.5))
    assert findings(Soaked(calm={"attic": samples(0.9 * 2**20 / 3600)})) == []
    (found,) = findings(Soaked(calm={"attic": samples(1.2 * 2**20 / 3600)}))
    assert found.startswith("attic grows by +1.2")


@pytest.mark.parametrize(("minutes", "judged"), [(3, False), (29, False), (31, True), (60, True)])
def test_only_a_long_soak_has_a_slope(minutes: int, judged: bool) -> None:
    """The start may grow as caches fill; after it, half a MiB a minute is a leak."""
    samples = [
        (float(t), replace(HELD, memory_bytes=HELD.memory_bytes + (t << 19) // 60))
        for t in range(0, 60 * minutes + 1, 15)
    ]
    found = Soaked(samples={"attic": samples}, calm={"attic": samples})
    assert bool(findings(found)) is judged
    assert ("not judged" in summary(found)) is not judged


def test_growth_while_it_warms_up_does_not_count() -> None:
    samples = [
        (float(t), replace(HELD, memory_bytes=HELD.memory_bytes + (min(t, 540) << 14)))
        for t in range(0, 3601, 15)
    ]
    assert findings(Soaked(samples={"attic": samples}, calm={"attic": samples})) == []


def test_what_swings_while_requests_run_is_no_growth() -> None:
    swinging = [
        (float(t), replace(HELD, memory_bytes=HELD.memory_bytes + t * 10_000))
        for t in range(0, 3601, 15)
    ]
    calm = [(float(t), HELD) for t in range(120, 3601, 120)]
    found = Soaked(samples={"attic": swinging}, calm={"attic": calm})
    assert findings(found) == []
    assert "+0.00 \u00b1 0.00 MiB an hour; +34.33 \u00b1 0.00 MiB an hour while" in summary(found)


def test_what_chance_explains_is_no_growth() -> None:
    """2 MiB an hour: in memory that swings by 8 MiB from look to look, and by 0.2 MiB."""

    def calm(swing: int) -> list[tuple[float, Held]]:
        return [
            (t, replace(HELD, memory_bytes=HELD.memory_bytes + int(t * 583) + t // 120 % 2 * swing))
            for t in range(0, 3600, 120)
        ]

    assert findings(Soaked(calm={"attic": calm(8 << 20)})) == []
    (found,) = findings(Soaked(calm={"attic": calm(200 << 10)}))
    assert found.startswith("attic grows by +2.")
