"""How long a request takes for whoever asked, and what of that peers cost that were lost."""

from __future__ import annotations

import time

from msgspec.structs import replace

from astra_mesh.wire.messages import Report


class Elapsed:
    """The times of one request, from now on: the peer that answers last knows its own part only."""

    def __init__(self) -> None:
        self._sent = self._news = time.perf_counter()
        self._lost_s = 0.0
        self._first = self._last = 0.0  # when new tokens came
        self._several = False  # whether tokens came before a loss

    def token(self) -> None:
        """A new token came."""
        self._last = self._news = time.perf_counter()
        self._first = self._first or self._last

    def heard(self) -> None:
        """Nothing was lost until now."""
        self._news = time.perf_counter()

    def lost(self) -> None:
        """A peer was lost after the last news, and another one is about to be asked."""
        now = time.perf_counter()
        self._lost_s += now - self._news
        self._news, self._several = now, self._first > 0

    def told(self, report: Report) -> Report:
        """The last peer's report, with the times of the whole request."""
        return replace(
            report,
            took_s=time.perf_counter() - self._sent,
            lost_s=report.lost_s + self._lost_s,
            tokens_s=self._last - self._first if self._several else report.tokens_s,
        )
