"""Whom to dial, and which of two links stays."""

import itertools
import math
import random

import pytest

from astra_mesh import limits
from astra_mesh.mesh.membership import Candidate, Membership
from astra_mesh.wire.messages import PeerId

LOW, MID, HIGH = (PeerId(digit * 64) for digit in "159")
AT = (("192.0.2.1", 7100), ("192.0.2.2", 7100))


def members(own: PeerId = MID) -> Membership[str]:
    return Membership(own, random.Random(7))


def test_the_lower_id_dials_at_once() -> None:
    table = members()
    table.found(HIGH, AT, 10.0)
    assert table.next_due() == 10.0
    assert table.due(10.0) == [Candidate(HIGH, AT, HIGH)]
    assert table.due(10.0) == []  # it is being dialled
    assert table.next_due() == math.inf


def test_the_higher_id_waits_first() -> None:
    table = members()
    table.found(LOW, AT, 10.0)
    assert table.due(10.9) == []
    assert table.next_due() == 11.0
    assert table.due(11.0) == [Candidate(LOW, AT, LOW)]


def test_the_higher_id_does_not_dial_if_a_link_came() -> None:
    table = members()
    table.found(LOW, AT, 10.0)
    assert table.opened("link", LOW, dialled=False, now=10.2) == []
    assert table.next_due() == math.inf
    assert table.due(20.0) == []


def test_this_peer_itself_is_no_candidate() -> None:
    table = members()
    table.found(MID, AT, 0.0)
    table.found(HIGH, (), 0.0)
    assert table.next_due() == math.inf


def test_a_withdrawn_announcement() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    table.gone(HIGH, 0.0)
    assert table.due(0.0) == []
    table.failed(HIGH, 1.0)
    table.gone(LOW, 1.0)


def test_backoff_grows_to_a_cap_with_jitter() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    now, waits = 0.0, []
    for _ in range(20):
        assert table.due(now)
        table.failed(HIGH, now)
        waits.append(table.next_due() - now)
        now = table.next_due()
    for turn, wait in enumerate(waits):
        full = min(limits.BACKOFF_CAP_S, limits.BACKOFF_FIRST_S * 2**turn)
        assert full / 2 <= wait <= full
    assert len(set(waits)) == len(waits)


def test_the_addresses_take_turns() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    first = table.due(0.0)[0].addresses
    table.failed(HIGH, 0.0)
    second = table.due(100.0)[0].addresses
    assert second == first[::-1]


def test_an_announcement_ends_the_backoff() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    for now in (0.0, 100.0, 200.0, 300.0):
        table.due(now)
        table.failed(HIGH, now)
    assert table.next_due() > 301.0
    table.found(HIGH, AT[:1], 300.1)
    assert table.next_due() == 300.0 + limits.REDIAL_GAP_S
    assert table.due(301.0) == [Candidate(HIGH, AT[:1], HIGH)]


def test_many_announcements_do_not_cause_many_dials() -> None:
    table = members()
    dials = 0
    for step in range(1_000):  # 10 s
        now = step / 100
        table.found(HIGH, AT, now)
        for candidate in table.due(now):
            dials += 1
            table.failed(candidate.key, now)
    assert dials <= 10 / limits.REDIAL_GAP_S + 1


def test_announcements_during_a_dial_do_not_start_a_second() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    table.due(0.0)
    table.found(HIGH, AT, 1.0)
    assert table.due(5.0) == []


def test_the_table_is_bounded() -> None:
    table = members(LOW)
    for number in range(limits.CANDIDATES + 50):
        table.found(PeerId(f"f{number:063x}"), AT, 0.0)
    assert len(table.due(0.0)) == limits.CANDIDATES
    table.found(PeerId(f"f{0:063x}"), AT, 0.0)  # a known one is still updated


def test_addresses_are_bounded() -> None:
    table = members()
    table.found(HIGH, [("192.0.2.1", port) for port in range(100)], 0.0)
    assert len(table.due(0.0)[0].addresses) == limits.DIAL_ADDRESSES


# --- typed addresses ------------------------------------------------------------------------------


