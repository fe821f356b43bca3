"""Two sessions over a pipe that loses, doubles, swaps and damages frames: they end, by name."""

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from astra_mesh import limits
from astra_mesh.errors import MeshError
from astra_mesh.mesh.session import Session, State
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import AnyMessage
from tests.unit.mesh.sessions import TIMINGS, A, B, hello

SIDES = st.sampled_from([0, 1])
REQUESTS = st.integers(0, 3).map(m.RequestId)


def what_peers_say(request: m.RequestId) -> list[AnyMessage]:
    return [
        m.Codes(request, 1, 0, 0, 3, bytes(40_000)),
        m.Pooled(request, 1.0, bytes(64)),
        m.Prepare(request=request, model=m.ModelId("0" * 64)),
        m.Accept(request=request),
        m.Cancel(request=request),
        m.Fail(request=request, code="error", text="x"),
        m.Status(models=[]),
        m.Throughput(1e6),
    ]


class Lossy(RuleBasedStateMachine):
    """Sides 0 and 1, and between them whatever the pipe makes of their frames."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.sides = [Session(hello(peer), TIMINGS) for peer in (A, B)]
        self.pipes: list[list[bytes]] = [[], []]
        for session in self.sides:
            session.start(self.now)

    @rule(side=SIDES, request=REQUESTS, kind=st.integers(0, 7))
    def send(self, side: int, request: m.RequestId, kind: int) -> None:
        with suppress(MeshError):  # closed, not open yet, or out of turn: it stays as it is
            self.sides[side].send(what_peers_say(request)[kind])

    @rule(side=SIDES)
    def write(self, side: int) -> None:
        self.pipes[side] += self.sides[side].frames()

    @rule(side=SIDES, count=st.integers(1, 4))
    def deliver(self, side: int, count: int) -> None:
        for _ in range(min(count, len(self.pipes[side]))):
            self.sides[1 - side].receive(self.pipes[side].pop(0), self.now)

    @rule(side=SIDES)
    def lose(self, side: int) -> None:
        del self.pipes[side][:1]

    @rule(side=SIDES)
    def double(self, side: int) -> None:
        self.pipes[side] += self.pipes[side][:1]

    @rule(side=SIDES)
    def swap(self, side: int) -> None:
        self.pipes[side].reverse()

    @rule(side=SIDES, place=st.integers(0, 200), bit=st.integers(0, 7))
    def damage(self, side: int, place: int, bit: int) -> None:
        if self.pipes[side] and self.pipes[side][0]:
            frame = bytearray(self.pipes[side][0])
            frame[place % len(frame)] ^= 1 << bit
            self.pipes[side][0] = bytes(frame)

    @rule(side=SIDES, frame=st.binary(max_size=40))
    def invent(self, side: int, frame: bytes) -> None:
        self.pipes[side].append(frame)

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for session in self.sides:
            session.tick(self.now)

    @invariant()
    def bounded_and_named(self) -> None:
        for session in getattr(self, "sides", []):
            assert session.queued_bytes <= 2 * limits.SEND_QUEUE_BYTES
            assert 0 <= session.unconsumed_bytes <= session.hello.window_bytes
            if session.state is State.CLOSED and session.close_error is not None:
                assert session.close_error.message.isprintable()
            if session.state is State.OPEN:
                assert session.peer_hello is not None

    def teardown(self) -> None:
        """Left alone, each side ends by its own clock, whatever the other one did."""
        for session in getattr(self, "sides", []):
            for _ in range(20):
                self.now += 1.0
                session.tick(self.now)
                session.frames()
            assert session.state is State.CLOSED


Lossy.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestLossy = Lossy.TestCase
