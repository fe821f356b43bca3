"""What one device may hold over all its links: requests and memory."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]
import pytest
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.mesh import session as sessions
from astra_mesh.mesh.quota import Quota
from astra_mesh.mesh.session import Session, State
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import AnyMessage, encode, peek
from tests.unit.mesh.sessions import MODEL, TIMINGS, A, B, hello, plan, sent


def ask(number: int, text: str = "Once") -> m.Ask:
    return m.Ask(request=m.RequestId(number), task=m.Task.GENERATE, model="words", text=text)


def propose(number: int) -> m.Propose:
    return m.Propose(
        request=m.RequestId(number), task=m.Task.GENERATE, plan=plan(A, B), inputs=m.Inputs()
    )


def link(quota: Quota, role: m.Role = m.Role.PEER) -> Session:
    """Peer A's end of a link to a device with this quota."""
    session = Session(hello(A), TIMINGS, quota=quota)
    session.start(0.0)
    session.receive(encode(hello(B, role)), 0.0)
    sent(session)
    return session


def take(session: Session, message: AnyMessage) -> list[AnyMessage]:
    return session.receive(encode(message), 0.0)


def test_requests_are_counted_over_all_links_of_a_device() -> None:
    quota = Quota(requests=3)
    one, other = link(quota), link(quota, m.Role.CLIENT)
    assert take(one, propose(1))
    assert take(one, propose(2))
    assert take(other, ask(1))
    assert take(one, propose(3)) == []
    (refusal,) = sent(one)
    assert isinstance(refusal, m.Refuse)
    assert (refusal.request, refusal.reason) == (3, m.Reason.BUSY)
    assert "3 requests open" in refusal.text
    assert take(other, ask(2)) == []
    (failure,) = sent(other)
    assert isinstance(failure, m.Fail)
    assert (failure.request, failure.code) == (2, "busy")
    assert failure.retry_s >= limits.RETRY_LEAST_S
    assert one.state is other.state is State.OPEN
    assert take(one, m.Cancel(request=m.RequestId(3))) == []  # late, not an error


def test_each_end_of_a_request_gives_its_place_back() -> None:
    quota = Quota(requests=1)
    session = link(quota)
    for number, end in enumerate(
        (
            lambda r: session.send(m.Refuse(request=r, reason=m.Reason.BAD_PLAN)),
            lambda r: session.send(m.Fail(request=r, code="mesh", text="")),
            lambda r: take(session, m.Cancel(request=r)),
            session.end,
        ),
        1,
    ):
        assert take(session, propose(number))
        assert (quota.requests, quota.held_bytes > 0) == (1, True)
        end(m.RequestId(number))
        assert (quota.requests, quota.held_bytes) == (0, 0)


def test_a_link_that_ends_gives_all_back() -> None:
    quota = Quota()
    session = link(quota)
    take(session, propose(1))
    take(session, m.Codes(m.RequestId(1), 1, 0, 0, 1, b"x" * 1_000))
    assert quota.held_bytes > 1_000
    session.lost("gone")
    assert (quota.requests, quota.held_bytes) == (0, 0)
    session.consumed(500)  # whoever holds it still may say so later
    assert quota.held_bytes == 0


def test_a_request_past_the_memory_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quota = Quota(size=10_000)
    session = link(quota, m.Role.CLIENT)
    assert take(session, ask(1, "x" * 6_000))
    frame = encode(ask(2, "x" * 6_000))

    def decode(frame: bytes) -> AnyMessage:
        raise AssertionError("decoded")

    monkeypatch.setattr(sessions, "decode", decode)
    assert session.receive(frame, 0.0) == []
    monkeypatch.undo()
    (failure,) = sent(session)
    assert isinstance(failure, m.Fail)
    assert (failure.request, failure.code) == (2, "busy")
    assert take(session, ask(3, "short"))  # there is room for this one


def test_an_id_that_is_not_in_front_is_found_all_the_same() -> None:
    session = link(Quota(requests=0), m.Role.CLIENT)
    number, body = msgpack.unpackb(encode(ask(7)))
    frame = msgpack.packb([number, dict(reversed(body.items()))])
    assert peek(frame) == (m.Ask, None)
    assert session.receive(frame, 0.0) == []
    (failure,) = sent(session)
    assert isinstance(failure, m.Fail)
    assert failure.request == 7


def test_data_past_the_memory_ends_the_link_by_name() -> None:
    quota = Quota(size=3_000)
    one, other = link(quota), link(quota)
    codes = m.Codes(m.RequestId(1), 1, 0, 0, 1, b"x" * 1_200)
    assert take(one, codes)
    assert take(other, codes)
    assert take(other, codes) == []
    (refusal,) = sent(other)
    assert isinstance(refusal, m.LinkRefused)
    assert refusal.reason is m.Reason.BUSY
    one.consumed(one.unconsumed_bytes)
    assert take(one, codes)


def test_the_own_device_has_no_limit() -> None:
    session = link(Quota.endless())
    for number in range(3 * limits.REQUESTS_PER_DEVICE):
        assert take(session, propose(number))


def test_a_request_that_is_not_allowed_is_no_matter_of_room() -> None:
    for session, frame in (
        (link(Quota(requests=0), m.Role.CLIENT), encode(propose(1))),
        (link(Quota(requests=1)), encode(propose(1))),
    ):
        if frame == encode(propose(1)) and session.peer_hello.role is m.Role.PEER:  # type: ignore[union-attr]
            assert session.receive(frame, 0.0)
        session.receive(frame, 0.0)
        assert session.close_reason is m.Reason.BAD_MESSAGE


def test_refusals_that_are_not_read_end_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_QUEUE_BYTES", 4_000)
    session = link(Quota(requests=0), m.Role.CLIENT)
    for number in range(100):
        take(session, ask(number))
    assert session.state is State.CLOSED


@pytest.mark.parametrize(
    "front",
    [b"", b"\x80", b"\x81", b"\x81\xa7request", b"\x81\xa7request\xc0", b"\x91\x01", b"\xc1\xc1"],
)
def test_only_an_id_in_front_is_read(front: bytes) -> None:
    assert peek(b"\x92\x1e" + front + b"\xc1" * 3)[1] is None


def test_a_frame_of_no_known_type_is_refused() -> None:
    with pytest.raises(ProtocolError):
        peek(b"\x92\x7f\x80")


def test_the_id_in_front_is_that_of_the_message() -> None:
    for message in (ask(2**63 - 1), propose(5), m.Prepare(request=m.RequestId(9), model=MODEL)):
        assert peek(encode(message)) == (type(message), message.request)
    assert peek(encode(replace(ask(3), model="other")))[1] == 3
