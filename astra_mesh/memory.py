"""Giving memory back to the system between requests.

What failed requests leave is freed by the collector only: errors keep the frames that they passed,
and with them keys and values, in circles. By itself it looks through everything when a quarter more
than all that torch made is new, which takes hours and many megabytes.

The C library keeps what is freed for its next use. After many requests at once that was 40 to 90
MiB more than before for a model of 3 million parameters, and it stayed for good. It has a heap for
each thread, and of the end of these it gives nothing back even if it is asked to (glibc's mtrim).
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import lru_cache
from typing import Final

_M_ARENA_MAX: Final = -8  # of glibc's malloc.h


@lru_cache(maxsize=2)
def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none (only glibc has these)."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no library of that kind
        return None


def share_one_heap() -> None:
    """All threads that begin from now on share one heap. For programs that are a peer and nothing
    else, at their start; one thread of them computes, so hardly any waits for another."""
    limit = _of_glibc("mallopt")
    if limit is not None and _of_glibc("malloc_trim") is not None:  # not the one of macOS
        limit(_M_ARENA_MAX, 1)


def settle() -> None:
    """What this process holds now, it holds for good: the collector looks at it no more. For
    programs that are a peer and nothing else, once they run."""
    gc.freeze()


def give_back() -> None:
    """Return free pages to the system; some milliseconds, and nothing where it is not possible."""
    if gc.get_freeze_count():  # else a collection stops a large process for a third of a second
        gc.collect()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)
