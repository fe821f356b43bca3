"""Comparisons for which two meshes do the same work."""

from __future__ import annotations

import pytest

from astra_mesh.peer import loading
from astra_mesh.plan.alternatives import choose_among
from astra_mesh.plan.memory import Memory
from astra_mesh.plan.search import Search
from astra_mesh.wire.messages import Use
from tests.unit.families.making import make_model
from tests.unit.plan.making import device, job, links
from tools.bench.even import work_evenly


def test_shards_are_even_and_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in (
        (Search, "balanced"),
        (Search, "evened"),
        (loading, "pack_if_faster"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back
    me, *others = peers = [device(name, 1e-4 * (i + 1)) for i, name in enumerate("abc")]
    memory = Memory()

    def sizes() -> list[int]:
        choice = choose_among([job(300, use=Use.ALL)], me, others, links(peers), memory)
        return [one.stop - one.start for one in choice.plan.shards]

    assert sizes() != [100, 100, 100]
    memory = Memory()
    work_evenly()
    assert sizes() == sizes() == [100, 100, 100]
    assert vars(loading)["pack_if_faster"](make_model("gpt2")) == "none"
