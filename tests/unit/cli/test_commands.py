"""The commands with a stub in place of the client: what they print, where, and how they end."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console
from typer.testing import CliRunner, Result

from astra_mesh import client
from astra_mesh.bundle.image import FORMATS
from astra_mesh.cli import ask
from astra_mesh.cli.app import app
from astra_mesh.cli.options import Late, Use, plan_options
from astra_mesh.cli.report import report_block, report_lines
from astra_mesh.errors import (
    AstraMeshError,
    BadBundleError,
    BadImageError,
    CalibrationError,
    DeadlineError,
    InputError,
    InternalError,
    NoPeerError,
    PairingError,
    PromptTooLongError,
    UnknownModelError,
    UnsupportedModelError,
    WrongTaskError,
)
from astra_mesh.naming import Names
from astra_mesh.wire.messages import CodebookId, CodebookOffer, PeerInfo
from tests.unit.cli.stub import ME, OTHER, StubMesh, planned, report


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> StubMesh:
    stub = StubMesh()
    monkeypatch.setattr(client, "connect", stub.connect)
    monkeypatch.setenv("COLUMNS", "100")
    return stub


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def lines(result: Result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- run ------------------------------------------------------------------------------------------


def test_run_streams_the_text_to_stdout_and_reports_on_stderr(mesh: StubMesh) -> None:
    result = call("run", "toy", "Hello", "-n", "9", "--use", "all", "--rate", "32", "--seed", "3")
    assert result.exit_code == 0
    assert result.stdout == "Once upon a [31m time\n"
    for part in (
        "2 peers, here answered",
        "32 bits per token and block (vq)",
        "there → here 2.0 KiB",
        "predicted 10.0 ms, took 12.0 ms; one device predicted 20.0 ms",
        "4 new tokens",
        "plan: shortest predicted time",
        "note: a note",
    ):
        assert part in result.stderr
    assert "first toy is loaded by here, there" in result.stderr  # no terminal, so it is a line
    assert mesh.asked["max_new_tokens"] == 9
    assert (mesh.asked["use"], mesh.asked["rate"], mesh.asked["seed"]) == ("all", 32, 3)
    assert mesh.closed


def test_run_reads_standard_input_and_names_addresses(mesh: StubMesh) -> None:
    result = call("run", "toy", "-", "--connect", "h:1", "--peer", "a:2", "--peer", "b", stdin="Hi")
    assert result.exit_code == 0
    assert mesh.asked["prompt"] == "Hi"
    assert (mesh.asked["address"], mesh.asked["peers"]) == ("h:1", ["a:2", "b"])


async def test_whoever_waits_hears_who_loads_the_model(
    mesh: StubMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tabs load it in the background, and for one device the others need not."""
    found: Any = mesh
    every, solo = (plan_options(use, 0, "", 0, None, Late.WAIT) for use in (Use.ALL, Use.SOLO))
    cold = "asking here; first toy is loaded by"
    assert await ask._what_happens(found, "toy", every) == f"{cold} here, there"
    assert await ask._what_happens(found, "toy", solo) == f"{cold} here"
    assert await ask._what_happens(found, "other", every) == "asking here"
    here, there = await mesh.peers()

    async def with_tab() -> list[PeerInfo]:
        return [here, replace(there, via=here.peer)]

    monkeypatch.setattr(mesh, "peers", with_tab)
    assert await ask._what_happens(found, "toy", every) == f"{cold} here"


async def test_a_hint_where_a_codebook_is_missing(mesh: StubMesh) -> None:
    found = await mesh.peers()
    model = found[0].models[0].id
    assert ask.without_codebook(found, model) == ""
    book = CodebookOffer(id=CodebookId("d" * 64), codec="vq", rates=[16], default_rate=16)
    offer = replace(found[1].models[0], codebooks=[book])
    found[1] = replace(found[1], models=[offer])
    assert ask.without_codebook(found, model) == (
        f"{found[0].name} without the codebook of toy that others have: there, "
        "`astra-mesh models pull toy` gets it"
    )
    assert ask.without_codebook(found[1:], model) == ""


def test_run_as_json_lines(mesh: StubMesh) -> None:
    result = call("run", "toy", "Hello", "--json")
    *tokens, last = lines(result)
    assert [one["text"] for one in tokens] == mesh.texts
    assert last["type"] == "report"
    assert last["text"] == "".join(mesh.texts)
    assert last["report"]["peers"][0]["sent_bytes"] == {"a" * 64: 2048}
    assert last["planned"]["names"]["b" * 64] == "there"


