"""How often each host may do something: a bucket of turns that fills by itself."""

from __future__ import annotations

from collections import OrderedDict

from astra_mesh import limits


class Rate:
    """Turns of hosts. Of too many hosts the ones that were not seen for longest are forgotten.

    Args:
        per_s: Turns that come back each second.
        burst: Turns of a host that was quiet.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # turns, and when

    def take(self, host: str, now: float) -> bool:
        """Take one turn; False if the host has none left."""
        left, before = self._left.pop(host, (float(self._burst), now))
        left = min(self._burst, left + (now - before) * self._per_s)
        has_turn = left >= 1
        self._left[host] = left - has_turn, now
        if len(self._left) > limits.RATED_HOSTS:
            self._left.popitem(last=False)
        return has_turn
