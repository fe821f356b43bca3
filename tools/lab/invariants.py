"""Whether a history keeps the promises of docs/reliability.md: a list of what was broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from tools.lab.faults import RESTARTS, Fault
from tools.lab.history import Asked, History, Seen

# The promises, seconds; ``slack`` is for the laboratory itself: its looks, and a busy machine.
GONE_S: Final = 5.0
GOODBYE_S: Final = 0.5
BACK_S: Final = 3.0
NAMED_ERRORS: Final = ("no-peer", "peer-lost", "refused", "busy", "deadline", "leaving", "mesh")
REPLANNED: Final = "planned again without"  # in the notes of a report
MORE_DESCRIPTORS: Final = 4
MORE_THREADS: Final = 3
MORE_MEMORY_BYTES: Final = 64 << 20
TRACEBACK_CHARS: Final = 3000  # that are shown

Departs = Callable[[dict[str, Any], list[int]], str]  # how an answer is wrong; "": it is not


def violations(
    history: History, departs: Departs, *, deadline_s: float, slack_s: float
) -> list[str]:
    """One sentence for each promise that was broken.

    Args:
        history: what happened.
        departs: how the tokens of an answer differ from those of a single device.
        deadline_s: in which every request has to end.
        slack_s: added to the times in which others are to notice.
    """
    history = replace(history, faults=[_as_it_was(history, fault) for fault in history.faults])
    return [
        *_requests(history, departs, deadline_s),
        *_membership(history, slack_s),
        *resources(history),
        *_logs(history),
    ]


def _as_it_was(history: History, fault: Fault) -> Fault:
    """A killed peer is away until it is ready again; how long a program takes to start, on this
    machine at this time, is no promise."""
    if fault.kind not in RESTARTS:
        return fault
    ready = [
        one.at_s
        for one in history.seen
        if (one.observer, one.kind) == (fault.device, "started") and one.at_s > fault.at_s
    ]
    again = [one for one in history.faults if one.device == fault.device and one.kind in RESTARTS]
    later = [one.at_s for one in again]
    until_s = min(
        [*ready, *(at_s for at_s in later if at_s > fault.until_s)], default=fault.until_s
    )
    return replace(fault, until_s=max(fault.until_s, until_s))


# --- requests -------------------------------------------------------------------------------------


def _requests(history: History, departs: Departs, deadline_s: float) -> Iterator[str]:
    for asked in history.asked:
        where = f"the request of {asked.device} at {asked.began_s:.2f} s"
        took_s = asked.ended_s - asked.began_s
        if took_s > deadline_s:
            yield f"{where} took {took_s:.1f} s ({asked.error or 'answered'})"
        if asked.error and not asked.cancelled:
            yield from _failed(history, asked, where)
        elif not asked.error:
            yield from _wrong(asked, departs, where)
            yield from _planned_again(history, asked, where)


def _planned_again(history: History, asked: Asked, where: str) -> Iterator[str]:
    """A blip is ridden out: only what takes a peer away for longer may cost a new plan."""
    notes = [n for n in asked.answer.get("report", {}).get("notes", []) if REPLANNED in n]
    longer = [fault for fault in history.faults if fault.kind != "blip"]
    if (
        notes
        and not any(
            disturbed(longer, device, asked.began_s, asked.ended_s) for device in history.devices
        )
        and not _namesake_left(history, asked)
    ):
        yield f"{where} was {notes[0]}, though no peer was away for longer than a blip"


def _namesake_left(history: History, asked: Asked) -> bool:
    """It may have had a shard."""
    return any(
        fault.kind == "namesake" and asked.began_s - 1.0 < fault.until_s < asked.ended_s
        for fault in history.faults
    )


def _failed(history: History, asked: Asked, where: str) -> Iterator[str]:
    said = f"{asked.error}: {asked.message}"
    if asked.error not in NAMED_ERRORS:
        yield f"{where} ended by {said}"
    elif not disturbed(history.faults, asked.device, asked.began_s, asked.ended_s):
        yield f"{where} failed though nothing happened to its device: {said}"
    elif asked.error == "peer-lost" and (other := _refuge(history, asked)):
        yield f"{where} was not continued, though {other} was there: {said}"


def _refuge(history: History, asked: Asked) -> str:
    """A peer that the client could have gone on with; empty: none, or its network was away."""
    span = asked.began_s, asked.ended_s
    if any(
        fault.device == asked.device and fault.kind in ("blip", "partition", "suspend", "address")
        for fault in history.faults
        if fault.at_s < span[1] and span[0] < fault.until_s + BACK_S
    ):
        return ""
    others = [name for name in history.devices if name != asked.device]
    calm = [name for name in others if not disturbed(history.faults, name, *span)]
    return calm[0] if calm else ""


def _wrong(asked: Asked, departs: Departs, where: str) -> Iterator[str]:
    if asked.question["task"] != "generate":
        if not asked.answer.get("labels"):
            yield f"{where} has no labels"
        return
    tokens = asked.answer["tokens"]
    if wrong := departs(asked.question, tokens):
        yield f"{where} {wrong}"
    most = asked.question["options"].get("max_new_tokens", 0)
    if len(tokens) != most and asked.answer["report"]["finish"] == "length":
        yield f"{where} has {len(tokens)} tokens, not {most}"


def disturbed(faults: Sequence[Fault], device: str, began_s: float, ended_s: float) -> bool:
    """Whether a device was away at some time of a span, or had only just come back."""
    return any(
        fault.device == device
        and fault.is_away
        and fault.at_s < ended_s
        and began_s < fault.until_s + BACK_S
        for fault in faults
    )


# --- membership -----------------------------------------------------------------------------------


def _membership(history: History, slack_s: float) -> Iterator[str]:
    for fault in history.faults:
        if not fault.is_away or fault.kind == "address":  # that may go unnoticed
            continue
        for observer in history.devices:
            if observer != fault.device:
                yield from _noticed(history, fault, observer, slack_s)
    for observer, names in history.finally_seen.items():
        if sorted(names) != sorted(history.devices):
            yield f"in the end {observer} saw {', '.join(sorted(names)) or 'nobody'}"


def _noticed(history: History, fault: Fault, observer: str, slack_s: float) -> Iterator[str]:
    promise_s = (GOODBYE_S if fault.kind == "leave" else GONE_S) + slack_s
    what = f"{fault.kind} of {fault.device} at {fault.at_s:.2f} s"
    quiet = not disturbed(history.faults, observer, fault.at_s - BACK_S, fault.until_s + promise_s)
    if not quiet or not _knew(history.seen, observer, fault):
        return
    left = _first(history.seen, observer, fault.device, "peer-left", fault.at_s)
    if fault.until_s - fault.at_s > promise_s and (
        left is None or left.at_s > fault.at_s + promise_s
    ):
        when = "never" if left is None else f"{left.at_s - fault.at_s:.2f} s later"
        yield f"{what}: {observer} noticed {when}"
    back_at = _reachable_at(history, fault)
    if left is None or back_at is None or left.at_s > back_at + BACK_S:
        return
    joined = _first(history.seen, observer, fault.device, "peer-joined", left.at_s)
    if joined is None or joined.at_s > back_at + BACK_S + slack_s:
        when = "never" if joined is None else f"{joined.at_s - back_at:.2f} s later"
        yield f"after the {what} it was back at {back_at:.2f} s, for {observer} {when}"


def _knew(seen: Sequence[Seen], observer: str, fault: Fault) -> bool:
    """Whether the observer listed the device when the fault began."""
    told = [
        one
        for one in seen
        if one.observer == observer and one.about == fault.device and one.at_s < fault.at_s
    ]
    return not told or told[-1].kind == "peer-joined"


def _first(
    seen: Sequence[Seen], observer: str, about: str, kind: str, after_s: float
) -> Seen | None:
    for one in seen:
        if (one.observer, one.about, one.kind) == (observer, about, kind) and one.at_s >= after_s:
            return one
    return None


def _reachable_at(history: History, fault: Fault) -> float | None:
    """When the device could be reached again, if it stayed so for long enough to notice."""
    at_s: float | None = fault.until_s
    if fault.kind in RESTARTS:
        started = [
            one.at_s
            for one in history.seen
            if one.observer == fault.device and one.kind == "started" and one.at_s > fault.at_s
        ]
        at_s = min(started, default=None)
    if at_s is None:
        return None
    again = [one.at_s for one in history.faults if one.device == fault.device and one.is_away]
    later = min((at for at in again if at > fault.at_s), default=float("inf"))
    return at_s if later > at_s + BACK_S else None


# --- what is left ---------------------------------------------------------------------------------


def resources(history: History) -> Iterator[str]:
    """What peers hold more after the schedule than before it."""
    for device, after in history.after.items():
        before = history.before[device]
        if after.descriptors > before.descriptors + MORE_DESCRIPTORS:
            yield f"{device} holds {after.descriptors} descriptors, {before.descriptors} before"
        if after.threads > before.threads + MORE_THREADS:
            yield f"{device} has {after.threads} threads, {before.threads} before"
        if after.memory_bytes > before.memory_bytes + MORE_MEMORY_BYTES:
            more = (after.memory_bytes - before.memory_bytes) / 2**20
            yield f"{device} holds {more:.0f} MiB more than before"


def _logs(history: History) -> Iterator[str]:
    for device, log in history.logs.items():
        _, found, rest = log.partition("Traceback")
        if found:
            yield f"the log of {device} has a traceback{rest[:TRACEBACK_CHARS]}"
