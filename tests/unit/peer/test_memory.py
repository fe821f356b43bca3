"""Memory goes back to the system, where the C library can do that."""

from __future__ import annotations

import os

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
