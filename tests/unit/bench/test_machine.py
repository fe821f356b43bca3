"""The facts of the machine that go with results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.bench import machine
from tools.bench.speed_results import other_machine


def git(folder: Path, *argv: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *who, *argv], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_told_and_whether_files_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "REPO_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "commit" not in machine.facts()  # no repository
    git(tmp_path, "init", "-q")
    assert "commit" not in machine.facts()  # no commit
    code = tmp_path / "code.py"
    code.write_text("1")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "Begin")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    (tmp_path / "notes").touch()
    assert machine.facts()["commit"] == commit
    code.write_text("2")
    assert machine.facts()["commit"] == f"{commit}+"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert "commit" not in machine.facts()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells it")
def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.facts()
    assert here["make"]
    before = here | {"make": "6, 85"}
    assert "was measured with make 6, 85" in str(other_machine(Path("x"), before, here))
    assert other_machine(Path("x"), here, here) is None
    del before["make"]  # files of before do not say
    assert other_machine(Path("x"), before, here) is None
