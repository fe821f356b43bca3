"""Sizes in a ``config.json``: what is wrong with one, and how large it may be."""

from __future__ import annotations

from typing import Any

import pytest

from astra_mesh.errors import ModelError
from astra_mesh.families.config import SIZE_LIMIT, Config
from astra_mesh.limits import BLOCKS


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8", 1_000_000_000])
def test_a_size_that_cannot_be_names_the_largest(value: Any) -> None:
    with pytest.raises(ModelError) as caught:
        Config({"n_embd": value}).size("n_embd")
    problem = f"a positive whole number of at most {SIZE_LIMIT}, it is {value!r}"
    assert problem in caught.value.message


@pytest.mark.parametrize("count", [BLOCKS + 1, SIZE_LIMIT + 1, 1_000_000_000])
def test_too_many_blocks_names_how_many_may_be(count: int) -> None:
    with pytest.raises(ModelError, match=f"{count} blocks; at most {BLOCKS} are allowed"):
        Config({"n_layer": count}).blocks("n_layer")
    assert Config({"n_layer": BLOCKS}).blocks("n_layer") == BLOCKS
    with pytest.raises(ModelError, match="positive whole number"):
        Config({"n_layer": 0}).blocks("n_layer")
