"""Parts of the block that the models' tests do not reach."""

from __future__ import annotations

import torch

from astra_mesh.families.block import Rope


def test_rotation_follows_its_input_to_other_devices_and_precisions() -> None:
    """ "meta" stands for a GPU: nothing may lie on another device than the input."""
    rope = Rope(torch.ones(4), 64)
    plain = rope(torch.ones(5, 2, 8), 3)
    assert rope(torch.ones(5, 2, 8, device="meta"), 3).device.type == "meta"
    assert rope(torch.ones(5, 2, 8, dtype=torch.bfloat16), 3).dtype == torch.bfloat16
    assert torch.equal(rope(torch.ones(5, 2, 8), 3), plain)
