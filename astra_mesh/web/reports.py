"""What a request cost: tokens as OpenAI counts them, and the mesh's report (``x_astra_mesh``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from astra_mesh.client import Generation
from astra_mesh.naming import Names
from astra_mesh.wire.messages import PeerReport, Planned, Report


@dataclass(frozen=True)
class Summary:
    """The costs of one text, vector or picture."""

    prompt_tokens: int
    new_tokens: int
    planned: Planned | None
    report: Report | None  # None where a stop string ended the request before its report
    took_s: float
    loading_s: float = 0.0  # that the API itself waited for the model, before it asked

    @property
    def mesh(self) -> dict[str, Any]:
        """The entry of ``x_astra_mesh``."""
        return {"took_s": self.took_s} | _of_plan(self.planned) | _of_report(self)


def of_generation(generation: Generation, count: int, took_s: float) -> Summary:
    """Of a text that ended."""
    planned = generation.planned
    prompt = planned.prompt_tokens if planned is not None else 0
    return Summary(prompt, count, planned, generation.report, took_s)


def usage(prompts: Iterable[Summary], answers: Iterable[Summary]) -> dict[str, int]:
    """Tokens of a request: each prompt counts once, however many texts were made of it."""
    given = sum(one.prompt_tokens for one in prompts)
    made = sum(one.new_tokens for one in answers)
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def _of_plan(planned: Planned | None) -> dict[str, Any]:
    if planned is None:
        return {}
    plan, names = planned.plan, Names(planned.names)
    return {
        "plan": {
            "codec": plan.codec,
            "bits_per_token": planned.bits_per_token,
            "answering": names(plan.answering),
            "shards": [
                {"peer": names(one.peer), "start": one.start, "stop": one.stop}
                for one in plan.shards
            ],
            "reason": planned.reason,
        },
        "predicted_s": plan.predicted_s,
        "predicted_solo_s": planned.solo_s,
    }


def _of_report(summary: Summary) -> dict[str, Any]:
    report, planned = summary.report, summary.planned
    if report is None:
        return {"ended_early": True}
    names = Names(planned.names if planned is not None else {})
    expected = report.expected
    return {
        "predicted_s": report.predicted_s,
        "actual_s": report.actual_s,
        "total_s": report.total_s,
        "lost_s": report.lost_s,
        "loading_s": report.loading_s + summary.loading_s,
        "peers": [_of_peer(one, names) for one in report.peers],
        "expected_cost": None
        if expected is None
        else {"measure": expected.measure, "loss": expected.loss, "peers": expected.peers},
        "notes": report.notes,
    }


def _of_peer(one: PeerReport, names: Names) -> dict[str, Any]:
    return {
        "peer": names(one.peer),
        "tokens": one.tokens,
        "precision": one.precision,
        "compute_s": one.compute_s,
        "encode_s": one.encode_s,
        "decode_s": one.decode_s,
        "wait_s": one.wait_s,
        "sent_bytes": {names(to): size for to, size in one.sent_bytes.items()},
        "rates": {names(to): changes for to, changes in one.rates.items()},
    }
