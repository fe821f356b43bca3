"""Room for connections of strangers: bounded in all and for each host.

Where it is full the oldest of the host that takes most of it has to go, so that floods hurt their
own host first. What is at work stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Room(Generic[T]):
    """What is in it, oldest first.

    Args:
        most: In all.
        most_of: Of one host.
        evict: Ends one of them; it is no longer in the room then.
        at_work: Those for which it holds are not evicted.
    """

    def __init__(
        self,
        most: int,
        most_of: Callable[[str], int],
        evict: Callable[[T], object],
        at_work: Callable[[T], bool] = lambda _: False,
    ) -> None:
        self._most, self._most_of = most, most_of
        self._evict, self._at_work = evict, at_work
        self._hosts: dict[T, str] = {}

    def __len__(self) -> int:
        return len(self._hosts)

    def enter(self, one: T, host: str) -> None:
        """Another one came; it may be the one that has to go, if all others are at work."""
        self._hosts[one] = host
        counts = Counter(self._hosts.values())
        if counts[host] > self._most_of(host):
            self._make_room({host: 1})
        elif len(self._hosts) > self._most:
            self._make_room(counts)

    def leave(self, one: T) -> None:
        """It is over, or bounded otherwise from now on."""
        self._hosts.pop(one, None)

    def _make_room(self, counts: dict[str, int]) -> None:
        waiting = [
            one for one, of in self._hosts.items() if of in counts and not self._at_work(one)
        ]
        if not waiting:
            return
        oldest = max(waiting, key=lambda one: counts[self._hosts[one]])  # the first of equals
        self.leave(oldest)
        self._evict(oldest)
