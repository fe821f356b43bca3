"""``python -m tools.bench.even MODULE ...``: a program of astra_mesh that shares tokens evenly, and
multiplies by weights as they are.

For comparing two meshes that are to do the same work: a planner that measures gives each its own
shards, and a peer that measures packs its weights or does not.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from astra_mesh.peer import loading
from astra_mesh.plan.cost import Candidate
from astra_mesh.plan.search import Search, Trial, shares


def work_evenly() -> None:
    """In this process: shares where a request is for all peers, and the layers of all models."""
    for owner, name, instead in (
        (Search, "balanced", _evenly),
        (Search, "evened", lambda search, start, rounds: start),
        (loading, "pack_if_faster", lambda model: "none"),
    ):
        assert hasattr(owner, name), name
        setattr(owner, name, instead)


def _evenly(search: Search, group: Sequence[Candidate]) -> Trial:
    return search.trial(group, shares(search.job.tokens, [1.0] * len(group)))


def run(argv: Sequence[str]) -> None:
    """Run the module that they name, with the rest of them."""
    sys.argv = list(argv)
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    work_evenly()
    run(sys.argv[1:])
