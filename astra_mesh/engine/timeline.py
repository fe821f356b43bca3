"""When each step of a request happened on one peer, block by block; for measuring, off by default.

Times are nanoseconds of the monotonic clock, which all processes of a machine share, relative to
``began_ns``. A :class:`Timeline` holds what the plan allows to happen, so its size is bounded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

FORMAT = 1  # of :meth:`Timeline.document`


class Mark(Enum):
    """What has just happened."""

    ENCODED = "encoded"  # the own codes of the block are computed
    SENT = "sent"  # they are queued on every link that needs them, within its window
    LOCAL = "local"  # own tokens are attended (and, where they are known exactly, the others')
    ARRIVED = "arrived"  # the last code of a remote part came in
    ATTENDED = "attended"  # a remote part is attended
    DONE = "done"  # the block's output is there


_OF_A_PART = (Mark.ARRIVED, Mark.ATTENDED)


class Moment(NamedTuple):
    """One mark: ``part`` is the shard that a remote part came from, -1 for the own one."""

    at_ns: int
    mark: Mark
    block: int
    part: int


@dataclass
class Timeline:
    """The marks of one request on one peer. May be noted from several threads."""

    began_ns: int = field(default_factory=time.monotonic_ns)
    moments: list[Moment] = field(default_factory=list)

    def note(self, mark: Mark, block: int, part: int = -1) -> None:
        """It happened now."""
        self.moments.append(Moment(time.monotonic_ns() - self.began_ns, mark, block, part))

    def document(self) -> dict[str, Any]:
        """As plain values for JSON: ``began_ns``, and ``blocks`` with what happened in each."""
        blocks: dict[int, dict[str, Any]] = {}
        for at_ns, mark, block, part in self.moments:
            one = blocks.setdefault(block, {"block": block})
            if mark in _OF_A_PART:
                parts = one.setdefault("parts", {})
                parts.setdefault(str(part), {})[f"{mark.value}_ns"] = at_ns
            else:
                one[f"{mark.value}_ns"] = at_ns
        ordered = [blocks[block] for block in sorted(blocks)]
        return {"format": FORMAT, "began_ns": self.began_ns, "blocks": ordered}
