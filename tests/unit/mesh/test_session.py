"""One link's state machine: greetings, refusals, roles, time, and the end."""

import math

import msgpack  # type: ignore[import-untyped]
import pytest

from astra_mesh import limits
from astra_mesh.errors import (
    MeshError,
    PeerLostError,
    ProtocolError,
    RefusedError,
    VersionMismatchError,
)
from astra_mesh.mesh.session import Session, State, cost
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import AnyMessage, encode
from tests.unit.mesh.sessions import (
    MODEL,
    R1,
    R2,
    TIMINGS,
    A,
    B,
    C,
    ask,
    carry,
    codes,
    done,
    hello,
    joined,
    opened,
    propose,
    result,
    sent,
    started,
)


def refused(session: Session, reason: m.Reason, kind: type[MeshError]) -> m.LinkRefused:
    """The session says its last word with this reason, and is closed."""
    assert state(session) is State.CLOSING
    assert session.close_reason is reason
    assert type(session.close_error) is kind
    (message,) = sent(session)
    assert isinstance(message, m.LinkRefused)
    assert message.reason is reason
    assert state(session) is State.CLOSED
    return message


def state(session: Session) -> State:
    """The state, of which mypy would otherwise remember what it was."""
    return session.state


# --- greeting -------------------------------------------------------------------------------------


def test_hello_both_ways() -> None:
    a, b = joined()
    assert a.state is b.state is State.OPEN
    assert a.peer_hello == hello(B)
    assert b.peer_hello == hello(A)
    assert a.close_error is None


def test_nothing_is_sent_before_the_start() -> None:
    session = Session(hello(A), TIMINGS)
    assert session.frames() == []
    assert session.receive(encode(hello(B)), 0.0) == []
    with pytest.raises(PeerLostError):
        session.send(codes(R1))
    with pytest.raises(PeerLostError):
        session.ping(0.0)


def test_a_session_is_started_once() -> None:
    session = started(hello(A))
    with pytest.raises(RuntimeError, match="from greeting to greeting"):
        session.start(0.0)


@pytest.mark.parametrize(
    ("theirs", "ours_says", "theirs_says"),
    [
        (2, "update this device to a release with version 2", "update the other device"),
        (0, "update the other device to a release with version 1", "update this device"),
        (4711, "update this device to a release with version 4711", "update the other device"),
    ],
)
def test_another_version(theirs: int, ours_says: str, theirs_says: str) -> None:
    session = started(hello(A))
    other = msgpack.packb([0, {"magic": "astra-mesh", "version": theirs, "new": {"shape": []}}])
    assert session.receive(other, 0.1) == []
    message = refused(session, m.Reason.PROTOCOL_VERSION, VersionMismatchError)
    assert session.close_error is not None
    assert f"version 1 of the protocol, the other device {theirs}" in session.close_error.message
    assert ours_says in session.close_error.message
    assert f"speaks version {theirs} of the protocol, the other device 1" in message.text
    assert theirs_says in message.text


def test_the_refused_end_of_a_version_mismatch() -> None:
    session = started(hello(A))
    text = "this device speaks version 1 of the protocol, the other device 2: update this device"
    session.receive(encode(m.LinkRefused(reason=m.Reason.PROTOCOL_VERSION, text=text)), 0.1)
    assert session.state is State.CLOSED
    assert isinstance(session.close_error, VersionMismatchError)
    assert session.close_error.message == text


def test_self() -> None:
    session = started(hello(A))
    session.receive(encode(hello(A)), 0.1)
    refused(session, m.Reason.SELF, RefusedError)


def test_the_expected_peer() -> None:
    session = started(hello(A), expected=B)
    assert session.receive(encode(hello(B)), 0.1) == [hello(B)]


def test_another_than_the_expected_peer() -> None:
    session = started(hello(A), expected=C)
    session.receive(encode(hello(B)), 0.1)
    message = refused(session, m.Reason.WRONG_PEER, RefusedError)
    assert "bbbbbbbb" in message.text
    assert "cccccccc" in message.text


def test_two_clients() -> None:
    session = started(hello(A, m.Role.CLIENT))
    session.receive(encode(hello(B, m.Role.CLIENT)), 0.1)
    refused(session, m.Reason.BAD_MESSAGE, ProtocolError)


FIRST: list[AnyMessage] = [m.Ping(1), m.Pong(1), m.Credit(5), codes(R1), propose(R1), ask(R1)]


