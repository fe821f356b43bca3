"""Pings of one link, without I/O: when the next is due, and what the pongs say about the delay."""

from __future__ import annotations

import math
from collections import deque

from astra_mesh.wire.messages import Ping

_REMEMBERED = 64  # pings under way; the oldest are forgotten
_MEASURE_EVERY = 5  # heartbeats between pings on a link that is never silent
_LATELY = 8  # round trips
_ENOUGH = 3  # of them, before the shortest may stand for the link
# Heartbeats between the first pings. A link opens while its ends shake hands with others: the first
# pong may wait for long, and must not stand for what the link is.
_FIRST = (0.0, 0.2, 0.4, 0.8)
_HELD_UP = 4.0  # times the round trip, and _SLACK_S: such a pong is soon asked for again
_SLACK_S = 0.02  # that busy devices add
_GAIN = 0.125  # of a longer sample in the smoothed round trip (RFC 6298, section 2)


def held_up(trip_s: float, usual_s: float | None) -> bool:
    """Whether a round trip took so much longer than usual that something was in its way; not where
    nothing is known."""
    return usual_s is not None and trip_s > _HELD_UP * usual_s + _SLACK_S


class Pings:
    """Numbers, due times and round trips.

    Args:
        heartbeat_s: Silence after which a ping is due.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self.round_trip_s: float | None = None
        self._trips_s: deque[float] = deque(maxlen=_LATELY)
        self._heartbeat_s = heartbeat_s
        self._number = 0
        self._last, self._beats = 0.0, 0  # when the last heartbeat went out, and how many did
        self._back = math.inf  # when a pong came last that was held up
        self._sent: dict[int, tuple[float, bool]] = {}  # number -> when, and whether a probe

    @property
    def least_trip_s(self) -> float | None:
        """The shortest round trip of the last few; None before there are enough of them."""
        return min(self._trips_s) if len(self._trips_s) >= _ENOUGH else None

    def start(self, now: float) -> None:
        """The link is open: the first ping is due at once."""
        self._last, self._beats = now, 0

    def due(self, heard: float) -> float:
        """When the next heartbeat is due; ``heard`` is when the last frame came."""
        silent = max(heard, self._last) + self._heartbeat_s
        busy = _FIRST[self._beats] if self._beats < len(_FIRST) else _MEASURE_EVERY
        return min(silent, self._last + busy * self._heartbeat_s)

    def heartbeat(self, now: float) -> Ping:
        """A ping that only this class waits for."""
        self._beats, self._last = self._beats + 1, now
        return self._ping(now, 0, probe=False)

    def probe(self, now: float, padding: int) -> Ping:
        """A ping that the caller waits for."""
        return self._ping(now, padding, probe=True)

    def _ping(self, now: float, padding: int, *, probe: bool) -> Ping:
        self._number += 1
        self._sent[self._number] = (now, probe)
        if len(self._sent) > _REMEMBERED:
            del self._sent[next(iter(self._sent))]
        return Ping(self._number, bytes(padding))

    def pong(self, number: int, now: float) -> bool:
        """Note a pong; whether it answers a probe. An unknown number is ignored."""
        sent, probe = self._sent.pop(number, (None, False))
        if sent is not None and not probe:
            self._took(sent, now)
        return probe

    def _took(self, sent: float, now: float) -> None:
        sample, old = max(0.0, now - sent), self.round_trip_s
        if old is not None and held_up(sample, old):
            self._beats = min(self._beats, 1)  # ask again soon: was it this once?
            waited, self._back = sent < self._back, now
            if waited and sample > self._heartbeat_s:
                return  # for a network that was away: it says nothing of its delay
        self._trips_s.append(sample)
        # Busy devices and queues only add to a link's own delay: a shorter time counts at once.
        self.round_trip_s = sample if old is None or sample < old else old + _GAIN * (sample - old)
