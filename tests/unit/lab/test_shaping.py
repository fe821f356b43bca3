"""The loss filter's program, run by a small interpreter of classic BPF."""

from __future__ import annotations

import random

import pytest

from tools.lab.shaping import loss_program

DROP, GO_ON = 2, 0xFFFFFFFF


def interpret(program: str, drawn: int) -> int:
    """What the program returns if the kernel's random number is ``drawn``."""
    count, *texts = program.split(",")
    lines = [tuple(map(int, text.split())) for text in texts]
    assert len(lines) == int(count)
    at = value = 0
    while True:
        code, if_true, if_false, k = lines[at]
        at += 1
        if code == 0x20:  # ld
            assert k == 2**32 - 0x1000 + 56  # linux/filter.h: SKF_AD_OFF + SKF_AD_RANDOM
            value = drawn
        elif code == 0x35:  # jge
            at += if_true if value >= k else if_false
        else:
            assert code == 0x06  # ret
            return k


@pytest.mark.parametrize("percent", [0.01, 1.0, 50.0, 100.0])
def test_the_share_of_random_numbers_that_drop_is_the_loss(percent: float) -> None:
    program = loss_program(percent)
    edge = percent / 100 * 2**32
    assert interpret(program, 0) == DROP
    assert interpret(program, int(edge) - 2) == DROP
    if percent < 100:
        assert interpret(program, int(edge) + 2) == GO_ON


def test_no_more_than_its_share() -> None:
    draw = random.Random(0)
    program = loss_program(10.0)
    drops = sum(interpret(program, draw.getrandbits(32)) == DROP for _ in range(10_000))
    assert 900 < drops < 1100
