"""Memory goes back to the system, where the C library can do that."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch

from astra_mesh import memory
from tools.lab.history import held


def resident() -> int:
    return held(os.getpid()).memory_bytes


@pytest.mark.skipif(
    memory._of_glibc("malloc_trim") is None, reason="only glibc can give memory back"
)
def test_what_was_freed_between_things_in_use_goes_back() -> None:
    blocks = [torch.ones(16_384) for _ in range(1_600)]  # 100 MiB in pieces of 64 KiB
    del blocks[:-1]  # the last one holds the end of the heap
    before = resident()
    memory.give_back()
    assert resident() < before - (50 << 20)
    assert float(blocks[0].sum()) == 16_384


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_of_glibc", lambda name: None)
    memory.give_back()
    memory.share_one_heap()


HEAPS = """
import ctypes, threading
from astra_mesh.memory import share_one_heap

SHARE
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
all_are_there = threading.Barrier(8)

def some():
    libc.malloc(1000)
    all_are_there.wait()

threads = [threading.Thread(target=some) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(memory._of_glibc("malloc_trim") is None, reason="only glibc has many heaps")
def test_threads_share_one_heap() -> None:
    def heaps(share: str) -> int:
        argv = [sys.executable, "-c", HEAPS.replace("SHARE", share)]
        return subprocess.run(argv, capture_output=True, check=True).stdout.count(b"<heap nr=")

    assert heaps("share_one_heap()") == 1
    assert heaps("") > 1


class Circle:
    """Refers to itself, as an error does that a frame of its own traceback holds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def unfrozen() -> Iterator[None]:
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.usefixtures("unfrozen")
def test_circles_go_in_programs_that_are_a_peer_only() -> None:
    circle = weakref.ref(Circle())
    memory.give_back()
    assert circle() is not None  # it would take too long among all that others have
    memory.settle()
    later = weakref.ref(Circle())
    memory.give_back()
    assert later() is None