def test_alone_is_an_answer_and_a_hint(mesh: StubMesh) -> None:
    mesh.alone()
    result = call("run", "toy", "Hello")
    assert result.exit_code == 0
    assert "alone: no other peer found" in result.stderr
    assert "here alone" in result.stderr
    assert "bits per token" not in result.stderr
    assert "alone:" not in call("run", "toy", "Hello", "--use", "solo").stderr
    mesh.near = ["pi"]
    assert "alone: pi is near, but not paired" in call("run", "toy", "Hello").stderr


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PromptTooLongError("300 tokens, 256 fit"), 2),
        (BadImageError("no image"), 2),
        (UnknownModelError("no such model"), 2),
        (CalibrationError("too little data"), 2),
        (NoPeerError("nobody there"), 1),
        (DeadlineError("too late"), 1),
        (BadBundleError("a file is damaged"), 1),
        (UnsupportedModelError("another family"), 2),
        (PairingError("nobody came"), 1),
        (InternalError("a fault"), 1),
    ],
)
def test_an_error_is_one_line_and_a_status(
    mesh: StubMesh, error: AstraMeshError, status: int
) -> None:
    mesh.error = error
    result = call("run", "toy", "Hello")
    assert result.exit_code == status
    assert result.stdout == ""
    assert f"error: {error.message}" in result.stderr
    as_json = call("run", "toy", "Hello", "--json")
    assert as_json.exit_code == status
    assert lines(as_json) == [{"error": {"code": error.code, "message": error.message}}]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError()])
def test_interruptions_are_quiet(
    mesh: StubMesh, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(mesh, "generate", interrupted)
    result = call("run", "toy", "Hello")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "Traceback" not in result.output
    assert "Error" not in result.output


def test_terminal_codes_in_an_error_do_nothing(mesh: StubMesh) -> None:
    mesh.error = UnknownModelError("bad \x1b[2J text [bold]")
    assert "error: bad  [2J text [bold]" in call("run", "toy", "Hello").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "toy", "Hello", "--use", "some"),
        ("run", "toy", "Hello", "-n", "0"),
        ("fit", "toy"),
        ("nonsense",),
    ],
)
def test_wrong_usage_has_status_2(arguments: tuple[str, ...]) -> None:
    assert call(*arguments).exit_code == 2


# --- classify, embed, peers -----------------------------------------------------------------------


def test_classify_takes_a_file_or_with_text_a_text(mesh: StubMesh, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"data")
    result = call("classify", "toy", str(photo), "--top", "3")
    assert "75.0%  [bold]cat[/bold]" in result.stdout
    assert (mesh.asked["what"], mesh.asked["top"]) == (photo, 3)
    call("classify", "toy", str(photo), "--text")
    assert mesh.asked["what"] == str(photo)


def test_classify_without_the_file_says_how_to_label_a_text(mesh: StubMesh) -> None:
    result = call("classify", "toy", "no such file")
    assert result.exit_code == 2
    assert "add --text" in result.stderr


def test_classify_of_a_folder_says_what_it_takes(mesh: StubMesh, tmp_path: Path) -> None:
    result = call("classify", "toy", str(tmp_path))
    assert result.exit_code == 2
    assert "is a folder, and classify takes one picture: a file in JPEG, PNG" in result.stderr
    assert all(one in result.stderr.upper() for one in FORMATS)
    assert call("classify", "toy", "x" * 5000).exit_code == 2


def test_a_picture_for_a_model_of_texts_is_told_how_to_label_a_text(
    mesh: StubMesh, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"data")
    mesh.error = InputError("film reads text: give a text, not an image")
    result = call("classify", "film", str(photo))
    assert result.exit_code == 2
    assert "not an image; a text: `astra-mesh classify film --text TEXT`" in result.stderr
    mesh.error = WrongTaskError("this vit model cannot embed")
    assert "--text" not in call("classify", "film", str(photo)).stderr


def test_classify_as_json_and_its_error(mesh: StubMesh) -> None:
    (document,) = lines(call("classify", "toy", "words", "--text", "--json"))
    assert document["labels"] == [{"label": "[bold]cat[/bold]", "probability": 0.75}]
    mesh.error = BadImageError("no image")
    assert call("classify", "toy", "words", "--text").exit_code == 2


