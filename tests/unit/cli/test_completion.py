"""What the shell completes."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from astra_mesh.cli.app import app
from astra_mesh.cli.options import codec_names
from astra_mesh.quant.codecs import PLAIN, VECTOR


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("run tiny", ["tiny-gpt2"]),
        ("run v", []),
        ("embed vit", []),
        ("classify v", ["vit-tiny"]),
        ("classify t", []),
        ("models verify ti", ["tiny-gpt2"]),
        ("fit tiny", ["tiny-gpt2"]),
        ("run tiny-gpt2 --codec f", ["fp32", "fp16"]),
    ],
)
def test_names_are_completed(words: str, found: list[str]) -> None:
    environment = {
        "_ASTRA_MESH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"astra-mesh {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="astra-mesh")
    assert result.stdout.split() == found


def test_the_codecs_that_are_completed_are_those_there_are() -> None:
    assert {*PLAIN, *VECTOR} == set(codec_names(""))