@pytest.mark.parametrize("message", FIRST, ids=lambda message: type(message).__name__)
def test_anything_before_the_hello(message: AnyMessage) -> None:
    session = started(hello(A))
    assert session.receive(encode(message), 0.1) == []
    assert "before the hello" in refused(session, m.Reason.BAD_MESSAGE, ProtocolError).text


def test_a_second_hello() -> None:
    session = opened()
    session.receive(encode(hello(B)), 0.1)
    assert "second hello" in refused(session, m.Reason.BAD_MESSAGE, ProtocolError).text


@pytest.mark.parametrize("frame", [b"", b"GET / HTTP/1.1", bytes(100), b"\xff" * 50, b"\x92\x00"])
@pytest.mark.parametrize("greeted", [False, True])
def test_garbage(frame: bytes, greeted: bool) -> None:
    session = opened() if greeted else started(hello(A))
    assert session.receive(frame, 0.1) == []
    refused(session, m.Reason.BAD_MESSAGE, ProtocolError)


def test_an_oversize_frame() -> None:
    session = opened()
    session.receive(bytes(limits.FRAME_BYTES + 1), 0.1)
    refused(session, m.Reason.BAD_MESSAGE, ProtocolError)


def test_a_refusal_may_come_first() -> None:
    session = started(hello(A))
    session.receive(encode(m.LinkRefused(reason=m.Reason.BUSY, text="try\x1b later")), 0.1)
    assert session.state is State.CLOSED
    assert isinstance(session.close_error, RefusedError)
    assert "as many requests as it takes" in session.close_error.message
    assert "\x1b" not in session.close_error.message
    assert session.close_reason is m.Reason.BUSY


# --- roles ----------------------------------------------------------------------------------------

PEER, CLIENT = m.Role.PEER, m.Role.CLIENT
PLANNED = m.Planned(
    request=R1,
    plan=propose(R1).plan,
    names={},
    bits_per_token=0,
    solo_s=0,
    reason="",
    prompt_tokens=1,
)
BETWEEN_PEERS: list[AnyMessage] = [
    m.Prepare(request=R1, model=MODEL),
    propose(R1),
    m.Accept(request=R1),
    m.Refuse(request=R1, reason=m.Reason.BUSY),
    codes(R1),
    m.Pooled(R1, 1.0, b""),
    done(R1),
]
FROM_CLIENT: list[AnyMessage] = [ask(R1), m.ListPeers(request=R1), m.Subscribe(request=R1)]
TO_CLIENT: list[AnyMessage] = [
    PLANNED,
    result(R1),
    m.Peers(request=R1, peers=[]),
    m.Event(request=R1, kind="peer-left"),
]
FORBIDDEN = [
    *((PEER, PEER, message) for message in FROM_CLIENT + TO_CLIENT),
    *((PEER, CLIENT, message) for message in BETWEEN_PEERS + FROM_CLIENT),
    *((CLIENT, PEER, message) for message in BETWEEN_PEERS + TO_CLIENT),
    (CLIENT, PEER, m.Token(R1, 0, 1, "")),
    (CLIENT, PEER, m.Status(models=[])),
    (PEER, CLIENT, m.Cancel(request=R1)),
]
NAMES = [f"{a.value}-{b.value}-{type(message).__name__}" for a, b, message in FORBIDDEN]


@pytest.mark.parametrize(("sender", "receiver", "message"), FORBIDDEN, ids=NAMES)
def test_roles(sender: m.Role, receiver: m.Role, message: AnyMessage) -> None:
    receiving = opened(receiver, sender)
    assert receiving.receive(encode(message), 0.1) == []
    assert "does not come from" in refused(receiving, m.Reason.BAD_MESSAGE, ProtocolError).text
    sending = opened(sender, receiver)
    with pytest.raises(ProtocolError, match="does not go from"):
        sending.send(message)
    assert sending.state is State.OPEN


# --- requests -------------------------------------------------------------------------------------

UNASKED: list[AnyMessage] = [
    m.Accept(request=R1),
    m.Refuse(request=R1, reason=m.Reason.BUSY),
    done(R1),
    m.Token(R1, 0, 1, ""),
]


