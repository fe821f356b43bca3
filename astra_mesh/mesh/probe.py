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

    The second half of the train counts: the first fills what lies between (TCP's first window, the
    burst that a rate limiter lets through), and the round trip cancels out.

    Args:
        pongs: Arrival times, seconds; at least two.
        size: Bytes of each ping.
    """
    half = len(pongs) // 2
    span = pongs[-1] - pongs[half - 1]
    return 8 * size * (len(pongs) - half) / max(span, 1e-6)


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
