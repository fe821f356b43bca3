"""Shards of evaluated plans."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from astra_mesh.quality.cuts import cut


@given(st.integers(1, 300), st.integers(1, 64), st.sampled_from(["even", "random"]), st.text())
def test_shards_tile_the_tokens(tokens: int, peers: int, shards, seed: str) -> None:  # type: ignore[no-untyped-def]
    found = cut(tokens, peers, shards, seed)
    assert found == cut(tokens, peers, shards, seed)
    assert len(found) == peers
    assert (found[0][0], found[-1][1]) == (0, tokens)
    assert all(a[1] == b[0] for a, b in pairwise(found))
    sizes = [stop - start for start, stop in found]
    assert min(sizes) >= (1 if tokens >= peers else 0)
    if shards == "even":
        assert max(sizes) - min(sizes) <= 1


def test_random_cuts_differ_by_seed() -> None:
    assert len({tuple(cut(100, 4, "random", str(seed))) for seed in range(20)}) > 15
