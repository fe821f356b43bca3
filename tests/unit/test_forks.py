"""Forks that stand for Python programs behave as such: status, surroundings, and their end."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from astra_mesh.memory import KEPT_KERNELS
from tests.forks import python
from tests.timings import patient

pytestmark = pytest.mark.usefixtures("forks")


def ran(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload]
        [*python(), "-c", code], capture_output=True, text=True, check=False, **options
    )


def test_status_and_words() -> None:
    done = ran("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert ran("import os, signal; os.kill(os.getpid(), signal.SIGTERM)").returncode == -15


def test_folder_and_environment(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['ONLY'], 'HOME' in os.environ)"
    done = ran(code, cwd=tmp_path, env={"ONLY": "1"})
    assert done.stdout == f"{tmp_path} 1 False\n"


def test_what_imports_add_to_the_environment_stays() -> None:
    """How many kernels oneDNN keeps, which it looks at before its first product."""
    given = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "3"}
    names = ("LRU_CACHE_CAPACITY", *given)
    done = ran(f"import os; print(*(os.environ[name] for name in {names}))", env=given)
    assert done.stdout == f"{KEPT_KERNELS} 3\n"


def test_a_program_whose_asker_is_killed_ends(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    code = f"import os, time; open({str(said)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with subprocess.Popen([*python(), "-c", code]) as asker:
        until = time.monotonic() + patient(30)
        while not (said.exists() and said.read_text()):
            assert time.monotonic() < until
            time.sleep(0.02)
        asker.send_signal(signal.SIGKILL)
    program = Path(f"/proc/{said.read_text()}")
    until = time.monotonic() + patient(5)
    while program.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not program.exists()


def test_askers_that_are_killed_at_once_leave_nothing(tmp_path: Path) -> None:
    """Before or after their program has begun."""
    code = "import time; time.sleep(60)  # of a killed asker"
    for delay in range(12):
        with subprocess.Popen([*python(), "-c", code], cwd=tmp_path) as asker:
            time.sleep(0.004 * delay)
            asker.kill()
    until = time.monotonic() + patient(5)
    while (left := in_folder(tmp_path)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


def in_folder(folder: Path) -> list[Path]:
    """Processes that work there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process)
    return found
