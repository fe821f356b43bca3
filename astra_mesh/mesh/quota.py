"""What one device may hold of a peer over all of its links: requests, and memory. Without I/O."""

from __future__ import annotations

import math

from astra_mesh import limits


class Quota:
    """One for each device; its links share it. The own device has none: ``Quota.endless()``."""

    def __init__(
        self,
        requests: float = limits.REQUESTS_PER_DEVICE,
        size: float = limits.DEVICE_BYTES,
    ) -> None:
        self._most_requests, self._most_bytes = requests, size
        self.requests = 0  # open ones
        self.held_bytes = 0  # frames of these, and data that was not consumed

    @classmethod
    def endless(cls) -> Quota:
        """Without limits."""
        return cls(math.inf, math.inf)

    def has_room(self, size: int) -> bool:
        """Whether one more request may come, with a frame of so many bytes."""
        return self.requests < self._most_requests and self.can_hold(size)

    def can_hold(self, size: int) -> bool:
        """Whether so many bytes more may be held."""
        return self.held_bytes + size <= self._most_bytes

    def take(self, size: int, requests: int = 0) -> None:
        """Count what came."""
        self.held_bytes += size
        self.requests += requests

    def give(self, size: int, requests: int = 0) -> None:
        """It is not held any more."""
        self.held_bytes -= size
        self.requests -= requests

    def sentence(self) -> str:
        """Why there is no room, for the other end."""
        return (
            f"your device has {self.requests} requests open here and holds "
            f"{self.held_bytes >> 20} MiB; {self._most_requests:g} and "
            f"{self._most_bytes / limits.MIB:g} MiB are allowed: try again when some are answered"
        )
