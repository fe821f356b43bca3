"""What is said of options that do not take their value."""

from __future__ import annotations

import json
import math

import pytest
import typer
from typer.testing import CliRunner, Result

from astra_mesh.cli.app import app

WIDTH = 78  # of a terminal of 80 columns, without the margins


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


RUN = ("run", "toy", "words")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*RUN, "--use", "foo"), "--use takes auto, all or solo, not 'foo'"),
        ((*RUN, "--late", ""), "--late takes wait, adapt or degrade"),
        ((*RUN, "-n", "0"), "--max-new-tokens takes a whole number of 1 or more, not '0'"),
        ((*RUN, "-n", "1.5"), "--max-new-tokens takes a whole number of 1 or more, not '1.5'"),
        ((*RUN, "--seed", "x"), "--seed takes a whole number, not 'x'"),
        (("classify", "toy", "x", "--loss", "2"), "--loss takes a number from 0 to 1, not '2'"),
        (("peer", "--spot-check", "nan"), "--spot-check takes a number from 0 to 1, not 'nan'"),
        (("peer", "--port", "70000"), "--port takes a whole number from 0 to 65535, not '70000'"),
        (("top", "--interval", "x"), "--interval takes a number from 0.2 to 3600, not 'x'"),
        (("fit", "toy", "--data", "x", "--noise", "nan"), "--noise takes a number of 0 or more"),
        (("peer", "--dtype", "\x1b"), "--dtype takes auto, fp32, bf16, fp16 or int8, not '\\x1b'"),
    ],
)
def test_it_names_the_option_and_what_it_takes(arguments: tuple[str, ...], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {said}")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    (document,) = map(json.loads, call(*arguments, "--json").stdout.splitlines())
    assert document["error"]["message"].startswith(said)


@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_request_is_infinite(option: str, value: float) -> None:
    result = call(*RUN, f"{option}={value}")
    assert result.exit_code == 2
    assert f"error: {option} takes a number from 0 to " in result.stderr


@pytest.mark.parametrize("value", ["0", "2", "nan", "inf"])
@pytest.mark.parametrize("option", ["--learning-rate", "--codebook-rate"])
def test_learning_rates(option: str, value: str) -> None:
    result = call("fit", "toy", "--data", "x", "--finetune", "-o", "new", option, value)
    assert result.exit_code == 2
    texts = ("learning rates must lie between 0 and 1", f"{option} takes a number from 0 to 1")
    assert any(f"error: {text}" in result.stderr for text in texts)


@pytest.mark.parametrize("arguments", [("run", "toy"), ("run", "a", "b", "--nonsense"), ("x",)])
def test_what_typer_says_well_stays(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_examples_fit_in_a_terminal_of_80_columns() -> None:
    found = 0
    commands = [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        lines = (getattr(command, "epilog", None) or "").split("\n\n")
        found += bool(lines[0])
        assert all(len(line) <= WIDTH for line in lines), command.name
    assert found > 15
