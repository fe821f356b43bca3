"""Stop strings, found across the borders of tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Takes pieces of text, gives what is certain not to belong to a stop string.

    All that :meth:`push` and :meth:`flush` give is the text up to the first stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""  # the longest end of the text that may be the start of a stop string
        self.found = False

    def push(self, text: str) -> str:
        """The next piece; "" after a stop string was found."""
        if self.found:
            return ""
        text = self._held + text
        ends = [(i + len(stop), i) for stop in self._stops if (i := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]  # the one that was complete first, however it was cut
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters of the longest end of ``text`` with which ``stop`` begins, not all of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
