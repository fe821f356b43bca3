"""How fast a link is, from what was seen on it; pure functions of times and sizes.

An end can only measure its own sending direction; it tells the result to the other end
(:class:`~astra_mesh.wire.messages.Throughput`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from astra_mesh import limits

_LEAST_BYTES: Final = 2 * 1024  # of a run: 3.3 ms at 5 Mbit/s; less is not worth a ping
_MOST_BYTES: Final = 256 * 1024  # of a run: then it is marked while it goes on
_EVERY_S: Final = 0.05  # between two marks
_CALM_S: Final = 0.2  # the same while marks say what is known already and nobody watches
_NEAR: Final = 1.05  # a run so close to the estimate says what is known already
_WATCHED_S: Final = 1.0  # somebody watches who asked for the backlog so recently
_PONG_S: Final = 5.0  # a mark whose pong takes longer counts no more
_SLACK_S: Final = 0.010  # that two busy event loops may add to a run
_RESOLUTION_S: Final = 0.002  # shorter times are not told apart
_AGREEING: Final = 6  # runs that must be slower than the estimate, before it falls
_REMEMBERED: Final = 4 * _AGREEING  # runs
_COMPARABLE: Final = (
    0.25  # of the size of slow runs: smaller ones may fit into a buffer, and contradict none
)
_GAIN: Final = 0.5  # of a run that was faster
_TELLING: Final = 2.0  # times: a run says how fast a link is if its bounds are no further apart


def train_bps(pongs: Sequence[float], size: int) -> float:
    """Bits per second from the times at which the pongs of a train of pings came back.

    The first ping has no padding, so its pong marks the round trip. The lower of two estimates
    counts: over the whole train (too high where a rate limiter lets a burst through), and over its
    second half (too high where pongs came back in a bunch).

    Args:
        pongs: Arrival times, seconds; at least three.
        size: Bytes of each ping but the first.
    """
    last = len(pongs) - 1
    half = last // 2
    whole = 8 * size * last / max(pongs[last] - pongs[0], 1e-6)
    second = 8 * size * (last - half) / max(pongs[last] - pongs[half], 1e-6)
    return min(whole, second)


class Backlog(NamedTuple):
    """What was given to a link and is not known to have arrived, and what that tells."""

    size: int  # bytes
    bps: float  # bits per second, at most: what is under way took so long already; inf: not known
    measured_bps: float | None  # as estimated


class _Mark(NamedTuple):
    """A run, or as much of it as was written before a ping that waits for its pong."""

    since: float  # when its first bytes were offered to the socket
    size: int  # bytes
    goes_on: bool  # the next run follows without a pause


class _Run(NamedTuple):
    size: int  # bytes
    floor: float  # bits per second, at least
    ceiling: float  # at most; inf: it took too short a time to tell


def _bps(size: int, took_s: float) -> float:
    """Bits per second; inf where it took no time that can be told."""
    return 8 * size / took_s if took_s > 0 else math.inf


def _tells(run: _Run, bps: float) -> bool:
    """Whether a run says that the link is as fast as estimated: most are too short to tell more
    than that it is not slower than something, and of a slow estimate all of them say so.
    """
    if run.floor >= limits.PLENTY_BPS:
        return bps >= limits.PLENTY_BPS
    fits = run.floor / _NEAR <= bps <= run.ceiling * _NEAR
    return fits and run.ceiling <= _TELLING * run.floor


class Meter:
    """Throughput of a link from its real traffic.

    A *run* is what was written without a pause. The end of a run is marked by a ping; its pong
    tells when all of it was at the other end. What the run took beyond the shortest round trip
    bounds the throughput from below, from when it was offered to the socket and no later: a pong
    that a network held up says nothing of when what came before was there. From above, what it took
    beyond the usual round trip and what busy devices may have added to it, and after the last pong.
    The estimate moves only when it lies outside: up at once a good part of the way,
    down when several runs agree that no other one of their size contradicts, so that one late pong
    is no slow link.
    """

    def __init__(self) -> None:
        self.bps: float | None = None  # bits per second
        self.measured = -math.inf  # when a probe or a run last said how fast it is
        self._since = 0.0
        self._bytes = 0
        self._goes_on = False  # what is marked next has more behind it
        self._mark: _Mark | None = None  # the run that waits for its pong
        self._last: _Mark | None = None  # the one before, if this one followed without a pause
        self._next = -math.inf  # no mark before
        self._pong = -math.inf  # when the last one came
        self._runs: deque[_Run] = deque(maxlen=_REMEMBERED)
        self._agreed = False  # the last run fitted the estimate
        self._asked = -math.inf  # when the backlog was last asked for

    def wrote(self, size: int, began: float) -> bool:
        """``size`` bytes were accepted by the socket; ``began`` is when they were offered to it.

        The result is whether to mark the end of the run here, though it goes on.
        """
        if not self._bytes:
            self._since = began
        self._bytes += size
        self._goes_on = self._bytes >= _MOST_BYTES and self._may_mark(began)
        return self._goes_on

    def idle(self, now: float) -> bool:
        """Nothing is left to write: the run is over; whether to mark its end."""
        if self._bytes >= _LEAST_BYTES and self._may_mark(now):
            return True
        self._bytes = 0
        return False

    def _may_mark(self, now: float) -> bool:
        lost = self._mark is not None and now - self._mark.since > _PONG_S
        return (self._mark is None or lost) and now >= self._next

    def mark(self, now: float) -> None:
        """A ping follows what was written so far."""
        calm = self._agreed and now - self._asked > _WATCHED_S
        self._next = now + (_CALM_S if calm else _EVERY_S)
        self._mark, self._bytes = _Mark(self._since, self._bytes, self._goes_on), 0
        self._goes_on = False

    def pong(self, now: float, round_trip_s: float | None, least_trip_s: float | None) -> bool:
        """The pong of the last mark came; whether the estimate changed.

        Args:
            now: When, seconds.
            round_trip_s: As it usually is; None: not known.
            least_trip_s: The shortest one lately; None: not known.
        """
        if self._mark is None:
            return False
        marked, self._mark = self._mark, None
        size, trip_s, end = marked.size, round_trip_s or 0.0, now - (least_trip_s or 0.0)
        floor = _bps(size, max(end - marked.since, _RESOLUTION_S))
        if self._last is not None:  # both together: less of that time was the queue's before them
            both, since = self._last.size + size, self._last.since
            floor = max(floor, _bps(both, max(end - since, _RESOLUTION_S)))
        # Where writing went on, what was written before had to get through first.
        least_s = now - max(marked.since, self._pong - trip_s) - trip_s - _SLACK_S
        run = _Run(size, floor, max(floor, _bps(size, least_s)))
        self._last, self._pong = marked if marked.goes_on else None, now
        self._runs.append(run)
        self._agreed = self.bps is not None and run.floor / _NEAR <= self.bps <= run.ceiling * _NEAR
        before = self.bps
        self.bps = self._follow(run)
        if _tells(run, self.bps):
            self.measured = now
        return self.bps != before

    def _follow(self, run: _Run) -> float:
        """The estimate after a run."""
        most = self._most_bps()
        if self.bps is None:
            return run.floor
        if most < self.bps:
            return most
        if run.floor > self.bps:
            return self.bps + _GAIN * (min(run.floor, most) - self.bps)
        return self.bps

    def _most_bps(self) -> float:
        """What the last runs agree that the link carries at most; inf: they do not."""
        slow = [i for i, run in enumerate(self._runs) if run.ceiling < math.inf][-_AGREEING:]
        if len(slow) < _AGREEING:
            return math.inf
        least = _COMPARABLE * max(self._runs[i].size for i in slow)
        floors = [run.floor for run in list(self._runs)[slow[0] :] if run.size >= least]
        return max(*(self._runs[i].ceiling for i in slow), *floors)

    def backlog(self, now: float, queued: int, round_trip_s: float | None) -> Backlog:
        """What is under way; ``queued`` bytes more wait to be written."""
        self._asked = now
        since, size = (self._mark.since, self._mark.size) if self._mark else (self._since, 0)
        size += self._bytes
        took_s = now - since - (round_trip_s or 0.0) - _SLACK_S
        bps = 8 * size / took_s if size and took_s > 0 else math.inf
        return Backlog(size + queued, bps, self.bps)

    def doubt(self) -> None:
        """What was measured may hold no more: the next probe counts."""
        self.measured = -math.inf

    def probed(self, bps: float, now: float) -> None:
        """A probe measured this."""
        self.bps, self.measured = bps, now
        self._runs.clear()
