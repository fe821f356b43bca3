"""Fixtures and checks for every test.

Automatic for each test:

- HOME and the XDG folders are empty temporary ones; nothing of the user's is read or written.
- A test that leaves a task, thread, descriptor or child process behind fails (tests/hygiene.py).
- In tests/unit and tests/integration, astra_mesh code that makes a blocking call inside a running
  event loop fails with ``BlockingError``.
- A test marked ``lab`` is skipped, with the reason, where no network namespaces can be made.

``--kind`` takes some of the tests, for `make test`: see :func:`kind_of`.
"""

from __future__ import annotations

import os

# Before anything imports torch: test machines are shared, and OpenMP threads that spin while they
# wait slow everything else down. One thread also makes results repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import asyncio
import inspect
import itertools
import signal
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import typer.main
import typer.testing
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from tests.forks import serving
from tests.hygiene import leftover_tasks, leftovers, snapshot
from tools.lab.network import unavailable_reason

# A suite started in the background, or by nohup, inherits ignored signals; programs under test need
# theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

REPO_ROOT = Path(__file__).resolve().parents[1]
TESTS = REPO_ROOT / "tests"
LOOP_CHECKED = (TESTS / "unit", TESTS / "integration")

# Imports read files wherever they happen, and torch imports some of its parts on first use.
MAY_BLOCK = (
    ("<frozen importlib._bootstrap>", {"_find_and_load"}),
    ("<frozen importlib._bootstrap_external>", {"get_data", "exec_module"}),
    ("concurrent/futures/thread.py", {"shutdown"}),  # only waits for work that was cancelled
    ("astra_mesh/engine/compute.py", {"close"}),  # likewise
)

FAILED = pytest.StashKey[bool]()

# On a shared machine one example may take long for no fault of the code.
settings.register_profile(
    "shared", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")


# --- which tests run ------------------------------------------------------------------------------

KINDS = ("beside", "faults", "browsers", "alone")
_HOUSES = (
    "test_nemesis.py",
    "test_pairing.py",
    "test_peers.py",
    "test_scenarios.py",
    "test_speed.py",
)


def kind_of(path: Path) -> str:
    """Tests of a kind may run beside each other: single parts and peers on loopback; peers of the
    laboratory; browsers. What measures is to have the machine to itself."""
    if path.parent == TESTS / "browser":
        return "browsers"
    if path.parent == TESTS / "lab":
        return "faults" if path.name in _HOUSES else "alone"
    return "beside"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kind", choices=KINDS, help="only tests of this kind; `make test` runs each")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules of other kinds are not even imported: that takes longer than many a test."""
    kind = config.getoption("--kind")
    others = collection_path.name.startswith("test_") and kind != kind_of(collection_path)
    return True if kind and collection_path.suffix == ".py" and others else None


# --- data -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real weights and data: $ASTRA_MESH_DATA, or shared/data beside the repository."""
    chosen = os.environ.get("ASTRA_MESH_DATA")
    folder = Path(chosen) if chosen else REPO_ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder} (set ASTRA_MESH_DATA)")
    return folder


# --- the user's environment -----------------------------------------------------------------------


def _point_home_to(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    patch.setenv("HOME", str(folder))
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))


@pytest.fixture(scope="session", autouse=True)
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Path]]:
    """New home folders without end; the first is for fixtures that live longer than one test."""
    base = tmp_path_factory.mktemp("homes")
    homes = (base / str(number) for number in itertools.count())
    with pytest.MonkeyPatch.context() as patch:
        _point_home_to(next(homes), patch)
        for name in [name for name in os.environ if name.startswith("ASTRA_MESH_")]:
            if name not in ("ASTRA_MESH_DATA", "ASTRA_MESH_TIME_SCALE"):
                patch.delenv(name)
        yield homes


@pytest.fixture
def home(_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty home folder of this test; child processes inherit it through the environment."""
    folder = next(_homes)
    _point_home_to(folder, monkeypatch)
    return folder


# --- programs -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def forks(_homes: Iterator[Path]) -> Iterator[None]:
    """Makes programs started with :func:`tests.forks.python` quick."""
    with serving():
        yield


@pytest.fixture(scope="session", autouse=True)
def _commands_made_once() -> Iterator[None]:
    """``CliRunner`` makes all commands of an app at each call, which takes longer than most do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield


# --- repeatable arithmetic ------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Peers set the number of torch's threads, and sums depend on it in the last place."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


# --- nothing is left behind, nothing blocks -------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and call.excinfo is not None:
        item.stash[FAILED] = True  # a failing test need not tidy up; its own error is the news
    return report


def _is_async(item: pytest.Item) -> bool:
    function = getattr(item, "obj", None)
    return item.get_closest_marker("asyncio") is not None or inspect.iscoroutinefunction(function)


@pytest.fixture(scope="session", autouse=True)
def _uvloop_begun() -> None:
    """Its first loop opens a pipe for signals that the process keeps."""
    with suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _process_left_clean(request: pytest.FixtureRequest, home: Path) -> Iterator[None]:
    before = snapshot()
    yield
    if request.node.stash.get(FAILED, False):
        return
    if left := leftovers(before):
        pytest.fail("the test left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _loop_watched(request: pytest.FixtureRequest, _process_left_clean: None) -> None:
    # Set up after the snapshot, so torn down before it: descriptors are counted without the loop.
    if _is_async(request.node):
        request.getfixturevalue("_tasks_left_clean")
    if any(request.node.path.is_relative_to(folder) for folder in LOOP_CHECKED):
        request.getfixturevalue("_blocking_calls_fail")


@pytest.fixture
async def _tasks_left_clean(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    before = set(asyncio.all_tasks())
    yield
    if request.node.stash.get(FAILED, False):
        return
    if left := await leftover_tasks(before):
        pytest.fail("the test left behind: " + "; ".join(left), pytrace=False)


@cache
def _detector() -> BlockBuster:
    detector = BlockBuster("astra_mesh")
    for function in detector.functions.values():
        for filename, names in MAY_BLOCK:
            function.can_block_in(filename, names)
    return detector


@pytest.fixture
def _blocking_calls_fail() -> Iterator[None]:
    detector = _detector()
    detector.activate()
    yield
    detector.deactivate()


# --- laboratory -----------------------------------------------------------------------------------


@cache
def _lab_missing() -> str | None:
    return unavailable_reason()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("lab") is not None and (reason := _lab_missing()):
        pytest.skip(f"no laboratory: {reason}")
