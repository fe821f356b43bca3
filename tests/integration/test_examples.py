"""The examples, run as a person would, against two live peers."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from astra_mesh.peer import Peer
from tests.forks import python
from tests.integration.mesh_fixtures import mesh_of, picture

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture
async def peer(models: Path) -> AsyncIterator[Peer]:
    async with mesh_of(["left", "right"], models) as peers:
        yield peers[-1]


async def run(peer: Peer, name: str, *argv: str) -> list[str]:
    code, out, err = await ended(peer, name, *argv)
    assert code == 0, err
    return out.splitlines()


async def ended(peer: Peer, name: str, *argv: str) -> tuple[int | None, str, str]:
    """Status, output and errors of an example."""
    process = await asyncio.create_subprocess_exec(
        *python(),
        str(EXAMPLES / name),
        *argv,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ
        | {"ASTRA_MESH_PEER": f"127.0.0.1:{peer.port}", "PYTHONPATH": str(EXAMPLES.parent)},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["summarise_folder.py", "/nope"], "there is no folder /nope"),
        (["classify_folder.py", "/nope"], "there is no folder /nope"),
        (["search_notes.py", "/nope", "what", "--model", "words"], "there is no folder /nope"),
        (["search_notes.py", ".", "what", "--model", "words"], "holds no notes"),
        (["summarise_folder.py", "."], "holds no texts: files *.txt"),
        (["classify_folder.py", "empty"], "holds no pictures: files *.jpeg, *.jpg, *.png, *.webp"),
        (["classify_folder.py", ".", "--model", "none"], "error: no model 'none' on this device"),
    ],
)
async def test_what_cannot_be_ends_in_a_sentence(
    peer: Peer, tmp_path: Path, argv: list[str], wanted: str
) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "empty").mkdir()
    places = {".": str(tmp_path), "empty": str(tmp_path / "empty")}
    name, *rest = [places.get(word, word) for word in argv]
    code, _, err = await ended(peer, name, *rest)
    assert code
    assert wanted in err
    assert "Traceback" not in err


async def test_every_text_of_a_folder_is_gone_on_with(peer: Peer, tmp_path: Path) -> None:
    for place in range(5):
        (tmp_path / f"{place}.txt").write_text(f"w{place} w8 w9")
    lines = await run(
        peer, "summarise_folder.py", str(tmp_path), "--model", "words", "--tokens", "4"
    )
    assert [line.split(":")[0] for line in lines] == [f"{place}.txt" for place in range(5)]
    assert all(re.fullmatch(r"\d\.txt: w\d+( w\d+)*", line) for line in lines), lines


async def test_texts_that_cannot_be_gone_on_with_are_named(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "a_folder.txt").mkdir()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "long.txt").write_text("w1 " * 1000)  # the model's context holds fewer
    argv = (str(tmp_path), "--model", "words", "--tokens", "4", "--characters", "5000")
    code, out, err = await ended(peer, "summarise_folder.py", *argv)
    assert (code, out) == (1, "")
    assert "none of the 3 texts" in err
    (tmp_path / "short.txt").write_text("w1 w8 w9")
    code, out, err = await ended(peer, "summarise_folder.py", *argv)
    assert code == 0, err
    assert re.fullmatch(r"short\.txt: w\d+( w\d+)*\n", out)
    assert "a_folder.txt cannot be read: Is a directory" in err
    assert "gone.txt cannot be read: No such file" in err
    assert re.search(r"^long\.txt: .*context", err, re.MULTILINE)
    assert "Traceback" not in err
    code, _, err = await ended(peer, "summarise_folder.py", str(tmp_path), "--model", "none")
    assert code == 1
    assert err.count("no model 'none' on this device") == 1


async def test_a_folder_that_is_named_as_a_picture_and_one_that_goes(
    peer: Peer, tmp_path: Path
) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b.png").write_bytes(picture(1))
    lines = await run(peer, "classify_folder.py", str(tmp_path), "--model", "pictures")
    assert "Is a directory" in lines[0]
    assert lines[1].startswith("b.png: ")


async def test_pictures_are_labelled_and_broken_ones_named(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(b"not yet whole")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    lines = await run(peer, "classify_folder.py", str(tmp_path), "--model", "pictures")
    assert len(lines) == 2
    assert re.fullmatch(r"a\.png: .+ \(\d+%\)", lines[0])
    assert lines[1].startswith("b.png: ")


async def test_the_note_that_says_the_same_is_found_first(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("w1 w2 w3 w4\n\nw40 w41 w42\n")
    (tmp_path / "two.txt").write_text("w9 w8 w7")
    lines = await run(
        peer, "search_notes.py", str(tmp_path), "w40 w41 w42", "--model", "feelings", "--best", "2"
    )
    assert len(lines) == 2
    assert lines[0] == "1.000  one.txt: w40 w41 w42"


async def test_long_notes_are_read_in_pieces_and_unreadable_files_named(
    peer: Peer, tmp_path: Path
) -> None:
    words = [f"w{7 * i % 64}" for i in range(400)]  # the model's context holds fewer
    (tmp_path / "long.md").write_text(" ".join(words))
    (tmp_path / "short.txt").write_text("w9 w8 w7")
    (tmp_path / "a_folder.txt").mkdir()
    given = (str(tmp_path), "w1 w2", "--model", "feelings", "--best", "100")
    code, out, err = await ended(peer, "search_notes.py", *given)
    assert code == 0, err
    assert "a_folder.txt cannot be read" in err
    found = re.findall(r"^\S+  long\.md: (.*)$", out, re.MULTILINE)
    assert len(found) > 1
    assert sorted(" ".join(found).split()) == sorted(words)
    assert re.search(r"^\S+  short\.txt: w9 w8 w7$", out, re.MULTILINE)


def test_the_list_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+\.py)\)", text)) == {p.name for p in EXAMPLES.glob("*.py")}
