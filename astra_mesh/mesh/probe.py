"""How fast a link is, from what was seen on it; pure functions of times and sizes.

An end can only measure its own sending direction; it tells the result to the other end
(:class:`~astra_mesh.wire.messages.Throughput`).
"""

from __future__ import annotations

from collections.abc import Sequence

from astra_mesh import limits

_MIN_BYTES = (
    4 * limits.UNSENT_BYTES
)  # of a run of writing: less says more about buffers than the link
_GAIN = 0.25  # of a new sample


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


class Meter:
    """Throughput of a link from its real traffic: runs in which the writer always had frames."""

    def __init__(self) -> None:
        self.bps: float | None = None  # bits per second, smoothed
        self._since = 0.0
        self._bytes = 0

    def wrote(self, size: int, began: float) -> None:
        """``size`` bytes were accepted by the socket; ``began`` is when they were offered to it."""
        if not self._bytes:
            self._since = began
        self._bytes += size

    def idle(self, now: float) -> None:
        """Nothing is left to write: the run is over."""
        size, self._bytes = self._bytes, 0
        if size < _MIN_BYTES:
            return
        # What the kernel still holds was accepted, not sent.
        sample = 8 * (size - limits.UNSENT_BYTES) / max(now - self._since, 1e-6)
        self.bps = sample if self.bps is None else self.bps + _GAIN * (sample - self.bps)