@pytest.mark.parametrize("message", UNASKED, ids=lambda message: type(message).__name__)
def test_answers_without_a_proposal(message: AnyMessage) -> None:
    session = opened()
    session.receive(encode(message), 0.1)
    assert "was not made" in refused(session, m.Reason.BAD_MESSAGE, ProtocolError).text
    with pytest.raises(ProtocolError, match="was not made"):
        opened().send(message)


@pytest.mark.parametrize(
    "again", [m.Accept(request=R1), m.Refuse(request=R1, reason=m.Reason.BUSY)]
)
def test_a_proposal_is_answered_once(again: AnyMessage) -> None:
    session = opened()
    session.send(propose(R1))
    assert session.receive(encode(m.Accept(request=R1)), 0.1) == [m.Accept(request=R1)]
    session.receive(encode(again), 0.2)
    assert session.close_reason is m.Reason.BAD_MESSAGE


def test_answers_for_the_wrong_kind_of_request() -> None:
    session = opened(m.Role.CLIENT)
    session.send(m.ListPeers(request=R1))
    session.receive(encode(result(R1)), 0.1)
    assert session.close_reason is m.Reason.BAD_MESSAGE


def test_an_id_is_used_once() -> None:
    session = opened()
    session.receive(encode(propose(R1)), 0.1)
    with pytest.raises(ProtocolError, match="id of another request"):
        session.send(propose(R1))
    session.receive(encode(m.Cancel(request=R1)), 0.2)
    session.receive(encode(propose(R1)), 0.3)
    assert session.close_reason is m.Reason.BAD_MESSAGE


def test_a_whole_request() -> None:
    a, b = joined()
    a.send(propose(R1))
    assert carry(a, b) == [propose(R1)]
    answers: list[AnyMessage] = [m.Accept(request=R1), codes(R1), m.Token(R1, 0, 1, "x"), done(R1)]
    for message in answers:
        b.send(message)
    assert carry(b, a) == answers
    late = codes(R1, 1)
    b.send(late)
    a.send(late)
    assert not sent(a)
    assert not sent(b)


def test_late_messages_are_dropped_and_their_credit_is_given_back() -> None:
    a, b = joined()
    a.send(propose(R1))
    carry(a, b)
    b.send(m.Accept(request=R1))
    for block in range(3):
        b.send(codes(R1, block, 60_000))
    a.send(m.Cancel(request=R1))  # crosses them
    assert carry(b, a) == []
    assert a.unconsumed_bytes == 0
    assert sent(a)[-1] == m.Credit(3 * (60_000 + 64))
    assert a.state is State.OPEN


@pytest.mark.parametrize(
    "end", [m.Cancel(request=R1), m.Fail(request=R1, code="deadline", text="")]
)
def test_an_end_drops_queued_codes(end: AnyMessage) -> None:
    a, b = joined()
    a.send(propose(R2))
    for request in (R1, R2):
        a.send(codes(request))
    a.send(end)
    assert carry(a, b) == [propose(R2), end, codes(R2)]
    for request in (R2,):
        a.send(codes(request))
    b.send(m.Cancel(request=R2))
    carry(b, a)
    assert not sent(a)
    assert a.queued_bytes == 0


def test_the_application_ends_a_request() -> None:
    a, b = joined()
    a.send(codes(R1))
    a.end(R1)
    assert not sent(a)
    b.send(codes(R1))
    assert carry(b, a) == []


def test_codes_for_unknown_requests_are_handed_up() -> None:
    session = opened()
    assert session.receive(encode(codes(R1)), 0.1) == [codes(R1)]


def test_too_many_open_requests() -> None:
    session = opened(other=m.Role.CLIENT)
    for number in range(limits.OPEN_REQUESTS_PER_LINK):
        assert session.receive(encode(ask(m.RequestId(number))), 0.1)
    session.receive(encode(ask(m.RequestId(9_999))), 0.1)
    assert "requests are open" in refused(session, m.Reason.BAD_MESSAGE, ProtocolError).text


# --- flow -----------------------------------------------------------------------------------------


def test_data_waits_for_credit() -> None:
    a, b = joined()
    pieces = [codes(R1, block, 60_000) for block in range(10)]
    for piece in pieces:
        a.send(piece)
    first = carry(a, b)
    assert first == pieces[:4]  # 4 * 60,064 of 262,144
    a.send(propose(R2))
    assert carry(a, b) == [propose(R2)]  # control does not wait
    for message in first:
        b.consumed(cost(message))
    carry(b, a)
    assert carry(a, b)[:2] == pieces[4:6]


