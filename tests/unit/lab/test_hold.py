"""Holding frames: what is due when, in which order; sockets stand for the TAP interfaces."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from tools.lab import hold
from tools.lab.hold import Cable, obey, turn


class Ends:
    """A cable, the device at one end of it and the bridge at the other."""

    def __init__(self) -> None:
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        self.device, near = socket.socketpair(socket.AF_UNIX, kind)
        self.bridge, far = socket.socketpair(socket.AF_UNIX, kind)
        self.sockets = [self.device, near, self.bridge, far]
        self.cable = Cable(near.fileno(), far.fileno(), random.Random(0))

    def at_bridge(self) -> list[bytes]:
        return hold.frames(self.bridge.fileno())


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    for one in made.sockets:
        one.close()


def test_a_frame_waits_for_its_delay(ends: Ends) -> None:
    ends.cable.delay_s = 0.02
    ends.device.send(b"one")
    ends.cable.take(100.0)
    assert ends.cable.release(100.019) == pytest.approx(100.02)
    assert ends.at_bridge() == []
    assert ends.cable.release(100.021) is None
    assert ends.at_bridge() == [b"one"]


def test_jitter_keeps_the_order(ends: Ends) -> None:
    ends.cable.delay_s, ends.cable.jitter_s = 0.02, 0.01
    sent = [str(number).encode() for number in range(50)]
    for number, frame in enumerate(sent):
        ends.device.send(frame)
        ends.cable.take(100.0 + number / 1000)
    times = [due for due, _ in ends.cable.held]
    assert times == sorted(times)
    assert len(set(times)) > 5
    for number, due in enumerate(times):
        assert 0.01 <= due - (100.0 + number / 1000) <= 0.04
    ends.cable.release(101.0)
    assert ends.at_bridge() == sent


def test_a_shorter_delay_does_not_let_later_frames_overtake(ends: Ends) -> None:
    ends.cable.delay_s = 1.0
    ends.device.send(b"first")
    ends.cable.take(100.0)
    ends.cable.delay_s = 0.0
    ends.device.send(b"second")
    ends.cable.take(100.1)
    assert [due for due, _ in ends.cable.held] == [101.0, 101.0]


def test_what_goes_to_the_device_passes_at_once(ends: Ends) -> None:
    ends.cable.delay_s = 1.0
    ends.bridge.send(b"back")
    assert turn({"0": ends.cable}, {ends.cable.far}) is None
    assert hold.frames(ends.device.fileno()) == [b"back"]


def test_a_cable_holds_no_more_than_its_limit(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "HELD_FRAMES", 3)
    for number in range(5):
        ends.device.send(str(number).encode())
    ends.cable.take(0.0)
    assert [frame for _, frame in ends.cable.held] == [b"0", b"1", b"2"]


def test_a_frame_for_an_interface_that_is_gone_is_lost(ends: Ends) -> None:
    hold.put(-1, b"frame")
    assert hold.frames(-1) == []


def test_a_line_sets_delay_and_jitter(ends: Ends) -> None:
    obey({"3": ends.cable}, "3 20 2.5")
    assert (ends.cable.delay_s, ends.cable.jitter_s) == (0.02, 0.0025)