def test_peers_says_where_the_peer_that_is_listed_is_its_own(mesh: StubMesh) -> None:
    assert "no peer runs" not in call("peers").stderr
    mesh.embedded = True
    told = "no peer runs on this machine: here is this command's own"
    assert told in call("peers").stderr
    assert told in call("peers", "--json").stderr


def test_embed_prints_or_saves(mesh: StubMesh, tmp_path: Path) -> None:
    result = call("embed", "toy", "words", "--no-normalize")
    assert result.stdout.startswith("8 numbers: 0.0000 1.0000")
    assert mesh.asked["normalize"] is False
    path = tmp_path / "vector.npy"
    assert call("embed", "toy", "words", "-o", str(path)).exit_code == 0
    np.testing.assert_array_equal(np.load(path), np.arange(8, dtype=np.float32))
    (document,) = lines(call("embed", "toy", "words", "--json"))
    assert document["vector"] == list(range(8))
    assert call("embed", "toy", "words", "-o", str(tmp_path / "no" / "such")).exit_code == 2


def test_peers_as_table_and_json(mesh: StubMesh) -> None:
    result = call("peers")
    assert result.exit_code == 0
    for part in ("here (asked)", "there", "aaaaaaaa", "10.0.0.7:7475", "2.1 ms", "94", "2500"):
        assert part in result.stdout
    assert "toy    generate, embed  every peer" in result.stdout
    assert "alone" not in result.stderr
    (document,) = lines(call("peers", "--json"))
    assert [one["name"] for one in document["peers"]] == ["here", "there"]
    mesh.alone()
    assert "alone: no other peer found" in call("peers").stderr
    mesh.near = ["pi", "tv"]
    assert "alone: pi and tv are near, but not paired" in call("peers").stderr


# --- help -----------------------------------------------------------------------------------------

COMMANDS = ("peer", "peers", "demo", "run", "classify", "embed", "fit", "eval", "models")


def test_the_shell_completes_commands() -> None:
    words = {"COMP_WORDS": "astra-mesh mo", "COMP_CWORD": "1"}
    asked = {"_ASTRA_MESH_COMPLETE": "complete_bash", **words}
    result = CliRunner().invoke(app, [], prog_name="astra-mesh", env=asked)
    assert result.stdout.split() == ["models"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert "--json" in result.stdout


def test_the_help_lists_all_commands_and_the_version_is_printed() -> None:
    result = call("--help")
    assert all(f" {command} " in result.stdout for command in COMMANDS)
    assert call("--version").stdout.startswith("astra-mesh 0.")


@pytest.mark.parametrize(("loading_s", "said"), [(2.1, True), (0.01, False)])
def test_a_report_says_how_long_the_model_was_waited_for(loading_s: float, said: bool) -> None:
    found = replace(report([ME], 0), loading_s=loading_s)
    text = list(report_lines(None, found, Names({ME: "here"})))
    assert ("before that 2.10 s until the model was loaded" in text) is said
    assert any("until" in line for line in text) is said


def said(**more: Any) -> list[str]:
    found = replace(report([ME], 0), **more)
    return list(report_lines(None, found, Names({ME: "here"})))


def test_a_report_says_what_lost_peers_cost() -> None:
    text = said(lost_s=8.0, took_s=8.4)
    assert "predicted 10.0 ms, took 12.0 ms after 8.00 s with peers that were lost" in text
    assert "8.40 s in all" in text
    assert not any("lost" in line or "in all" in line for line in said(took_s=8.4))


@pytest.mark.parametrize(
    ("times", "line"),
    [
        ({"new_tokens": 1}, "1 new token, ended by length"),
        ({"new_tokens": 2}, "2 new tokens in 100 ms (20 a second), ended by length"),
        # 13 of 300 came from the last peer, whose time ``total_s`` is.
        (
            {"new_tokens": 300, "tokens_s": 10.0},
            "300 new tokens in 10.00 s (30 a second), ended by length",
        ),
    ],
)
def test_a_report_says_how_fast_new_tokens_came(times: dict[str, Any], line: str) -> None:
    assert line in said(finish="length", **times)


def test_a_peer_without_a_report_is_in_the_table_all_the_same() -> None:
    whole = report([ME, OTHER], 0)
    names: dict[str, str] = {ME: "here", OTHER: "there"}
    shown = StringIO()
    lost = replace(whole, peers=whole.peers[1:])
    Console(width=100, file=shown).print(report_block(planned([ME, OTHER], names), lost))
    (line,) = [x for x in shown.getvalue().splitlines() if x.split()[:1] == ["here"]]
    assert line.split() == ["here", "3", "no", "report"]
