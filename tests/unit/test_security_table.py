"""docs/security.md: what stops an attack is tested, and the test is where the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (.+) \| .+ \| (.*`.+`.*) \|$")


def rows() -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "security.md").read_text()
    table = text.partition("## Threats")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [(found[1], found[2]) if (found := ROW.match(line)) else (line, "") for line in lines]


@pytest.mark.parametrize(("attack", "tests"), rows())
def test_each_row_names_tests_that_exist(attack: str, tests: str) -> None:
    named = re.findall(r"`([^`]+)`", tests)
    assert named, f"no test is named: {attack}"
    for name in named:
        path = ROOT / name if name.startswith("tools/") else ROOT / "tests" / name
        assert path.is_file(), f"{name} is no file (a folder says nothing): {attack}"


def test_the_table_is_read() -> None:
    assert len(rows()) > 40
