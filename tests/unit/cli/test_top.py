"""``astra-mesh top`` with a stub in place of the client."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console
from typer.testing import CliRunner

from astra_mesh import client
from astra_mesh.cli import top
from astra_mesh.cli.app import app
from astra_mesh.cli.peer import show_event
from astra_mesh.cli.top import Happened, picture
from astra_mesh.wire.messages import Event, RequestId, RequestNews, Task
from tests.unit.cli.stub import StubMesh


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 120 columns gets."""
    stream = io.StringIO()
    monkeypatch.setattr(top, "out", Console(file=stream, force_terminal=True, width=120))
    return stream


def test_the_first_frame_is_there_before_anything_is_looked_for(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    stub = StubMesh()

    def connect(address: str | None = None, *, peers: Sequence[str] = ()) -> Any:
        seen.append(screen.getvalue())
        return stub.connect(address, peers=peers)

    monkeypatch.setattr(client, "connect", connect)
    result = CliRunner().invoke(app, ["top", "-n", "2", "--interval", "0.2"])
    assert result.exit_code == 0, result.output
    assert "looking for peers" in seen[0]
    last = screen.getvalue()[len(seen[0]) :]
    assert "looking for peers" not in last
    assert "here (asked)" in last
    assert "request started" in last
    assert stub.closed


def test_as_json_nothing_but_documents_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "connect", StubMesh().connect)
    result = CliRunner().invoke(app, ["top", "--json", "-n", "1"])
    assert result.exit_code == 0
    assert [one["name"] for one in json.loads(result.stdout.splitlines()[0])["peers"]] == [
        "here",
        "there",
    ]
    assert result.stderr == ""


RUNNING = RequestNews(
    key=1, task=Task.GENERATE, model="toy", took_s=1.5, new_tokens=14, peers=["a"]
)
OVER = RequestNews(
    key=2,
    task=Task.CLASSIFY,
    model="look",
    took_s=0.25,
    peers=["a", "b", "c"],
    sent_bytes=3 * 1024,
    notes=["2 of 6 parts came too late\x1b[2J"],
    outcome="answered",
)


def event(about: RequestNews, kind: str = "request-news") -> Event:
    return Event(request=RequestId(1), kind=kind, text=about.outcome, about=about)


def frame(happened: Happened, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(picture([], happened))
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def test_each_request_has_its_time_tokens_bytes_peers_and_notes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1_000_000.0]
    monkeypatch.setattr("astra_mesh.cli.top.time.time", lambda: clock[0])
    happened = Happened()
    happened.take(event(replace(RUNNING, took_s=0.0, new_tokens=0), "request-started"))
    clock[0] += 1.5
    happened.take(event(RUNNING))
    happened.take(event(OVER, "request-ended"))
    happened.take(Event(request=RequestId(1), kind="peer-left", name="d", text="it said goodbye"))
    clock[0] += 2.0
    text = frame(happened)
    assert "generate with toy: 3.50 s so far, 14 new tokens, on a\n" in text
    assert "classify with look: answered, took 250 ms, 3.0 KiB sent, on a, b and c\n" in text
    assert "note: 2 of 6 parts came too late [2J" in text
    assert "peer left  d it said goodbye" in text
    assert "request" not in text.partition("what happened")[2], "they are told above"
    happened.take(event(replace(RUNNING, took_s=4.0, outcome="cancelled"), "request-ended"))
    clock[0] += 60.0
    assert "generate with toy: cancelled, took 4.00 s, 14 new tokens, on a\n" in frame(happened)


def test_a_long_line_of_a_request_goes_on_beside_its_clock() -> None:
    happened = Happened()
    happened.take(event(replace(OVER, outcome="no peer " * 20)))
    lines = frame(happened).partition("requests\n")[2].splitlines()
    assert len(lines) > 2
    assert all(line.startswith(" " * 10) for line in lines[1:])


def test_of_many_requests_those_that_run_are_kept() -> None:
    happened = Happened()
    happened.take(event(RUNNING))
    for key in range(2, 30):
        happened.take(event(replace(OVER, key=key)))
    assert len(happened.requests) == 8
    assert list(happened.requests) == [1, *range(23, 30)]


def test_a_running_peer_says_once_what_a_request_cost(capsys: pytest.CaptureFixture[str]) -> None:
    show_event(event(RUNNING), as_json=False)
    assert capsys.readouterr().out == ""
    show_event(event(OVER, "request-ended"), as_json=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("request ended  classify with look: answered, took 250 ms, 3.0 KiB")
    assert "; 2 of 6 parts came too late" in line
    show_event(event(OVER, "request-ended"), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["event"]["about"]["sent_bytes"] == 3 * 1024
