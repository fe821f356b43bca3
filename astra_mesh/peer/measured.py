"""What this device measured of its models, kept on the disk: the next start need not measure again.

One JSON file for each model and the conditions that its figures hold for. They are a help and
nothing more: a file that is damaged, of other conditions or of another version counts as none, and
a folder that cannot be written is logged once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Final

import msgspec
import torch

from astra_mesh import limits
from astra_mesh._version import __version__
from astra_mesh.families.packed import Packing
from astra_mesh.families.precision import PRECISIONS
from astra_mesh.mesh.files import make_folder, replace_file
from astra_mesh.peer.code_times import CodeTimes
from astra_mesh.peer.config import Wanted
from astra_mesh.quant.codebook import Codebook
from astra_mesh.wire.messages import ModelId, Timing

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

_CPU: Final = Path("/proc/cpuinfo")
_BOARD: Final = Path("/proc/device-tree/model")  # "Raspberry Pi 4 Model B Rev 1.2"
_CPU_FIELDS: Final = ("model name", "CPU implementer", "CPU part", "Hardware")
_CPU_CHARS: Final = 500
_SUFFIX: Final = ".json"
_LOCK: Final = ".lock"
_SLOWEST_S: Final = 1000.0  # a figure above it is none
_MOST_SPEEDUP: Final = 16.0  # no number format is so much faster: the device was disturbed
_LOOK_S: Final = 0.05  # between two tries for the lock


class Conditions(msgspec.Struct, frozen=True):
    """What the figures of a model hold for."""

    model: ModelId
    wanted: str  # number format, "auto" or one
    threads: int
    cores: float
    cpu: str
    tables: bool = True  # whether codes may be decoded by them
    torch: str = str(torch.__version__)
    software: str = __version__
    method: int = 4  # of measuring: another one than before for each change of what figures mean

    @property
    def key(self) -> str:
        """The name of their file."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


class Figures(msgspec.Struct, frozen=True):
    """What was measured of a model."""

    precision: str
    speedup: float
    divergence: float
    packing: Packing
    timing: Timing  # without the turns of the compute thread
    codes: dict[str, CodeTimes] = {}  # by the id of the codebook

    def times_of(self, book: Codebook) -> CodeTimes | None:
        """Of one codebook; None: it was not measured, or says nothing that can be used."""
        times = self.codes.get(book.id)
        if times is None:
            return None
        every = (times.encode_s, times.decode_s, times.project_s)
        fits = all(tuple(found) == book.able for found in (*every, times.decoder))
        seconds = [one for found in every for one in found.values()]
        known = set(times.decoder.values()) <= {"table", "project"}
        return times if fits and known and all(0 < one <= _SLOWEST_S for one in seconds) else None


class _File(msgspec.Struct, frozen=True):
    conditions: Conditions
    figures: Figures


class Measured:
    """The figures of this user's models on this device.

    Args:
        folder: where they are kept; None: nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._complained = False

    def read(self, about: Conditions) -> Figures | None:
        """What is known; None: nothing that can be used. Blocks."""
        if self._folder is None:
            return None
        path = self._path(about)
        try:
            with path.open("rb") as stream:
                data = stream.read(limits.MEASURED_BYTES + 1)
            found = msgspec.json.decode(data, type=_File)
            if len(data) > limits.MEASURED_BYTES or found.conditions != about:
                return None
            _check(found.figures, about)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            log.info("what was measured of %s is not used: %s", about.model[:12], error)
            return None
        with suppress(OSError):
            os.utime(path)  # the models used last are loaded first
        return found.figures

    def write(self, about: Conditions, figures: Figures) -> None:
        """Keep it, as a whole or not at all; the oldest files go. Blocks."""
        if self._folder is None:
            return
        try:
            make_folder(self._folder)
            replace_file(self._path(about), msgspec.json.encode(_File(about, figures)))
            self._drop_old()
        except OSError as error:
            if not self._complained:
                log.warning("measurements are not kept, so each start makes them anew: %s", error)
            self._complained = True

    def forget(self, about: Conditions) -> None:
        """The next start chooses the number format and measures anew. Blocks."""
        if self._folder is not None:
            with suppress(OSError):
                self._path(about).unlink()

    def used_s(self, about: Conditions) -> float:
        """When it was last used, seconds since 1970; 0: never. Blocks."""
        if self._folder is None:
            return 0.0
        try:
            return self._path(about).stat().st_mtime
        except OSError:
            return 0.0

    @asynccontextmanager
    async def turn(self, about: Conditions, *, needed: bool = True) -> AsyncIterator[None]:
        """Alone in measuring this: a second peer of the same device waits, and then reads what the
        first one found. Not for ever: then both measure. Nothing at all if it is not ``needed``.
        """
        end, lock = time.monotonic() + limits.MEASURE_TURN_S, None
        while needed:
            try:
                lock = await asyncio.to_thread(self._lock, about)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    break
            await asyncio.sleep(_LOOK_S)
        try:
            yield
        finally:
            if lock is not None:
                lock.close()

    def _lock(self, about: Conditions) -> IO[bytes] | None:
        """The lock, until it is closed; None where there is none to have.

        Raises:
            BlockingIOError: Another peer has it.
        """
        if self._folder is None or sys.platform == "win32":
            return None
        lock = None
        try:
            make_folder(self._folder)
            lock = self._path(about).with_suffix(_LOCK).open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # also a file system without locks
            if lock is not None:
                lock.close()
            if isinstance(error, BlockingIOError):
                raise
            return None
        return lock

    def _path(self, about: Conditions) -> Path:
        assert self._folder is not None
        return self._folder / f"{about.key}{_SUFFIX}"

    def _drop_old(self) -> None:
        assert self._folder is not None
        for suffix in (_SUFFIX, _LOCK):
            found = []
            for path in self._folder.glob(f"*{suffix}"):
                with suppress(OSError):
                    found.append((path.stat().st_mtime, path))
            for _, path in sorted(found, reverse=True)[limits.MEASURED_FILES :]:
                path.unlink(missing_ok=True)


def conditions(model: ModelId, wanted: Wanted, cores: float, tables: bool = True) -> Conditions:
    """Of this process; in the compute thread, whose number of threads counts. Blocks."""
    return Conditions(model, wanted, torch.get_num_threads(), cores, cpu(), tables)


def cpu() -> str:
    """The processor as the system calls it, and the instructions that torch uses on it."""
    found = [torch.backends.cpu.get_cpu_capability(), *_board(), *_processor()]
    return " / ".join(dict.fromkeys(found))[:_CPU_CHARS]


def _board() -> Iterator[str]:
    with suppress(OSError):
        yield _BOARD.read_text(errors="replace").strip("\0\n ")


def _processor() -> Iterator[str]:
    yield platform.machine()
    try:
        lines = _CPU.read_text(errors="replace").splitlines()
    except OSError:
        yield platform.processor()
        return
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() in _CPU_FIELDS:
            yield value.strip()


def _check(figures: Figures, about: Conditions) -> None:
    """ValueError for figures that cannot be."""
    times = msgspec.structs.astuple(figures.timing)
    if not all(math.isfinite(one) and 0 <= one <= _SLOWEST_S for one in times):
        raise ValueError("a time that cannot be")
    if figures.precision not in PRECISIONS or about.wanted not in ("auto", figures.precision):
        raise ValueError("another number format")
    if not (0 <= figures.divergence < math.inf and 0 < figures.speedup <= _MOST_SPEEDUP):
        raise ValueError("a number that cannot be")