def test_a_typed_address_is_dialled_for_ever() -> None:
    table = members(HIGH)
    table.typed("board.local", 7100, 0.0)
    now = 0.0
    for _ in range(50):
        (candidate,) = table.due(now)
        assert candidate == Candidate("board.local:7100", (("board.local", 7100),), None)
        table.failed(candidate.key, now)
        now = table.next_due()
        assert now < math.inf
    table.opened("link", LOW, dialled=True, now=now, key="board.local:7100")
    assert table.next_due() == math.inf
    assert table.closed("link", LOW, now + 60.0)
    assert table.next_due() <= now + 60.0 + limits.BACKOFF_FIRST_S


def test_a_typed_address_of_a_linked_peer_is_left_alone() -> None:
    table = members()
    table.typed("here", 1, 0.0)
    table.opened("inbound", LOW, dialled=False, now=0.0)
    (candidate,) = table.due(0.0)  # nobody knows yet who that is
    table.failed(candidate.key, 0.0, LOW)
    assert table.next_due() == math.inf
    table.closed("inbound", LOW, 10.0)
    assert [one.key for one in table.due(20.0)] == [candidate.key]


def test_a_typed_address_of_this_peer_itself() -> None:
    table = members()
    table.typed("localhost", 7100, 0.0)
    (candidate,) = table.due(0.0)
    table.failed(candidate.key, 0.0, MID)
    assert table.next_due() == math.inf


def test_a_typed_address_twice() -> None:
    table = members()
    table.typed("x", 1, 0.0)
    table.typed("x", 1, 5.0)
    assert len(table.due(10.0)) == 1


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [LOW, HIGH])
@pytest.mark.parametrize("order", list(itertools.permutations(["by low", "by high"])))
def test_of_two_links_that_of_the_lower_id_stays(own: PeerId, order: tuple[str, str]) -> None:
    other = HIGH if own == LOW else LOW
    table = members(own)
    extra = []
    for link in order:
        dialled = (link == "by low") == (own == LOW)
        extra += table.opened(link, other, dialled=dialled, now=0.0)
    assert extra == ["by high"]
    assert not table.closed("by high", other, 1.0)
    assert table.link(other) == "by low"


def test_of_two_links_that_this_peer_dialled_the_first_stays() -> None:
    for own, other in ((LOW, HIGH), (HIGH, LOW)):
        table = members(own)
        assert table.opened("typed", other, dialled=True, now=0.0) == []
        assert table.opened("found", other, dialled=True, now=0.1) == ["found"]


def test_of_two_links_that_the_other_dialled_it_chooses() -> None:
    for own, other in ((LOW, HIGH), (HIGH, LOW)):
        table = members(own)
        assert table.opened("stale", other, dialled=False, now=0.0) == []
        assert table.opened("fresh", other, dialled=False, now=0.1) == []
        assert table.link(other) == "fresh"
        assert not table.closed("stale", other, 4.0)
        assert table.closed("fresh", other, 5.0)


def test_both_ends_keep_the_same_link() -> None:
    """Whatever is dialled by whom and opens in which order at each end, exactly one link stays."""
    dials = [("l1", LOW), ("l2", LOW), ("h1", HIGH), ("h2", HIGH)]
    for count in range(1, 5):
        for chosen in itertools.combinations(dials, count):
            for at_low, at_high in itertools.product(itertools.permutations(chosen), repeat=2):
                closed: set[str] = set()
                for own, other, order in ((LOW, HIGH, at_low), (HIGH, LOW, at_high)):
                    table = members(own)
                    for link, dialler in order:
                        closed.update(table.opened(link, other, dialled=dialler == own, now=0.0))
                left = {link for link, _ in chosen} - closed
                assert len(left) == 1, (at_low, at_high)


def test_peers_in_order() -> None:
    table = members()
    table.opened("x", HIGH, dialled=True, now=0.0)
    table.opened("y", LOW, dialled=False, now=0.0)
    assert table.peers() == [HIGH, LOW]
    assert table.closed("x", HIGH, 1.0)
    assert table.peers() == [LOW]
    assert table.link(HIGH) is None
    assert not table.closed("x", HIGH, 1.0)


def test_a_lost_peer_is_dialled_again() -> None:
    for other, wait in ((HIGH, 0.0), (LOW, limits.DIAL_PATIENCE_S)):
        table = members()
        table.found(other, AT, 0.0)
        table.opened("link", other, dialled=True, now=0.0, key=other)
        table.closed("link", other, 60.0)
        assert 60.0 + wait < table.next_due() <= 60.0 + wait + limits.BACKOFF_FIRST_S


