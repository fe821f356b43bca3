"""Codes that come before their proposal."""

from __future__ import annotations

import asyncio

import pytest

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.mesh.flow import cost
from astra_mesh.peer.early import EarlyCodes
from astra_mesh.wire.messages import Codes, Pooled, RequestId
from tests.unit.peer.fakes import A, B, link_to

R1, R2 = RequestId(1), RequestId(2)


def codes(request: RequestId = R1, size: int = 100) -> Codes:
    return Codes(request, 1, 0, 0, 1, bytes(size))


async def test_they_are_handed_out_once_in_order() -> None:
    early, a, b = EarlyCodes(), link_to(A), link_to(B)
    first, second, other = codes(), codes(size=3), codes(R2)
    early.put(a, A, first)
    early.put(b, B, second)
    early.put(a, A, other)
    assert early.take(R1) == [(a, A, first), (b, B, second)]
    assert early.take(R1) == []
    assert early._sizes == {a: cost(other)}
    assert not a.consumed_messages
    early.clear()


async def test_empty_messages_count_too() -> None:
    early, a = EarlyCodes(), link_to(A)
    empty = Pooled(R1, 1.0, b"")
    early.put(a, A, empty)
    early.put(a, A, empty)
    early.put(a, A, Pooled(R2, 1.0, b""))
    assert len(early.take(R1)) == 2
    assert len(early.take(R2)) == 1
    assert early._sizes == {}


async def test_too_many_are_refused_and_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EARLY_CODES_BYTES", 400)
    early, a, b = EarlyCodes(), link_to(A), link_to(B)
    early.put(a, A, codes(size=136))
    early.put(a, A, codes(R2, size=136))
    with pytest.raises(ProtocolError, match="not known"):
        early.put(a, A, codes())
    early.put(b, B, codes())  # the limit is per link
    early.drop_link(a)
    assert [item.link for item in early.take(R1)] == [b]
    assert early.take(R2) == []
    assert early._sizes == {}


async def test_they_expire_and_give_credit_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EARLY_CODES_S", 0.01)
    early, a = EarlyCodes(), link_to(A)
    message = codes()
    early.put(a, A, message)
    await asyncio.sleep(0.05)
    assert a.consumed_messages == [message]
    assert early._held == {}
    assert early._sizes == {}


async def test_a_taken_request_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EARLY_CODES_S", 0.02)
    early, a = EarlyCodes(), link_to(A)
    early.put(a, A, codes())
    early.take(R1)
    monkeypatch.setattr(limits, "EARLY_CODES_S", 60)
    early.put(a, A, codes())
    await asyncio.sleep(0.05)
    assert len(early.take(R1)) == 1
    assert not a.consumed_messages
