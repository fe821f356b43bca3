"""Parts of the block that the models' tests do not reach."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from astra_mesh.families.block import Rope


def test_rotation_follows_its_input_to_other_devices_and_precisions() -> None:
    """ "meta" stands for a GPU: nothing may lie on another device than the input."""
    rope = Rope(torch.ones(4), 64)
    plain = rope(torch.ones(5, 2, 8), 3)
    assert rope(torch.ones(5, 2, 8, device="meta"), 3).device.type == "meta"
    assert rope(torch.ones(5, 2, 8, dtype=torch.bfloat16), 3).dtype == torch.bfloat16
    assert torch.equal(rope(torch.ones(5, 2, 8), 3), plain)


def test_threads_that_share_a_model_turn_alike() -> None:
    """Also while one of them makes the cosines and sines that the others use."""
    x = torch.randn(2000, 1, 64, generator=torch.Generator().manual_seed(0))
    plain = Rope(torch.rand(32), 4000)
    for _ in range(20):
        rope, start = Rope(plain.inverse_frequency, 4000), threading.Barrier(8)

        def turn(rope: Rope = rope, start: threading.Barrier = start) -> torch.Tensor:
            start.wait()
            return rope(x, 2000)

        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(turn) for _ in range(8)]
        assert all(torch.equal(one.result(), plain(x, 2000)) for one in found)
