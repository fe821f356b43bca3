"""The clocks of other devices, by the answers that they give to a dial, and what to say of them.

Every answer of HTTP has the time in its header ``Date`` (RFC 9110, 6.6.1), in whole seconds. That
of a link comes over TLS, so it is the word of the device whose certificate the connection shows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Final

import aiohttp
from yarl import URL

from astra_mesh import limits
from astra_mesh.mesh.connect import Address, link_url

_WHOLE_S: Final = 0.5  # a time that was cut to the second was this much later, on average
_SCALE: Final = ((86_400, "day"), (3_600, "h"), (60, "min"), (1, "s"))


class Clocks:
    """Takes the time out of the answers to the dials of one HTTP session."""

    def __init__(self) -> None:
        self._ahead: dict[URL, float] = {}

    def session(self) -> aiohttp.ClientSession:
        """A session whose answers are read."""
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._take)
        return aiohttp.ClientSession(trace_configs=[trace])

    def ahead_s(self, address: Address) -> float | None:
        """By how much the clock of who answered there is ahead of this one, seconds; None if it
        did not tell its time. It may be wrong by a second.
        """
        return self._ahead.get(link_url(address, secure=True))

    async def _take(
        self,
        session: aiohttp.ClientSession,
        context: SimpleNamespace,
        answer: aiohttp.TraceRequestEndParams,
    ) -> None:
        del session, context
        ahead = _ahead_s(answer.response.headers.get("Date", ""), time.time())
        if ahead is not None:
            self._ahead[answer.url] = ahead


def _ahead_s(date: str, now: float) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() + _WHOLE_S - now
    except (ValueError, OverflowError):
        return None


def compare(ahead: Mapping[str, float]) -> tuple[bool, str]:
    """Whether all clocks go alike, and a sentence for people.

    Args:
        ahead: By how much those of other devices are ahead of this one, by the devices' names.
    """
    if not ahead:
        return True, "compared with none: no paired device answers that tells its time"
    off = {name: by for name, by in ahead.items() if abs(by) > limits.CLOCK_OFF_S}
    if not off:
        most = max(abs(by) for by in ahead.values())
        return True, f"within {max(2, round(most))} s of {_joined(ahead)}"
    spread = max(ahead.values()) - min(ahead.values())
    if len(ahead) > 1 and spread <= limits.CLOCK_OFF_S:
        middle = sorted(ahead.values())[len(ahead) // 2]
        what = f"this device's is {_by(-middle)} those of {_joined(ahead)}, which agree: set it"
    else:
        each = ", ".join(f"that of {name} is {_by(by)}" for name, by in off.items())
        what = f"{each} this device's: set {'what' if len(off) > 1 else 'the one that'} is wrong"
    return False, (
        f"{what}, or let it ask a time server. Memberships for a limited time and the certificates "
        "of browser tabs end by the clock of each device, so sooner on one than on another"
    )


def _joined(names: Mapping[str, float]) -> str:
    return ", ".join(names)


def _by(ahead: float) -> str:
    """``3 min ahead of`` or ``2 days behind``."""
    size, unit = next((size, unit) for size, unit in _SCALE if abs(ahead) >= size or size == 1)
    count = round(abs(ahead) / size)
    plural = "s" if unit == "day" and count != 1 else ""
    return f"{count} {unit}{plural} {'ahead of' if ahead > 0 else 'behind'}"
