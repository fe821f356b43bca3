"""Delay and jitter on cables, without `tc netem`: starting and telling :mod:`tools.lab.hold`."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.lab.system import LabError, LabUnavailableError

HOLD = Path(__file__).with_name("hold.py")
START_S = 10.0  # seen: 0.05 s; 1 s on a loaded machine


class DelayLine:
    """The program that holds the frames of some cables; ``process`` is for its owner to end.

    Args:
        entry: the start of a command line that leads into the switch's namespace.
        cables: their numbers. Interfaces ``near<N>`` and ``far<N>`` are there afterwards.
        seed: of the jitter.

    Raises:
        LabUnavailableError: TAP interfaces cannot be made here.
    """

    def __init__(self, entry: Sequence[str], cables: Sequence[int], seed: int) -> None:
        argv = [sys.executable, "-I", "-S", str(HOLD), str(seed), *map(str, cables)]
        self.cables = tuple(cables)
        self.process = subprocess.Popen(
            [*entry, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        """Return when the interfaces are there."""
        output, errors = self.process.stdout, self.process.stderr
        assert output is not None
        assert errors is not None
        ready, _, _ = select.select([output], [], [], START_S)
        if ready and output.readline() == "ready\n":
            return
        self.process.kill()
        last = errors.read().strip().rpartition("\n")[2] or "no answer"
        raise LabUnavailableError(f"delays need TAP interfaces (/dev/net/tun): {last}")

    def set(self, cable: int, delay_ms: float, jitter_ms: float) -> None:
        """Hold what the device of a cable sends for so long, plus or minus the jitter (uniform).

        Raises:
            LabError: the program is gone, or was not started for this cable.
        """
        if cable not in self.cables:
            raise LabError("this device's cable was made without delay")
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{cable} {delay_ms} {jitter_ms}\n")
            self.process.stdin.flush()
        except OSError as error:
            raise LabError(f"the program that delays frames is gone: {error}") from error