def test_credit_comes_in_lumps() -> None:
    a, b = joined()
    for block in range(4):
        a.send(codes(R1, block, 60_000))
    carry(a, b)
    sent(b)
    for _ in range(2):
        b.consumed(60_064)
        assert not sent(b)
    b.consumed(60_064)
    assert sent(b) == [m.Credit(3 * 60_064)]


def test_an_overrun_of_the_window() -> None:
    session = opened()
    for block in range(4):
        assert session.receive(encode(codes(R1, block, 60_000)), 0.1)
    session.receive(encode(codes(R1, 5, 60_000)), 0.1)
    assert "credit" in refused(session, m.Reason.BAD_MESSAGE, ProtocolError).text


def test_credit_from_nothing() -> None:
    session = opened()
    session.receive(encode(m.Credit(1)), 0.1)
    assert "credit" in refused(session, m.Reason.BAD_MESSAGE, ProtocolError).text


def test_consuming_what_never_came() -> None:
    with pytest.raises(ValueError, match="consumed"):
        opened().consumed(1)


def test_requests_take_turns() -> None:
    a, b = joined()
    for block in range(3):
        a.send(codes(R1, block))
    a.send(codes(R2, 0))
    order = [(message.request, message.block) for message in carry(a, b)]  # type: ignore[union-attr]
    assert order == [(R1, 0), (R2, 0), (R1, 1), (R1, 2)]


def test_done_waits_behind_the_data_of_its_request() -> None:
    a, b = joined()
    a.send(propose(R1))
    carry(a, b)
    for block in range(6):
        b.send(codes(R1, block, 60_000))
    b.send(done(R1))
    received = carry(b, a)
    assert len(received) == 4
    for _ in received:
        a.consumed(60_064)
    carry(a, b)
    assert carry(b, a)[-1] == done(R1)


def test_frames_stop_at_the_limit() -> None:
    a, _ = joined()
    for block in range(3):
        a.send(codes(R1, block, 1_000))
    assert len(a.frames(1)) == 1
    assert len(a.frames(1_500)) == 2


def test_a_peer_that_does_not_read() -> None:
    session = opened()
    with pytest.raises(PeerLostError):  # noqa: PT012
        for block in range(5_000):
            session.send(codes(R1, block % 12, limits.CODES_DATA_BYTES))
    assert session.state is State.CLOSED
    assert "does not read" in str(session.close_error)


def test_a_flood_of_pings() -> None:
    session = opened()
    for number in range(limits.PENDING_PONGS):
        session.receive(encode(m.Ping(number)), 0.1)
    assert session.state is State.OPEN
    session.receive(encode(m.Ping(0)), 0.1)
    assert session.close_reason is m.Reason.BAD_MESSAGE


def test_pongs_are_counted_while_data_waits() -> None:
    session = opened()
    for block in range(9):
        session.send(codes(R1, block, 60_000))
    for number in range(3 * limits.PENDING_PONGS):
        session.receive(encode(m.Ping(number)), 0.1)
        session.frames()
    assert session.state is State.OPEN


def test_bytes_of_a_request_are_counted() -> None:
    a, _ = joined()
    a.send(propose(R1))
    assert a.sent_bytes(R1) == 0
    a.send(codes(R1, 0, 1_000))
    frames = a.frames()
    assert a.sent_bytes(R1) == len(frames[-1])
    assert a.sent_bytes(R2) == 0


# --- time -----------------------------------------------------------------------------------------


def test_no_hello() -> None:
    session = started(hello(A))
    assert session.tick(0.0) == 5.0
    session.tick(4.9)
    assert state(session) is State.GREETING
    assert session.tick(5.0) == math.inf
    assert state(session) is State.CLOSED
    assert "no hello within 5 s" in str(session.close_error)


def test_heartbeats() -> None:
    a, b = joined()
    assert a.round_trip_s is None
    due = a.tick(0.0)  # the first ping goes at once
    assert carry(a, b, 0.01) == []
    assert carry(b, a, 0.02) == []
    assert a.round_trip_s == pytest.approx(0.02)
    for after in (0.2, 0.6, 1.4):  # a few more soon
        assert due == pytest.approx(after)
        due = a.tick(due)
        assert carry(a, b, after + 0.01) == []
        assert carry(b, a, after + 0.02) == []
    due = a.tick(2.0)
    assert due == pytest.approx(2.42)  # then in silence: heard at 1.42
    a.tick(due)
    assert isinstance(sent(a)[0], m.Ping)


