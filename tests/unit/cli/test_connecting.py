"""What commands say where nobody else is in the mesh."""

from __future__ import annotations

from typing import Any, cast

import pytest

from astra_mesh.cli.connecting import ALONE, alone


class Seen:
    """A mesh whose peer is near these."""

    def __init__(self, *strangers: str) -> None:
        self._strangers = list(strangers)

    async def strangers(self) -> list[str]:
        return self._strangers


@pytest.mark.parametrize(
    ("strangers", "says"),
    [
        ([], ALONE),
        (["pi"], "alone: pi is near, but not paired with this device"),
        (["pi", "tv"], "alone: pi and tv are near, but not paired with this device"),
        ([*"abcdef"], "alone: a, b, c, d and 2 more are near"),
        (["p\x1b[2Ji"], "is near, but not paired with this device; pair them once"),
    ],
)
async def test_it_names_who_is_near(strangers: list[str], says: str) -> None:
    mesh: Any = cast(Any, Seen(*strangers))
    text = await alone(mesh)
    assert says in text
    assert "astra-mesh pair" in text
    assert "\x1b" not in text
