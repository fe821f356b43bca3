"""What ``doctor`` says of speeds."""

from __future__ import annotations

import itertools

import pytest

from astra_mesh.client.checks import about, speed_beside


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.05, "much slower"),
        (0.54, "no faster"),
        (0.88, "no faster"),
        (1.0, "no faster"),
        (1.75, "faster"),
        (2.1, "faster"),
    ],
)
def test_digits_that_are_noise_are_not_shown(ratio: float, text: str) -> None:
    assert about(ratio) == text


def test_a_busy_moment_and_the_first_product_do_not_count() -> None:
    """Every fifth product takes a hundred times as long, the first one too."""
    places = itertools.count()

    def timed(seconds: float) -> float:
        return seconds * (100 if next(places) % 5 == 0 else 1)

    assert speed_beside(4.0, 1.0, timed) == 4.0