def test_a_late_pong_makes_the_next_ping_due_sooner() -> None:
    a, b = joined()
    now = 0.0
    for took in (0.002, 0.002, 0.002, 0.5):
        due = a.tick(now)
        carry(a, b, now)
        assert not a.is_due_sooner
        carry(b, a, now + took)
        now = due
    assert a.is_due_sooner
    assert a.tick(now) < now + 0.5


def test_pings_go_on_in_traffic() -> None:
    session = opened()
    session.tick(0.0)
    sent(session)
    for tenth in range(1, 60):
        session.receive(encode(m.Ping(tenth)), tenth / 10)
        session.tick(tenth / 10)
    pings = [message for message in sent(session) if isinstance(message, m.Ping)]
    assert len(pings) == 3  # within 2 s; the next after 5 s


def test_silence() -> None:
    session = opened()
    now, silent = 0.0, []
    while now < math.inf and session.state is State.OPEN:
        last, now = now, session.tick(now)
        silent.append((last, session.silent))
    assert last == 8.0
    assert min(when for when, is_silent in silent if is_silent) == 4.0
    assert isinstance(session.close_error, PeerLostError)
    assert "peer b (bbbbbbbb): nothing heard for 8 s" in session.close_error.message
    with pytest.raises(PeerLostError, match="peer b"):
        session.send(codes(R1))


def test_a_silent_tab_is_lost_earlier() -> None:
    session = tab_session(hello(A), via=C)
    session.receive(encode(hello(B, via=C)), 0.0)
    now = last = 0.0
    while now < math.inf and session.state is State.OPEN:
        last, now = now, session.tick(now)
    assert last == 5.0


def test_whoever_is_heard_again_is_silent_no_more() -> None:
    session = opened()
    now = 0.0
    while not session.silent:
        now = session.tick(now)
    session.receive(encode(m.Ping(1)), now + 2.0)
    assert not session.silent
    assert session.tick(now + 2.0) < now + 4.0
    assert state(session) is State.OPEN


def test_a_process_that_stood_still_asks_first() -> None:
    session = opened()
    due = session.tick(0.0)
    assert due == 0.2
    session.tick(100.0)  # this machine was suspended
    assert state(session) is State.OPEN
    assert any(isinstance(message, m.Ping) for message in sent(session))
    due = session.tick(101.0)
    while due < math.inf:
        due = session.tick(due)
    assert state(session) is State.CLOSED  # it did not answer


def test_round_trips_are_smoothed() -> None:
    a, b = joined()
    for second, delay in ((0.0, 0.1), (1.1, 0.9)):
        a.tick(second)
        carry(a, b, second)
        carry(b, a, second + delay)
    assert a.round_trip_s == pytest.approx(0.1 + 0.8 / 8)


def test_unknown_pongs_are_ignored() -> None:
    session = opened()
    assert session.receive(encode(m.Pong(99)), 0.1) == []
    assert session.round_trip_s is None


def test_probes_come_back_to_the_caller() -> None:
    a, b = joined()
    number = a.ping(0.0, 1_000)
    (ping,) = sent(a)
    assert ping == m.Ping(number, bytes(1_000))
    b.receive(encode(ping), 0.1)
    (pong,) = sent(b)
    assert a.receive(encode(pong), 0.2) == [m.Pong(number)]
    assert a.round_trip_s is None


def test_the_other_ends_throughput() -> None:
    a, b = joined()
    a.send(m.Throughput(1e7))
    assert carry(a, b) == []
    assert b.receive_bps == 1e7


# --- the end --------------------------------------------------------------------------------------


def test_goodbye() -> None:
    a, b = joined()
    a.send(codes(R1))
    a.goodbye("see you")
    assert a.state is State.CLOSING
    with pytest.raises(PeerLostError):
        a.send(codes(R1))
    assert carry(a, b) == []
    assert a.state is b.state is State.CLOSED
    assert a.close_error is b.close_error is None


def test_goodbye_before_the_start() -> None:
    session = Session(hello(A), TIMINGS)
    session.goodbye()
    assert session.state is State.CLOSED


def test_a_goodbye_may_come_before_the_hello() -> None:
    session = started(hello(A))
    session.receive(encode(m.Goodbye()), 0.1)
    assert session.state is State.CLOSED
    assert session.close_error is None


