"""The commands as processes, with real peers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from astra_mesh.bundle import write_manifest
from astra_mesh.cli import completing
from astra_mesh.cli.app import app
from astra_mesh.cli.options import elsewhere_names
from astra_mesh.quant.codebook import load_codebook
from tests.forks import python
from tests.integration.mesh_fixtures import picture
from tests.timings import patient

START_S = patient(40.0)  # a process that imports torch on a busy core

pytestmark = [
    pytest.mark.timeout(240),  # some start several, one after the other
    pytest.mark.usefixtures("forks"),
]


@pytest.fixture(autouse=True)
def _environment(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(models))
    monkeypatch.setenv("COLUMNS", "120")


def call(*arguments: str, status: int = 0) -> Result:
    """The command inside this process, which has torch already."""
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == status, found.output
    return found


def spawn(
    *arguments: str, status: int = 0, by: Sequence[str] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    found = subprocess.run(
        [*by, "-m", "astra_mesh", *arguments],
        capture_output=True,
        text=True,
        timeout=2 * START_S,
        check=False,
    )
    assert found.returncode == status, found.stderr
    assert "Traceback" not in found.stderr
    return found


@pytest.fixture(scope="module", autouse=True)
def _uvloop_started() -> None:
    """libuv opens a pipe for signals with the first loop of a process and keeps it."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()


