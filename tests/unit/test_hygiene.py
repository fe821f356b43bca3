"""The checks in tests/conftest.py catch what they are there for, and nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs
import pytest
from blockbuster import BlockBuster, BlockingError

from tests.hygiene import leftover_tasks, leftovers, snapshot
from tests.timings import scaled

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def test_nothing_new_is_nothing_left() -> None:
    assert leftovers(snapshot(), grace_s=0) == []


def test_a_thread() -> None:
    before = snapshot()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten")
    thread.start()
    assert leftovers(before, grace_s=0) == ["thread forgotten"]
    release.set()
    assert leftovers(before) == []
    thread.join()


@LINUX
def test_a_socket_and_a_file(tmp_path: Path) -> None:
    before = snapshot()
    with socket.socket(), (tmp_path / "log").open("w"):
        kinds = {word.split(" -> ")[1].split(":")[0] for word in leftovers(before, grace_s=0)}
        assert kinds == {"socket", str(tmp_path / "log")}
    assert leftovers(before, grace_s=0) == []


@LINUX
def test_a_child_process() -> None:
    before = snapshot()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        left = leftovers(before, grace_s=0)
        assert any(word.startswith(f"process {child.pid} ") for word in left)
    assert leftovers(before) == []


async def test_a_task() -> None:
    before = set(asyncio.all_tasks())
    forgotten = asyncio.create_task(asyncio.sleep(60), name="forgotten")
    (left,) = await leftover_tasks(before, grace_s=0)
    assert left.startswith("task forgotten: <coroutine object sleep")
    forgotten.cancel()
    assert await leftover_tasks(before) == []


async def test_blocking_calls_of_the_package_are_watched() -> None:
    detector = BlockBuster("tests")
    assert time.sleep.__name__ == "wrapper"  # by the fixture; it looks at astra_mesh only
    time.sleep(0)
    detector.functions["os.stat"].activate()
    try:
        with pytest.raises(BlockingError):
            os.stat(".")  # noqa: PTH116
    finally:
        detector.functions["os.stat"].deactivate()


def test_home_is_not_the_users(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert Path.home() == home
    assert home.is_relative_to(tmp_path_factory.getbasetemp())
    assert list(home.iterdir()) == []
    assert platformdirs.user_data_path("x").is_relative_to(home)


class TestScaled:
    def test_only_times_change(self) -> None:
        @dataclass(frozen=True)
        class Timings:
            silence_s: float = 4.0
            close_s: int = 1
            tries: int = 3

        assert scaled(Timings(), 0.5) == Timings(silence_s=2.0, close_s=0.5, tries=3)  # type: ignore[arg-type]

    def test_structs_too(self) -> None:
        class Timings(msgspec.Struct, frozen=True):
            silence_s: float = 4.0

        assert scaled(Timings(), 0.25) == Timings(silence_s=1.0)

    def test_other_things_are_refused(self) -> None:
        with pytest.raises(TypeError):
            scaled({"silence_s": 4.0}, 2)
