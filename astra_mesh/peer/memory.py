"""Giving memory back to the system between requests.

What failed requests leave is freed by the collector only: errors keep the frames that they passed,
and with them keys and values, in circles. By itself it looks through everything when a quarter more
than all that torch made is new, which takes hours and many megabytes.

The C library keeps what is freed for its next use. After many requests at once that was 40 to 90
MiB more than before for a model of 3 million parameters, and it stayed for good.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """The C library's own function; None where there is none (only glibc has it)."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library of that kind
        return None


def settle() -> None:
    """What this process holds now, it holds for good: the collector looks at it no more. For
    programs that are a peer and nothing else, once they run."""
    gc.freeze()


def give_back() -> None:
    """Return free pages to the system; some milliseconds, and nothing where it is not possible."""
    if gc.get_freeze_count():  # else a collection stops a large process for a third of a second
        gc.collect()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