def test_the_last_word_has_a_deadline() -> None:
    session = opened()
    session.tick(0.0)
    session.refuse(m.Reason.DUPLICATE)
    assert session.tick(1.0) == 2.0
    assert session.receive(encode(codes(R1)), 1.5) == []
    assert session.tick(2.0) == math.inf
    assert session.state is State.CLOSED
    assert session.close_reason is m.Reason.DUPLICATE


def test_a_lost_socket() -> None:
    session = opened()
    session.lost("connection\nreset")
    assert session.state is State.CLOSED
    assert str(session.close_error) == "lost peer b (bbbbbbbb): connection reset"
    assert session.frames() == []
    assert session.receive(encode(codes(R1)), 1.0) == []
    session.lost("again")
    session.refuse(m.Reason.BUSY)
    session.goodbye()
    assert session.close_reason is None


def test_a_lost_socket_does_not_hide_a_refusal() -> None:
    session = opened()
    session.refuse(m.Reason.SELF)
    session.lost("closed")
    assert isinstance(session.close_error, RefusedError)


def test_consuming_after_the_end() -> None:
    session = opened()
    session.receive(encode(codes(R1, 0, 60_000)), 0.1)
    session.lost("gone")
    session.consumed(60_064)
    assert session.unconsumed_bytes == 0


# --- tabs -----------------------------------------------------------------------------------------


def tab_session(own: m.Hello, via: m.PeerId | None, proven: m.PeerId = B) -> Session:
    session = Session(own, TIMINGS, None, proven, via)
    session.start(0.0)
    sent(session)
    return session


def test_a_tab_comes_through_the_peer_that_it_states() -> None:
    session = tab_session(hello(A), via=C)
    assert session.receive(encode(hello(B, via=C)), 0.0) == [hello(B, via=C)]


@pytest.mark.parametrize(
    ("stated", "via"), [(A, C), ("", C), (C, None)], ids=["another", "none", "no tab"]
)
def test_a_hello_through_another_peer_than_it_says(stated: m.PeerId, via: m.PeerId | None) -> None:
    session = tab_session(hello(A), via=via)
    assert session.receive(encode(hello(B, via=stated)), 0.0) == []
    assert session.close_reason is m.Reason.WRONG_PEER


def test_a_tab_is_no_client() -> None:
    session = tab_session(hello(A), via=C)
    assert session.receive(encode(hello(B, m.Role.CLIENT, via=C)), 0.0) == []
    assert session.close_reason is m.Reason.BAD_MESSAGE


PROPOSE = m.Propose(
    request=R1,
    task=m.Task.EMBED,
    plan=m.Plan(
        model=MODEL,
        codec="fp16",
        codebook=m.CodebookId(""),
        shards=[m.Shard(peer=A, start=0, stop=1), m.Shard(peer=B, start=1, stop=2)],
        rates=[],
        answering=B,
        class_token="none",
    ),
    inputs=m.Inputs(tokens=[1, 2]),
)


@pytest.mark.parametrize(
    "message",
    [
        m.Roster(mesh=bytes(16), entries=[]),
        m.Prepare(request=R1, model=MODEL),
        PROPOSE,
        m.Token(R1, 0, 5),
    ],
    ids=lambda message: type(message).__name__,
)
def test_tabs_neither_plan_nor_decide(message: AnyMessage) -> None:
    session = tab_session(hello(A), via=C)
    session.receive(encode(hello(B, via=C)), 0.0)
    assert session.receive(encode(message), 0.0) == []
    assert session.close_reason is m.Reason.BAD_MESSAGE
    assert "does not come from a tab" in str(session.close_error)


def test_tabs_are_not_told_whom_others_trust() -> None:
    session = tab_session(hello(A), via=C)
    session.receive(encode(hello(B, via=C)), 0.0)
    with pytest.raises(ProtocolError, match="does not go"):
        session.send(m.Roster(mesh=bytes(16), entries=[]))
    session.send(PROPOSE)
    assert sent(session) == [PROPOSE]


def test_a_peer_that_is_lost_before_its_hello_is_named_by_what_it_proved() -> None:
    session = Session(hello(A), TIMINGS, None, B)
    session.start(0.0)
    session.lost("no hello within 5 s")
    assert session.close_error is not None
    assert session.close_error.message == f"lost peer {B[:8]}: no hello within 5 s"
