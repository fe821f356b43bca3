"""Two sessions joined by pipes that deliver when they like: nothing is lost, stuck or doubled."""

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from astra_mesh.mesh.session import Session, State, cost
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import AnyMessage, encode
from tests.unit.mesh.sessions import TIMINGS, A, B, hello

SIDES = st.sampled_from([0, 1])
REQUESTS = st.integers(0, 3).map(m.RequestId)
SIZES = st.sampled_from([0, 1, 1_000, 30_000, 65_536])


class Pair(RuleBasedStateMachine):
    """Sides 0 and 1; ``pipes[i]`` carries what side i wrote."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.sides = [Session(hello(peer), TIMINGS) for peer in (A, B)]
        self.pipes: list[list[bytes]] = [[], []]
        self.sent: list[list[AnyMessage]] = [[], []]
        self.got: list[list[AnyMessage]] = [[], []]
        self.held: list[list[AnyMessage]] = [[], []]  # data that was not consumed yet
        self.count = 0
        for session in self.sides:
            session.start(self.now)
        for side in (0, 1):
            self.write(side, 10**6)
            self.deliver(side)
        assert [session.state for session in self.sides] == [State.OPEN] * 2
        for got in self.got:
            got.clear()

    @rule(side=SIDES, request=REQUESTS, size=SIZES)
    def send_data(self, side: int, request: m.RequestId, size: int) -> None:
        self.count += 1
        self.send(side, m.Codes(request, 0, 0, 0, 1 + self.count, bytes(size)))

    @rule(side=SIDES)
    def send_control(self, side: int) -> None:
        self.count += 1
        self.send(side, m.Prepare(request=m.RequestId(100 + self.count), model=m.ModelId("0" * 64)))

    @rule(side=SIDES, limit=st.integers(1, 200_000))
    def write(self, side: int, limit: int) -> None:
        self.pipes[side] += self.sides[side].frames(limit)

    @rule(side=SIDES)
    def deliver(self, side: int) -> None:
        if self.pipes[side]:
            other = 1 - side
            for message in self.sides[other].receive(self.pipes[side].pop(0), self.now):
                self.got[other].append(message)
                if cost(message):
                    self.held[other].append(message)

    @rule(side=SIDES)
    def consume(self, side: int) -> None:
        if self.held[side]:
            self.sides[side].consumed(cost(self.held[side].pop(0)))

    @rule(seconds=st.floats(0.0, 0.9))
    def wait(self, seconds: float) -> None:
        """Time passes; everything under way arrives, so nobody may find the other silent."""
        self.settle()
        self.now += seconds
        for side in self.sides:
            side.tick(self.now)

    @invariant()
    def all_is_well(self) -> None:
        if not hasattr(self, "sides"):
            return
        for side in self.sides:
            assert side.state is State.OPEN, side.close_error
            assert 0 <= side._outbox.credit <= side.hello.window_bytes
            assert 0 <= side.unconsumed_bytes <= side.hello.window_bytes
            assert side.queued_bytes >= 0

    def send(self, side: int, message: AnyMessage) -> None:
        self.sides[side].send(message)
        self.sent[side].append(message)

    def settle(self) -> None:
        """Everybody writes, reads and consumes until nothing moves."""
        moved = True
        while moved:
            moved = False
            for side in (0, 1):
                self.write(side, 10**6)
                while self.pipes[side]:
                    moved = True
                    self.deliver(side)
                while self.held[side]:
                    moved = True
                    self.consume(side)

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        self.settle()
        for side in (0, 1):
            assert self.sides[side].queued_bytes == 0, "a deadlock"
            assert by_class(self.got[1 - side]) == by_class(self.sent[side])


def by_class(messages: list[AnyMessage]) -> dict[object, list[AnyMessage]]:
    """Order is promised among control messages, and among the data of one request."""
    classes: defaultdict[object, list[AnyMessage]] = defaultdict(list)
    for message in messages:
        classes[message.request if isinstance(message, m.Codes) else "control"].append(message)
    return dict(classes)


Pair.TestCase.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
TestPair = Pair.TestCase


def test_a_small_window_is_enough_for_the_largest_message() -> None:
    pair = Pair()
    pair.start()
    for number in range(40):
        pair.send_data(number % 2, m.RequestId(number % 3), 65_536)
    pair.teardown()
    assert len(encode(pair.sent[0][0])) > 65_536
