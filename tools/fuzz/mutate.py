"""Inputs made from good ones: a seeded mutator, for machines without Atheris."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_LONGEST: Final = 64 * 1024  # bytes of an input
_NUMBERS: Final = tuple(
    value.to_bytes(size, order, signed=False)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("big", "little")
)
_TOKENS: Final = (
    *(b"\x90", b"\xc0", b"\xc1", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff"),  # MessagePack
    *(b"\x80", b"\xde\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"),
    *(b"\xcb\x7f\xf8" + bytes(6), b"\xcb\x7f\xf0" + bytes(6), b"\xc7\x01\x01\x00"),
    *(b"{", b"}", b"[" * 64, b'"', b"null", b"1e999", b"-1", b"\\u0000", b"NaN"),  # JSON
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xae", b"../", b"%00", b"\r\n"),  # text
)
_REPEATS: Final = (1, 2, 50)
_KINDS: Final = 9
# A damage spans so many bytes, one of these at random: most few, some many.
_SPANS: Final = (1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 10, 12, 14, 18, 24)


class Mutator:
    """Damages seeds in ways that break parsers.

    Args:
        seeds: Good inputs.
        number: The same number gives the same inputs.
    """

    def __init__(self, seeds: Sequence[bytes], number: int) -> None:
        self._seeds = list(seeds)
        self._generator = random.Random(number)
        self._random = self._generator.random  # the methods above it cost more than the damage

    def next(self) -> bytes:
        """One more input."""
        chance, seeds = self._random, self._seeds
        data = bytearray(seeds[int(chance() * len(seeds))])
        self._damage(data)
        while chance() < 0.5:
            self._damage(data)
        return bytes(data[:_LONGEST])

    def _damage(self, data: bytearray) -> None:
        chance = self._random
        place = int(chance() * (len(data) + 1))
        kind = int(chance() * _KINDS)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << int(chance() * 8)
        elif kind == 1 and place < len(data):
            data[place] = int(chance() * 256)
        elif kind == 2:
            del data[place : place + self._pick(_SPANS)]
        elif kind == 3:
            data[place:place] = data[place : place + self._pick(_SPANS)] * self._pick(_REPEATS)
        elif kind == 4:
            data[place:place] = self._pick(_TOKENS)
        elif kind == 5:
            number = self._pick(_NUMBERS)
            data[place : place + len(number)] = number
        elif kind == 6:
            del data[place:]
        elif kind == 7:
            other = self._pick(self._seeds)
            data[place:] = other[int(chance() * (len(other) + 1)) :]
        else:
            data[place:place] = self._generator.randbytes(1 + int(chance() * 16))

    def _pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]
