"""What the DNS library logs of sockets, in one sentence of ours at most.

Where a cable is out its sockets fail one by one, and it warns of each with a traceback. Discovery
says by itself that there is no network, and an interface of several that goes is no fault.
"""

from __future__ import annotations

import errno
import logging
from typing import Final

log = logging.getLogger(__name__)

_LIBRARY: Final = "zeroconf"
# How its warnings of sockets begin: an error of one, an address that is not there any more, and a
# program that ends before they are open.
_OF_SOCKETS: Final = (
    "Error with socket",
    "Address not available",
    "Interface ",
    "unregister_all_services skipped",
)
_GONE: Final = frozenset(
    {
        errno.EADDRNOTAVAIL,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENODEV,
        errno.ENXIO,
    }
)


class _OfSockets(logging.Filter):
    """Takes warnings of sockets out of the library's log, and says once what must be known."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[int | None] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno < logging.WARNING or not text.startswith(_OF_SOCKETS):
            return True
        log.debug("%s", text)
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OSError) and error.errno not in _GONE | self._said:
            self._said.add(error.errno)
            log.warning(
                "looking for other devices does not work on all of this machine's networks (%s): "
                "`astra-mesh doctor` says more",
                error.strerror or error,
            )
        return False


_FILTER: Final = _OfSockets()


def keep_short() -> None:
    """From now on; more calls do nothing."""
    logging.getLogger(_LIBRARY).addFilter(_FILTER)
