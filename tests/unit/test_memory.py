"""Memory goes back to the system, where the C library can do that."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from astra_mesh import memory
from astra_mesh.bundle.tensors import open_tensors, save_tensors
from tests.mapped import mapped, needs_smaps
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


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    numbers = torch.arange(1 << 20, dtype=torch.float32)
    save_tensors(tmp_path / "some.safetensors", {"a": numbers, "b": numbers + 1})
    return tmp_path / "some.safetensors"


@needs_smaps
def test_pages_of_a_file_go_and_come_back(saved: Path) -> None:
    tensors = open_tensors(saved)
    numbers = torch.arange(1 << 20, dtype=torch.float32)
    assert torch.equal(tensors["a"], numbers)
    assert mapped(saved) >= 4 << 20
    memory.drop_pages([tensors["a"]])
    assert mapped(saved) == 0
    assert torch.equal(tensors["a"], numbers)
    assert torch.equal(tensors["b"], numbers + 1)


@needs_smaps
def test_pages_of_others_stay(saved: Path, tmp_path: Path) -> None:
    save_tensors(other := tmp_path / "other.safetensors", {"a": torch.ones(1 << 20)})
    theirs = open_tensors(other)["a"]
    assert float(theirs.sum()) == 1 << 20
    memory.drop_pages(open_tensors(saved).values())
    memory.drop_pages([])
    assert mapped(other) >= 4 << 20


@needs_smaps
def test_what_was_written_to_and_what_is_of_no_file_keeps_its_numbers(saved: Path) -> None:
    tensors = open_tensors(saved)
    tensors["b"][5] = -7.0  # in this process only
    plain = torch.full((1 << 20,), 3.0)
    memory.drop_pages([*tensors.values(), plain])
    assert float(tensors["b"][5]) == -7.0
    assert bool((plain == 3.0).all())


@needs_smaps
def test_where_nothing_tells_what_is_mapped_nothing_goes(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = open_tensors(saved)
    assert float(tensors["a"].sum()) > 0
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_SMAPS", saved.parent / "none")
        memory.drop_pages(tensors.values())
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_of_glibc", lambda name: None)
        memory.drop_pages(tensors.values())
    assert mapped(saved) >= 4 << 20


LITTLE = """
import os
from astra_mesh import memory

memory.take_little()
from astra_mesh.families import packed

names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY", "MKL_DISABLE_FAST_MM")
print(*(os.environ[name] for name in names))
"""


def test_to_take_little_holds_against_the_default_and_not_against_the_user() -> None:
    def told(**given: str) -> list[str]:
        argv = [sys.executable, "-c", LITTLE]
        env = {"PATH": os.environ["PATH"], **given}
        done = subprocess.run(argv, capture_output=True, check=True, text=True, env=env)
        return done.stdout.split()

    assert told() == [str(memory.FEW_KERNELS), str(memory.FEW_KERNELS), "1"]
    assert told(LRU_CACHE_CAPACITY="7") == [str(memory.FEW_KERNELS), "7", "1"]
