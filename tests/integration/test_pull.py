"""``astra-mesh models pull ORG/NAME`` from a local server, and ``models add``."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from astra_mesh.bundle import hub, write_manifest
from astra_mesh.bundle.hub import Remote
from astra_mesh.bundle.store import user_models_path
from astra_mesh.bundle.tensors import open_tensors, save_tensors
from astra_mesh.cli.app import app
from tests.bundles import GPT2, gpt2_tensors, write_bundle
from tests.forks import python
from tests.integration.hub import SHA, Hub, serving_hub
from tests.integration.mesh_fixtures import fit_small

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("forks")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "words"
    write_bundle(folder, GPT2, gpt2_tensors(GPT2, 3))
    fit_small(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "run_me.py").write_text("print('no')")
    return folder


async def command(*argv: str, hub: Hub | None = None) -> tuple[int, dict[str, Any], str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "10"}
    if hub is not None:
        environment["HF_ENDPOINT"] = hub.url
    process = await asyncio.create_subprocess_exec(
        *python(),
        *("-m", "astra_mesh", "models", *argv, "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out or b"{}"), err.decode()


async def test_a_model_comes_from_the_hub_at_one_commit(source: Path) -> None:
    async with serving_hub(source, "words") as hub:
        status, about, err = await command("pull", "org/words", hub=hub)
    assert status == 0, err
    assert about["revision"] == SHA
    folder = Path(about["path"])
    assert folder == user_models_path() / "words"
    assert (folder / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes()
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "manifest.json", "source.json"} <= names
    assert not names & {"pytorch_model.bin", "run_me.py", ".cache"}
    assert "pytorch_model.bin" not in hub.asked
    assert json.loads((folder / "source.json").read_text()) == {
        "repository": "org/words",
        "revision": SHA,
    }
    status, found, _ = await command("list")
    assert "words" in [one["name"] for one in found["models"]]
    status, _, err = await command("verify", "words")
    assert status == 0, err


async def test_what_is_here_at_the_same_commit_is_not_pulled_again(source: Path) -> None:
    async with serving_hub(source, "words") as hub:
        status, about, err = await command("pull", "org/words", hub=hub)
        assert (status, about["already"]) == (0, False), err
        hub.asked.clear()
        status, again, err = await command("pull", "org/words", hub=hub)
        assert (status, again) == (0, {**about, "already": True}), err
        assert hub.asked == []
        folder = Path(about["path"])
        note = json.loads((folder / "source.json").read_text())
        for other in ({"repository": "other/words"}, {"revision": "f" * 40}):
            (folder / "source.json").write_text(json.dumps(note | other))
            status, refused, _ = await command("pull", "org/words", hub=hub)
            assert status == 2
            assert "there is a model words" in refused["error"]["message"]
        (folder / "source.json").write_text(json.dumps(note))
        (folder / "codebook.safetensors").unlink()  # a person may do without


@pytest.mark.parametrize("kind", ["missing", "altered"])
async def test_what_is_damaged_is_pulled_anew_and_nothing_else(source: Path, kind: str) -> None:
    async with serving_hub(source, "words") as hub:
        status, about, err = await command("pull", "org/words", hub=hub)
        assert status == 0, err
        path = Path(about["path"]) / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-4] + b"none")
        if kind == "missing":
            path.unlink()
        hub.asked.clear()
        status, again, err = await command("pull", "org/words", hub=hub)
        assert (status, again) == (0, about), err
        assert path.read_bytes() == whole
        assert "codebook.safetensors" not in hub.asked
        status, _, err = await command("verify", "words")
        assert status == 0, err


async def test_what_is_damaged_and_not_of_the_hub_is_named(source: Path) -> None:
    async with serving_hub(source, "words") as hub:
        status, about, err = await command("pull", "org/words", hub=hub)
        assert status == 0, err
        own = Path(about["path"]) / "codebook-own.safetensors"
        shutil.copyfile(source / "codebook.safetensors", own)
        status, _, err = await command("verify", "words", "--take-new")
        assert status == 0, err
        own.write_bytes(own.read_bytes()[:-4] + b"none")
        status, refused, _ = await command("pull", "org/words", hub=hub)
        assert status == 1
        assert "codebook-own.safetensors of " in refused["error"]["message"]
        assert own.exists()


def test_a_person_is_told_that_it_is_here_already(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote("org/words", SHA, {}, {})
    monkeypatch.setattr("astra_mesh.bundle.hub.look_up", lambda *_: remote)
    _, about = add(str(source), "--name", "words")
    (Path(about["path"]) / "source.json").write_text(json.dumps(remote.source))
    result = CliRunner().invoke(app, ["models", "pull", "org/words"])
    assert result.exit_code == 0
    assert "it is here already" in result.stderr


def test_who_interrupts_a_pull_is_told_that_what_came_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(remote: Remote, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "look_up", lambda *_: Remote("org/words", SHA, {}, {}))
    monkeypatch.setattr(hub, "download", download)
    result = CliRunner().invoke(app, ["models", "pull", "org/words"])
    assert result.exit_code == 130
    assert "what came is kept, and the same command goes on there" in result.stderr


async def test_a_cut_connection_is_gone_on_with(source: Path, tmp_path: Path) -> None:
    large = tmp_path / "words"
    shutil.copytree(source, large)
    (large / "codebook-large.safetensors").write_bytes(os.urandom(1000) * 24_000)
    async with serving_hub(large, "words") as hub:
        hub.cut_after = 21_000_000  # the library writes down each 10 MiB
        for _ in range(3):  # the library itself may go on, or give up and be run again
            status, about, err = await command("pull", "org/words", hub=hub)
            assert "Error while downloading" not in err, "the library's own words"
            if status == 0:
                break
            assert "Try again; what came stays" in about["error"]["message"]
    assert status == 0, err
    starts = [int(one.removeprefix("bytes=").split("-")[0]) for one in hub.ranges]
    assert max(starts) >= 10_000_000
    folder = Path(about["path"])
    assert (folder / "codebook-large.safetensors").read_bytes() == (
        large / "codebook-large.safetensors"
    ).read_bytes()


async def test_damaged_weights_are_refused(source: Path) -> None:
    async with serving_hub(source, "words") as hub:
        hub.damaged = True
        status, about, _ = await command("pull", "org/words", hub=hub)
        assert status == 1
        assert "damaged" in about["error"]["message"]
        hub.damaged = False
        status, _, err = await command("pull", "org/words", hub=hub)
        assert status == 0, err


async def test_what_cannot_be_pulled_says_why(source: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    shutil.copytree(source, strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    async with serving_hub(strange, "strange") as hub:
        status, about, _ = await command("pull", "org/strange", hub=hub)
        assert status == 2
        assert about["error"]["message"].startswith("org/strange/config.json: model_type 'mamba'")
        assert hub.asked == ["config.json"], "the weights were not asked for"
        status, about, _ = await command("pull", "org/nothing", hub=hub)
        assert "no repository org/nothing" in about["error"]["message"]
        status, about, _ = await command("pull", "org/strange", "--revision", "v9", hub=hub)
        assert "no such revision" in about["error"]["message"]
        (strange / "model.safetensors").unlink()
        status, about, _ = await command("pull", "org/strange", hub=hub)
        assert "no model.safetensors" in about["error"]["message"]
    status, about, _ = await command("pull", "org/strange", hub=hub)  # it is gone
    assert status == 1
    assert "the hub does not give org/strange" in about["error"]["message"]


def add(*argv: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["models", "add", *argv, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_a_folder_is_added_once(source: Path) -> None:
    status, about = add(str(source), "--name", "mine")
    assert status == 0, about
    folder = Path(about["path"])
    assert folder == user_models_path() / "mine"
    assert (folder / "codebook.safetensors").exists()
    assert not (folder / "run_me.py").exists()
    status, about = add(str(source), "--name", "mine")
    assert status == 2
    assert "there is a model mine" in about["error"]["message"]
    status, about = add(str(source / "nothing"))
    assert status == 2
    assert list(user_models_path().glob(".*")) == []


def test_an_altered_folder_is_not_signed_off(source: Path, tmp_path: Path) -> None:
    """Its manifest says what the files were; a folder without one is taken as it is."""
    folder = shutil.copytree(source, tmp_path / "altered")
    (folder / "manifest.json").unlink(missing_ok=True)
    write_manifest(folder)
    assert add(str(folder), "--name", "whole")[0] == 0
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = bytes(byte ^ 1 for byte in content[-4:])
    weights.write_bytes(content)
    status, about = add(str(folder), "--name", "mine")
    assert status == 1
    assert "altered/model.safetensors is not the file that the manifest" in str(about["error"])
    assert not (user_models_path() / "mine").exists()
    assert list(user_models_path().glob(".*")) == []
    write_manifest(folder)
    (folder / "codebook-new.safetensors").write_bytes(b"more")
    status, about = add(str(folder), "--name", "mine")
    assert "codebook-new.safetensors is not in the manifest" in str(about["error"])
    (folder / "codebook-new.safetensors").unlink()
    (folder / "manifest.json").unlink()
    assert add(str(folder), "--name", "mine")[0] == 0


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_folder_with_values_that_are_no_numbers_is_refused(
    source: Path, tmp_path: Path, value: float
) -> None:
    folder = shutil.copytree(source, tmp_path / "diverged")
    (folder / "manifest.json").unlink(missing_ok=True)
    weights = folder / "model.safetensors"
    tensors = {name: one.clone() for name, one in open_tensors(weights).items()}
    name = max(tensors)
    tensors[name].view(-1)[-1] = value
    save_tensors(weights, tensors)
    status, about = add(str(folder), "--name", "mine")
    assert status == 1
    assert f"mine: NaN or Inf in '{name}'" in about["error"]["message"]
    assert "get another copy" in about["error"]["message"]
    assert not (user_models_path() / "mine").exists()
    assert list(user_models_path().glob(".*")) == []


def test_what_is_no_model_is_told_from_what_is_not_there(source: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8\xff")
    (tmp_path / "no.gguf").write_bytes(b"\xff\xd8\xff")
    cases = {
        tmp_path / "gone.gguf": (2, "there is no file or folder"),
        tmp_path / "gone": (2, "there is no file or folder"),
        tmp_path / ("x" * 300): (2, "there is no file or folder"),
        photo: (2, "photo.jpg' is no model: give a folder with config.json"),
        source / "model.safetensors": (2, f"is one file of a model: give its folder, {source}"),
        tmp_path / "no.gguf": (2, "does not begin with the word GGUF"),
        tmp_path: (2, f"'{tmp_path}' holds no model: it has no config.json"),
    }
    for path, (expected, text) in cases.items():
        status, about = add(str(path))
        assert (status, text in about["error"]["message"]) == (expected, True), about
