"""Giving memory back to the system between requests.

What failed requests leave is freed by the collector only: errors keep the frames that they passed,
and with them keys and values, in circles. By itself it looks through everything when a quarter more
than all that torch made is new, which takes hours and many megabytes.

The C library keeps what is freed for its next use. After many requests at once that was 40 to 90
MiB more than before for a model of 3 million parameters, and it stayed for good. It has a heap for
each thread, and of the end of these it gives nothing back even if it is asked to (glibc's mtrim).

oneDNN, and its binding in torch, keep the code that they make for a shape: 0.2 MiB each for any
layer and number of tokens, up to 1,024 times. Prompts of 250 lengths cost 420 MiB so.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

# Pieces of code that are kept. Making that of a layer again takes below 1 ms, and a block has about
# ten for one number of tokens.
KEPT_KERNELS: Final = 64
FEW_KERNELS: Final = 24

_M_ARENA_MAX: Final = -8  # of glibc's malloc.h
_MADV_DONTNEED: Final = 4  # of Linux
_SMAPS: Final = Path("/proc/self/smaps")
# "55d0c2a3e000-55d0c2a40000 r--p 00000000 fe:00 3164 /file", and what is told of it. By a pattern,
# as there are thousands of lines: 15 ms line by line, in which Python does nothing else.
_OF_FILES: Final = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ...p \S+ \S+ [1-9]\d* [^\n]*\n(?:[A-Z][^\n]*\n)*?Anonymous: +0 kB",
    re.MULTILINE,
)


def keep_few_kernels(count: int = KEPT_KERNELS) -> None:
    """Unless the environment says how many. Both look at this before their first product only."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(count))


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


def take_little() -> None:
    """With ``--low-memory``: fewer kernels, and MKL gives the room of a product back after it (20
    MiB after one of 64 tokens with a vocabulary of 50,257). Before the first product, as above."""
    keep_few_kernels(FEW_KERNELS)
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")


def drop_pages(tensors: Iterable[Tensor]) -> None:
    """The file pages that tensors lie in leave this process; they are read again when used.

    Only of files that are mapped and were not written to; on Linux, elsewhere nothing happens.
    """
    held = list(tensors)  # so that what is mapped stays mapped
    advise = _of_glibc("madvise")
    if not held or advise is None or not _SMAPS.exists():
        return
    places = sorted({tensor.data_ptr() for tensor in held})
    for start, stop in _unwritten():
        at = bisect_right(places, stop - 1)
        if at and places[at - 1] >= start:
            advise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)


def _unwritten() -> Iterator[tuple[int, int]]:
    """Where files are mapped for this process alone, and are as they were: start, stop."""
    for found in _OF_FILES.finditer(_SMAPS.read_bytes()):
        yield int(found[1], 16), int(found[2], 16)
