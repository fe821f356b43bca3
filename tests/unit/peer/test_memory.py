"""Memory goes back to the system, where the C library can do that."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator

import pytest
import torch

from astra_mesh.peer import memory
from tools.lab.history import held


def resident() -> int:
    return held(os.getpid()).memory_bytes


@pytest.mark.skipif(memory._malloc_trim() is None, reason="only glibc can give memory back")
def test_what_was_freed_between_things_in_use_goes_back() -> None:
    blocks = [torch.ones(16_384) for _ in range(1_600)]  # 100 MiB in pieces of 64 KiB
    del blocks[:-1]  # the last one holds the end of the heap
    before = resident()
    memory.give_back()
    assert resident() < before - (50 << 20)
    assert float(blocks[0].sum()) == 16_384


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    memory.give_back()


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