def test_links_that_end_at_once_back_off() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    now, waits = 0.0, []
    for _ in range(6):
        table.due(now)
        table.opened("link", HIGH, dialled=True, now=now, key=HIGH)
        table.closed("link", HIGH, now + 0.1)
        waits.append(table.next_due() - now)
        now = table.next_due()
    assert waits[-1] > 4.0


# --- peers that fall silent or are lost -----------------------------------------------------------


def test_a_silent_link_is_not_used_and_its_peer_is_dialled() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    table.due(0.0)
    table.opened("old", HIGH, dialled=True, now=0.0, key=HIGH)
    assert table.due(5.0) == []
    table.silent("old", HIGH, 5.0, is_silent=True)
    assert table.link(HIGH) is None
    assert [one.key for one in table.due(5.0)] == [HIGH]
    table.failed(HIGH, 6.0)
    table.silent("old", HIGH, 6.0, is_silent=False)
    assert table.link(HIGH) == "old"
    assert table.due(100.0) == []


def test_who_was_lost_a_moment_ago_may_be_back() -> None:
    table = members()
    assert not table.may_be_back(HIGH, 0.0)
    table.found(HIGH, AT, 0.0)
    table.due(0.0)
    table.opened("old", HIGH, dialled=True, now=0.0, key=HIGH)
    table.silent("old", HIGH, 5.0, is_silent=True)
    assert table.may_be_back(HIGH, 5.0)
    table.closed("old", HIGH, 9.0)
    assert table.may_be_back(HIGH, 16.0)
    assert not table.may_be_back(HIGH, 18.0)


def test_a_link_that_ended_soon_after_a_loss_may_be_back_too() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    table.due(0.0)
    table.opened("new", HIGH, dialled=True, now=9.0, key=HIGH)
    table.closed("new", HIGH, 9.5)
    assert table.may_be_back(HIGH, 10.0)


def test_who_said_goodbye_is_not_waited_for() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    table.due(0.0)
    table.opened("link", HIGH, dialled=True, now=0.0, key=HIGH)
    table.closed("link", HIGH, 60.0, left=True)
    assert not table.may_be_back(HIGH, 60.0)


def test_a_silent_link_of_an_unannounced_peer_may_be_back() -> None:
    table = members()
    table.opened("link", HIGH, dialled=False, now=0.0)
    table.silent("link", HIGH, 5.0, is_silent=True)
    assert table.may_be_back(HIGH, 5.0)


def test_a_new_link_is_no_duplicate_of_a_silent_one() -> None:
    """A peer that was restarted, or has another address: its old link may be dead."""
    table = members()
    table.opened("old", HIGH, dialled=True, now=0.0)
    assert table.opened("other", HIGH, dialled=False, now=1.0) == ["other"]
    table.closed("other", HIGH, 1.0)
    table.silent("old", HIGH, 5.0, is_silent=True)
    assert table.opened("new", HIGH, dialled=False, now=5.5) == []
    assert table.link(HIGH) == "new"
    assert not table.closed("old", HIGH, 9.0)  # not the last


def test_a_peer_that_was_lost_is_dialled_often_until_it_is_back() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    table.due(0.0)
    table.opened("link", HIGH, dialled=True, now=0.0, key=HIGH)
    table.closed("link", HIGH, 60.0)
    table.gone(HIGH, 200.0)  # its announcement ran out: nobody renewed it
    now, waits = 60.0, []
    while now < 300.0:
        assert table.next_due() < math.inf
        waits.append(table.next_due() - now)
        now = table.next_due()
        (candidate,) = table.due(now)
        now += 1.5 if candidate.brief else 3.0
        table.failed(HIGH, now)
    assert max(waits) <= limits.BACKOFF_KNOWN_S


def test_where_a_peer_said_that_it_is() -> None:
    table = members()
    assert table.addresses(HIGH) == ()
    table.found(HIGH, AT, 0.0)
    assert table.addresses(HIGH) == AT


def test_a_peer_that_left_is_not_dialled_often() -> None:
    table = members()
    table.found(HIGH, AT, 0.0)
    table.due(0.0)
    table.opened("link", HIGH, dialled=True, now=0.0, key=HIGH)
    table.closed("link", HIGH, 60.0, left=True)
    table.gone(HIGH, 60.1)
    assert table.next_due() == math.inf
