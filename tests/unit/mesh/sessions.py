"""Two sessions and the messages that tests send through them."""

from __future__ import annotations

from astra_mesh import limits
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.timings import Timings
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import AnyMessage, decode, encode

A, B, C = (m.PeerId(letter * 64) for letter in "abc")
MODEL = m.ModelId("0" * 64)
TIMINGS = Timings(hello_s=5.0, heartbeat_s=1.0, silence_s=4.0, close_s=1.0)
R1, R2, R3 = (m.RequestId(number) for number in (11, 22, 33))


def hello(
    peer: m.PeerId,
    role: m.Role = m.Role.PEER,
    window: int = limits.WINDOW_MIN_BYTES,
    **changes: object,
) -> m.Hello:
    values: dict[str, object] = {
        "magic": m.MAGIC,
        "version": m.PROTOCOL_VERSION,
        "peer": peer,
        "name": f"peer {peer[0]}",
        "role": role,
        "window_bytes": window,
        **changes,
    }
    return m.Hello(**values)  # type: ignore[arg-type]


def started(own: m.Hello, expected: m.PeerId | None = None, now: float = 0.0) -> Session:
    """A session whose hello was written."""
    session = Session(own, TIMINGS, expected)
    session.start(now)
    assert sent(session) == [own]
    return session


def opened(
    role: m.Role = m.Role.PEER, other: m.Role = m.Role.PEER, window: int = limits.WINDOW_MIN_BYTES
) -> Session:
    """A session of peer A with an open link to peer B, nothing queued."""
    session = started(hello(A, role, window))
    assert session.receive(encode(hello(B, other, window)), 0.0) == [hello(B, other, window)]
    return session


def joined(window: int = limits.WINDOW_MIN_BYTES) -> tuple[Session, Session]:
    """Two sessions with an open link."""
    a, b = Session(hello(A, window=window), TIMINGS), Session(hello(B, window=window), TIMINGS)
    a.start(0.0)
    b.start(0.0)
    assert carry(a, b) + carry(b, a) == [hello(A, window=window), hello(B, window=window)]
    return a, b


def sent(session: Session, limit: int = limits.FRAME_BYTES) -> list[AnyMessage]:
    """What a session writes now."""
    return [decode(frame) for frame in session.frames(limit)]


def carry(source: Session, target: Session, now: float = 0.0) -> list[AnyMessage]:
    """Write all that may go, and let the other end read it."""
    messages: list[AnyMessage] = []
    while frames := source.frames():
        for frame in frames:
            messages += target.receive(frame, now)
    return messages


def plan(*peers: m.PeerId) -> m.Plan:
    return m.Plan(
        model=MODEL,
        codec="fp16",
        codebook=m.CodebookId(""),
        shards=[m.Shard(peer=peer, start=i, stop=i + 1) for i, peer in enumerate(peers)],
        rates=[],
        answering=peers[-1],
        class_token="none",
    )


def propose(request: m.RequestId) -> m.Propose:
    return m.Propose(
        request=request,
        task=m.Task.GENERATE,
        plan=plan(A, B),
        inputs=m.Inputs(tokens=[1, 2]),
    )


def codes(request: m.RequestId, block: int = 0, size: int = 100) -> m.Codes:
    return m.Codes(request, block, 0, 0, 1, bytes(size))


def report(peer: m.PeerId = B) -> m.PeerReport:
    return m.PeerReport(
        peer=peer, tokens=1, compute_s=0, encode_s=0, decode_s=0, wait_s=0, finished_s=0
    )


def done(request: m.RequestId) -> m.Done:
    return m.Done(request=request, report=report())


def ask(request: m.RequestId) -> m.Ask:
    return m.Ask(request=request, task=m.Task.GENERATE, model="tiny", text="x")


def result(request: m.RequestId) -> m.Result:
    whole = m.Report(plan=plan(A), predicted_s=0, actual_s=0, total_s=0, bits_per_token=0, peers=[])
    return m.Result(request=request, report=whole)
