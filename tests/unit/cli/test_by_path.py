"""A model named by its folder is offered by the peer inside the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from astra_mesh.bundle import find_named
from astra_mesh.cli.ask import by_path
from tests.bundles import GPT2, gpt2_tensors, write_bundle


def test_a_folder_becomes_a_name_that_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(tmp_path / "others"))
    folder = write_bundle(tmp_path / "mine" / "words", GPT2, gpt2_tensors(GPT2))
    assert by_path(str(folder)) == "words"
    assert find_named("words").path.resolve() == folder.resolve()
    assert os.environ["ASTRA_MESH_MODELS"].split(os.pathsep)[1:] == [str(tmp_path / "others")]


def test_names_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASTRA_MESH_MODELS", raising=False)
    assert by_path("tiny-gpt2") == "tiny-gpt2"
    assert by_path("nowhere/at/all") == "nowhere/at/all"
    assert "ASTRA_MESH_MODELS" not in os.environ
