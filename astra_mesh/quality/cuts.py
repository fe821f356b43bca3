"""Where the shards of an evaluated plan begin and end."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Literal

Shards = Literal["even", "random"]


def cut(tokens: int, peers: int, shards: Shards, seed: str) -> list[tuple[int, int]]:
    """(start, stop) of each shard: even, or any cuts with equal chance, at least one token each.

    The same ``seed`` gives the same cuts. With fewer tokens than peers some shards are empty.
    """
    if shards == "even" or tokens < peers:
        edges = [tokens * i // peers for i in range(peers + 1)]
    else:
        drawn = random.Random(seed).sample(range(1, tokens), peers - 1)
        edges = [0, *sorted(drawn), tokens]
    return list(pairwise(edges))
