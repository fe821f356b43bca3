"""What was measured is read again under the same conditions, and under no others."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.peer import measured as module
from astra_mesh.peer.code_times import CodeTimes
from astra_mesh.peer.measured import Conditions, Figures, Measured, conditions, cpu
from astra_mesh.wire.messages import ModelId, Timing
from tests.unit.peer.fakes import small_model
from tests.unit.peer.test_code_times import fitted

ABOUT = Conditions(ModelId("a" * 64), "auto", 2, 2.0, "a processor")
TIMING = Timing(fixed_s=1e-3, per_token_s=1e-5, per_pair_s=1e-8, head_s=1e-4, step_s=2e-3)
SECONDS = {1: 1e-6, 2: 2e-6}
TIMES = CodeTimes(SECONDS, SECONDS, SECONDS, {1: "table", 2: "project"})
FIGURES = Figures("bf16", 1.5, 1e-4, "fused", TIMING, {"b" * 64: TIMES})


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    kept = Measured(folder)
    assert kept.read(ABOUT) is None
    assert kept.used_s(ABOUT) == 0
    kept.write(ABOUT, FIGURES)
    assert Measured(folder).read(ABOUT) == FIGURES
    assert kept.used_s(ABOUT) > 0
    assert the_file(folder).stat().st_mode & 0o077 == 0
    assert [path.name for path in folder.iterdir()] == [the_file(folder).name]  # nothing beside it


@pytest.mark.parametrize(
    "other",
    [
        {"model": ModelId("c" * 64)},
        {"wanted": "fp32"},
        {"threads": 1},
        {"cores": 1.0},
        {"cpu": "another"},
        {"torch": "0"},
        {"software": "0"},
    ],
)
def test_other_conditions_have_other_figures(tmp_path: Path, other: dict[str, object]) -> None:
    kept = Measured(tmp_path)
    kept.write(ABOUT, FIGURES)
    about = replace(ABOUT, **other)
    assert kept.read(about) is None
    the_file(tmp_path).rename(tmp_path / f"{about.key}.json")  # as if two keys were the same
    assert kept.read(about) is None


def test_conditions_are_those_of_this_process() -> None:
    about = conditions(ABOUT.model, "int8", 1.5)
    assert (about.wanted, about.cores) == ("int8", 1.5)
    assert about.cpu == cpu()
    assert about.cpu


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"[]",
        lambda data: data.replace(b"0.001", b"-1.0"),
        lambda data: data.replace(b"0.001", b"1e300"),
        lambda data: data.replace(b'"bf16"', b'"bf17"'),
        lambda data: data.replace(b'"speedup":1.5', b'"speedup":0'),
        lambda data: data.replace(b'"speedup":1.5', b'"speedup":24.9'),
        lambda data: data.replace(b'"packing":"fused"', b'"packing":"some"'),
        lambda data: data + b" " * limits.MEASURED_BYTES,
    ],
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, damage: object) -> None:
    kept = Measured(tmp_path)
    kept.write(ABOUT, FIGURES)
    data = the_file(tmp_path).read_bytes()
    changed = damage(data)  # type: ignore[operator]
    assert changed != data
    the_file(tmp_path).write_bytes(changed)
    assert kept.read(ABOUT) is None
    kept.write(ABOUT, FIGURES)
    assert kept.read(ABOUT) == FIGURES


def test_a_format_that_was_not_asked_for_is_not_taken(tmp_path: Path) -> None:
    kept, about = Measured(tmp_path), replace(ABOUT, wanted="int8")
    kept.write(about, FIGURES)
    assert kept.read(about) is None
    kept.write(about, replace(FIGURES, precision="int8"))
    assert kept.read(about) is not None


def test_only_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEASURED_FILES", 2)
    kept = Measured(tmp_path)
    every = [replace(ABOUT, threads=count) for count in (1, 2, 3)]
    for age, about in enumerate(every):
        kept.write(about, FIGURES)
        os.utime(tmp_path / f"{about.key}.json", (age, age))
    kept.read(every[1])  # it is used now
    kept.write(replace(ABOUT, threads=4), FIGURES)
    assert [kept.read(about) is None for about in every] == [True, False, True]


def test_a_folder_that_cannot_be_used_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = Measured(tmp_path / "file")
    for _ in range(2):
        kept.write(ABOUT, FIGURES)
    assert kept.read(ABOUT) is None
    assert [one.levelno for one in caplog.records if "not kept" in one.message] == [logging.WARNING]


def test_times_of_a_codebook_must_fit_it() -> None:
    book = fitted(small_model("gpt2"))
    seconds = dict.fromkeys(book.able, 1e-6)
    times = CodeTimes(seconds, seconds, seconds, dict.fromkeys(book.able, "table"))
    figures = replace(FIGURES, codes={book.id: times})
    again = msgspec.json.decode(msgspec.json.encode(figures), type=Figures)
    assert again.times_of(book) == times
    assert FIGURES.times_of(book) is None
    for field, value in (
        ("encode_s", {1: 1e-6}),
        ("decode_s", dict.fromkeys(book.able, 0.0)),
        ("project_s", dict.fromkeys(book.able, float("inf"))),
        ("decoder", dict.fromkeys(book.able, "magic")),
    ):
        changed = CodeTimes(**{**times.__dict__, field: value})
        assert replace(FIGURES, codes={book.id: changed}).times_of(book) is None


async def test_one_measures_while_another_waits(tmp_path: Path) -> None:
    first, second, order = Measured(tmp_path), Measured(tmp_path), list[str]()

    async def measure(kept: Measured, name: str) -> None:
        async with kept.turn(ABOUT):
            order.append(f"{name} begins")
            await asyncio.sleep(0.1)
            order.append(f"{name} ends")

    await asyncio.gather(measure(first, "one"), measure(second, "two"))
    assert [one.partition(" ")[2] for one in order] == ["begins", "ends"] * 2
    async with first.turn(ABOUT), second.turn(replace(ABOUT, threads=1)):  # another model
        pass
    async with first.turn(ABOUT), second.turn(ABOUT, needed=False):  # it is known
        pass


async def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEASURE_TURN_S", 0.1)
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    async with asyncio.timeout(5), Measured(tmp_path).turn(ABOUT), Measured(tmp_path).turn(ABOUT):
        pass


async def test_without_a_folder_nothing_is_kept() -> None:
    kept = Measured(None)
    kept.write(ABOUT, FIGURES)
    assert (kept.read(ABOUT), kept.used_s(ABOUT)) == (None, 0.0)
    async with kept.turn(ABOUT), kept.turn(ABOUT):
        pass
