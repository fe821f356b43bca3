"""Figures of links that peers tell each other."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.peer.figures import LinkFigures
from astra_mesh.wire.messages import LinkInfo, PeerId
from tests.unit.peer.fakes import A, B, C


def info(peer: PeerId, trip: float | None = 0.01, bps: float | None = 1e8) -> LinkInfo:
    return LinkInfo(peer=peer, round_trip_s=trip, send_bps=bps)


@pytest.mark.parametrize(
    ("now", "news"),
    [
        ([info(A), info(B)], False),
        ([info(B), info(A)], False),
        ([info(A, 0.012, 0.8e8), info(B)], False),
        ([info(A, 0.013), info(B)], True),
        ([info(A, bps=0.7e8), info(B)], True),
        ([info(A, bps=None), info(B)], True),
        ([info(A)], True),
        ([info(A), info(B), info(C, None, None)], True),
    ],
)
def test_only_what_changed_by_a_quarter_is_news(now: list[LinkInfo], news: bool) -> None:
    figures = LinkFigures()
    assert figures.renew([info(A), info(B)])
    before = figures.own
    assert figures.renew(now) is news
    assert figures.own == (sorted(now, key=lambda one: one.peer) if news else before)


def test_small_steps_add_up() -> None:
    figures = LinkFigures()
    figures.renew([info(A, 0.010)])
    assert not figures.renew([info(A, 0.012)])
    assert figures.renew([info(A, 0.014)])


def test_no_more_are_told_than_others_take() -> None:
    figures = LinkFigures()
    figures.renew([info(PeerId(f"{i:064x}")) for i in range(limits.LINKS_TOLD + 9)])
    assert len(figures.own) == limits.LINKS_TOLD


def test_what_a_peer_tells_replaces_what_it_told() -> None:
    figures = LinkFigures()
    assert figures.of(B) == []
    figures.take(B, [info(A), info(B), info(C)])  # one to itself is none
    assert [one.peer for one in figures.of(B)] == [A, C]
    figures.take(B, [info(C, None)])
    assert figures.of(B) == [info(C, None)]
    figures.forget(B)
    figures.forget(B)
    assert figures.of(B) == []


def test_where_others_can_be_dialled() -> None:
    figures = LinkFigures()
    told = [replace(info(A), host="192.0.2.7", port=7000), info(C)]
    figures.take(B, told)
    assert figures.places() == {A: ("192.0.2.7", 7000)}
    assert figures.of(B) == [info(A), info(C)]  # clients need not know
    figures.take(B, [replace(info(A), host="127.0.0.1", port=7000)], "192.0.2.9")
    assert figures.places() == {A: ("192.0.2.9", 7000)}  # on the machine of B
    figures.forget(B)
    assert figures.places() == {}


def test_a_peer_that_moved_is_news() -> None:
    figures = LinkFigures()
    figures.renew([replace(info(A), host="192.0.2.7", port=7000)])
    assert not figures.renew([replace(info(A), host="192.0.2.7", port=7000)])
    assert figures.renew([replace(info(A), host="192.0.2.8", port=7000)])
