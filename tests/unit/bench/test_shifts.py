"""Which processes run at once: all if they fit into the memory, else one kind after the other."""

from __future__ import annotations

import math

import pytest

from tools.bench.shifts import VARIANTS, Shift, shifts


def test_everything_takes_turns_where_it_fits() -> None:
    assert shifts(VARIANTS, 4, math.inf) == [Shift(VARIANTS, 4, 4)]


def test_eight_devices_of_gpt2_fit_into_24_gb_in_two_shifts() -> None:
    baselines, mesh = shifts(VARIANTS, 8, 21.0)  # what 24 GB leave beside the system
    assert (baselines.peers, baselines.workers) == (0, 8)
    assert (mesh.peers, mesh.workers) == (8, 1)
    assert (baselines.kind, mesh.kind) == ("tensor to astra-32", "mesh-16 to mesh-fp16")
    assert max(baselines.gib, mesh.gib) <= 21.0
    assert {*baselines.names} | {*mesh.names} == {*VARIANTS}
    assert {*baselines.names} & {*mesh.names} == {"single"}


def test_tables_count_only_where_they_are_made() -> None:
    names = [name for name in VARIANTS if name != "mesh-32"]
    assert shifts(names, 8, math.inf)[0].gib < shifts(VARIANTS, 8, math.inf)[0].gib


@pytest.mark.parametrize(
    ("names", "peers", "workers"),
    [
        (["single"], 0, 1),
        (["single", "tensor"], 0, 4),
        (["mesh-16"], 4, 0),
        (["single", "mesh-16"], 4, 1),
        (["single", "tensor", "mesh-16"], 4, 4),
    ],
)
def test_only_what_is_asked_is_started(names: list[str], peers: int, workers: int) -> None:
    (found,) = shifts(names, 4, math.inf)
    assert (found.peers, found.workers) == (peers, workers)


def test_a_mesh_that_does_not_fit_is_measured_in_parts() -> None:
    names = ["single", "mesh-16", "mesh-32", "mesh-128", "mesh-int8"]
    parts = shifts(names, 8, 17.0)
    assert [part.own for part in parts] == [
        ("mesh-16",),
        ("mesh-32",),
        ("mesh-128", "mesh-int8"),
    ]
    assert all(part.gib <= 17.0 and part.names[0] == "single" for part in parts)
    assert len({part.kind for part in parts}) == len(parts)


def test_what_cannot_be_divided_is_one_shift_whatever_it_takes() -> None:
    for names in (["single"], ["single", "mesh-16"], ["single", "tensor"], ["mesh-16"]):
        assert [shift.names for shift in shifts(names, 8, 1.0)] == [tuple(names)]