@contextmanager
def running_peer(tmp_path: Path, *options: str) -> Iterator[tuple[subprocess.Popen, dict]]:
    """``astra-mesh peer`` and its first line."""
    output = tmp_path / "output"
    with output.open("w") as file:
        fixed = ("peer", "--json", "--port", "0", "--threads", "1", "--no-discovery")
        models = ("--model", "words", "--model", "pictures")
        process = subprocess.Popen(
            [*python(), "-m", "astra_mesh", *fixed, *models, *options],
            stdout=file,
            stdin=subprocess.PIPE,
        )
    try:
        deadline = time.monotonic() + START_S
        while not output.read_text().endswith("\n"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, json.loads(output.read_text().splitlines()[0])
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_peer_is_found_asked_and_ended(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    with running_peer(tmp_path, "--name", "kitchen") as (process, started):
        assert started["type"] == "started"
        assert sorted(started["models"]) == ["pictures", "words"]
        (document,) = lines(call("peers", "--json").stdout)
        assert [one["name"] for one in document["peers"]] == ["kitchen"]
        (document,) = lines(call("classify", "pictures", str(photo), "--json").stdout)
        assert len(document["labels"]) == 5
        missing = call("run", "absent", "Hello", "--json", status=2)
        assert lines(missing.stdout)[0]["error"]["code"] == "unknown-model"
        process.send_signal(signal.SIGINT)
        assert process.wait(patient(10.0)) == 0
    events = [one["event"]["kind"] for one in lines((tmp_path / "output").read_text())[1:]]
    assert events[:2] == ["request-started", "request-ended"]
    assert not list(Path(os.environ["XDG_STATE_HOME"]).glob("astra-mesh/running/*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_service_manager_and_a_closed_terminal_end_a_peer_too(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running_peer(tmp_path) as (process, _):
        process.send_signal(number)
        assert process.wait(patient(10.0)) == 0  # it said goodbye


def test_a_page_for_phones_is_drawn_on_a_terminal() -> None:
    master, terminal = os.openpty()
    options = ("--lan", "--api-port", "0", "--port", "0", "--threads", "1", "--no-discovery")
    with subprocess.Popen(
        [sys.executable, "-m", "astra_mesh", "peer", *options, "--model", "words"],
        stdout=terminal,
    ) as process:
        try:
            os.close(terminal)
            said = b""
            while b"Ctrl-C" not in said:
                said += os.read(master, 1 << 16)
            before, _, drawn = said.decode().partition("scanned by a phone")
            assert "#token=" in before
            assert drawn.count("\u2584") > 50, "half blocks"
            process.send_signal(signal.SIGINT)
            assert process.wait(patient(10.0)) == 0
        finally:
            process.kill()
            os.close(master)


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_peer_whose_output_nobody_reads_any_more_goes_on(form: tuple[str, ...]) -> None:
    options = ("--port", "0", "--threads", "1", "--no-discovery", "--no-api", "--model", "words")
    with subprocess.Popen(
        [*python(), "-m", "astra_mesh", "peer", *form, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            while (line := process.stdout.readline()) and "started" not in line:
                if "Ctrl-C" in line:
                    break
            process.stdout.close()
            for _ in range(2):  # each is two events
                call("run", "words", "w1 w2", "-n", "1")
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert process.stderr.read().split() == ["leaving"]
            assert process.wait(patient(10.0)) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("command", [("peers",), ("run", "words", "w1 w2"), ("pair", "--list")])
def test_who_asks_a_peer_of_this_machine_waits_for_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Its import takes seconds on a small board."""
    with running_peer(tmp_path):
        monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
        imported = {line.rpartition("|")[2].strip() for line in spawn(*command).stderr.splitlines()}
    assert "astra_mesh.cli.app" in imported
    assert "torch" not in imported


@pytest.mark.parametrize("command", ["list", "verify"])
def test_who_lists_or_verifies_models_waits_for_no_torch(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    folder = shutil.copytree(models / "words", tmp_path / "words")
    write_manifest(folder)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    found = spawn("models", command, *([] if command == "list" else [str(folder)]))
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "words" in found.stdout
    assert command != "list" or "vq 8/16" in found.stdout
    assert "astra_mesh.cli.models" in imported
    assert "torch" not in imported


def test_a_peer_ends_with_its_standard_input_where_asked(tmp_path: Path) -> None:
    with running_peer(tmp_path, "--stop-with-stdin") as (process, _):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(patient(10.0)) == 0


def shape(text: str) -> list[str]:
    """What a peer says first, without what differs from run to run."""
    text = re.sub(r"\b[0-9a-f]{8}\b", "ID", text)
    return re.sub(r"(models +).*", r"\1NAMES", re.sub(r":\d+\b", ":PORT", text)).splitlines()


def test_a_peer_says_first_what_the_document_shows(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    command, _, said = page.split("```\n$ astra-mesh ")[1].split("```")[0].partition("\n")
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "astra_mesh", *shlex.split(command), "--port", "0"],
            stdout=file,
        )
    try:
        deadline = time.monotonic() + START_S
        while "Ctrl-C" not in output.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert shape(output.read_text()) == shape(said)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = ("--port", port, "--listen", "127.0.0.1", "--no-discovery")
        found = spawn("peer", *arguments, status=1, by=python())
    assert f"error: port {port}" in found.stderr


def test_a_port_of_an_own_peer_is_told_from_others(tmp_path: Path) -> None:
    with running_peer(tmp_path, "--name", "kitchen", "--api-port", "0") as (_, started):
        fixed = ("peer", "--no-discovery", "--listen", "127.0.0.1")
        found = spawn(*fixed, "--port", str(started["port"]), status=1, by=python())
        assert "is that of kitchen, an astra-mesh peer which runs here already" in found.stderr
        api = started["api"].removesuffix("/v1")
        port = api.rpartition(":")[2]
        found = spawn(*fixed, "--port", "0", "--api-port", port, status=1, by=python())
        assert f"has its API and page at {api}/" in found.stderr
        assert "--api-port 0" in found.stderr


def test_nobody_at_the_address() -> None:
    found = call("run", "words", "Hello", "--connect", "127.0.0.1:1", status=1)
    assert "error: no peer at 127.0.0.1:1" in found.stderr


def test_help_is_quick() -> None:
    began = time.monotonic()
    spawn("--help")
    assert time.monotonic() - began < patient(4.0)  # 0.4 s on an idle core


def test_models_fit_and_eval(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for number in range(24):
        (data / f"{number}.png").write_bytes(picture(number))
    book = tmp_path / "book.safetensors"
    small = ("--rates", "8,16", "--groups", "2", "--codewords", "16", "--history", "1")
    call("fit", "pictures", "--data", str(data), *small, "--output", str(book), "--json")
    fitted = load_codebook(book)
    assert (fitted.history, list(fitted.rates.values()), fitted.groups) == (1, [8, 16], (2, 2))
    found = call("eval", "pictures", "--data", str(data), "--limit", "2", "--peers", "2", "--json")
    (document,) = lines(found.stdout)
    assert {"vq", "fp32"} <= {row["codec"] for row in document["rows"]}
    table = call("eval", "pictures", "--data", str(data), "--limit", "2", "--codec", "vq").stdout
    assert "one device" in table
    (listed,) = lines(call("models", "--json").stdout)
    assert {"words", "pictures", "feelings"} <= {row["name"] for row in listed["models"]}
    assert "8/16" in call("models").stdout
    no_data = call("fit", "pictures", "--data", str(tmp_path / "absent"), status=2)
    assert "error: there is no file or folder" in no_data.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_demonstration_answers_and_leaves_nothing(tmp_path: Path, models: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    found = spawn("demo", "--photo", str(photo), "--json")
    (document,) = lines(found.stdout)
    text, label = document["answers"]
    for one in (text, label):
        assert len(one["mesh"]["report"]["peers"]) >= 3
        assert len(one["one_device"]["report"]["peers"]) == 1
    assert text["mesh"]["answer"]


def test_models_of_other_peers_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert elsewhere_names("") == []  # no peer runs
    with running_peer(tmp_path):
        assert elsewhere_names("") == []  # it has no others, and its models are here
        monkeypatch.setenv("ASTRA_MESH_MODELS", str(tmp_path / "none"))
        # Where it answers too late, nothing is completed.
        monkeypatch.setattr(completing, "_ASK_S", patient(5.0))
        assert elsewhere_names("w") == ["words"]
        monkeypatch.setattr(completing, "_ASK_S", 0.0)
        assert elsewhere_names("w") == []


SLOW_IMPORT = """
import asyncio, sys, time
from astra_mesh.cli import main
from astra_mesh.client import finding

async def slow(target):
    print("looking", flush=True)
    await asyncio.to_thread(time.sleep, 60)  # as torch is imported

finding._make_embedded = slow
sys.argv = ["astra-mesh", "models", "pull", "absent"]
main()
"""


def test_a_pull_that_is_interrupted_ends_at_once() -> None:
    with subprocess.Popen(
        [*python(), "-c", SLOW_IMPORT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"looking\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=patient(10.0))
    assert process.returncode == 130
    assert b"Traceback" not in said
