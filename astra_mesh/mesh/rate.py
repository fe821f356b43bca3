"""How often hosts may do something: buckets of turns that fill by themselves."""

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


class Turns:
    """Which hosts may begin a handshake now.

    A host from which a member came has turns of its own. All others share some, of which one host
    gets a part only: a machine may have many addresses. Hosts of members may wait for their turn,
    as no other can take it.
    """

    def __init__(self) -> None:
        self._hosts = Rate(limits.HANDSHAKES_PER_S, limits.HANDSHAKES_BURST)
        self._each = Rate(limits.STRANGER_HANDSHAKES_PER_S, limits.STRANGER_HANDSHAKES_BURST)
        self._together = Rate(limits.STRANGERS_HANDSHAKES_PER_S, limits.STRANGERS_HANDSHAKES_BURST)
        self._known: OrderedDict[str, None] = OrderedDict()  # the last that came is the last

    def knows(self, host: str) -> bool:
        """Whether a member came from there."""
        return host in self._known

    def take(self, host: str, now: float) -> bool:
        """Take one turn; False if there is none for that host."""
        if host in self._known:
            return self._hosts.take(host, now)
        return self._each.take(host, now) and self._together.take("", now)

    def welcome(self, host: str) -> None:
        """A member came from there."""
        self._known[host] = None
        self._known.move_to_end(host)
        if len(self._known) > limits.RATED_HOSTS:
            self._known.popitem(last=False)
