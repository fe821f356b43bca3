"""Inputs made from good ones: a seeded mutator, for machines without Atheris."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

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


class Mutator:
    """Damages seeds in ways that break parsers.

    Args:
        seeds: Good inputs.
        number: The same number gives the same inputs.
    """

    def __init__(self, seeds: Sequence[bytes], number: int) -> None:
        self._seeds = list(seeds)
        self._random = random.Random(number)

    def next(self) -> bytes:
        """One more input."""
        chance = self._random
        data = bytearray(chance.choice(self._seeds))
        for _ in range(1 + int(chance.expovariate(0.7))):
            self._damage(data)
        return bytes(data[:_LONGEST])

    def _damage(self, data: bytearray) -> None:
        chance = self._random
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + 1 + int(chance.expovariate(0.2)))
        kind = chance.randrange(9)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = chance.randrange(256)
        elif kind == 2:
            del data[place:end]
        elif kind == 3:
            data[place:place] = data[place:end] * chance.choice((1, 2, 50))
        elif kind == 4:
            data[place:place] = chance.choice(_TOKENS)
        elif kind == 5:
            number = chance.choice(_NUMBERS)
            data[place : place + len(number)] = number
        elif kind == 6:
            del data[place:]
        elif kind == 7:
            other = chance.choice(self._seeds)
            cut = chance.randrange(len(other) + 1)
            data[place:] = other[cut:]
        else:
            data[place:place] = chance.randbytes(chance.randrange(1, 17))
