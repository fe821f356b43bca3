"""The files that describe the package agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from astra_mesh._version import __version__

REPO_ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> Iterator[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(line)
        if requirement.name != PROJECT["name"]:
            yield requirement


def pins() -> dict[str, str]:
    lines = (REPO_ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pinned}


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_pins_are_plain_public_versions() -> None:
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())


def test_the_changelog_knows_the_version() -> None:
    assert f"\n## [{__version__}]" in (REPO_ROOT / "CHANGELOG.md").read_text()


def test_every_make_target_is_listed() -> None:
    text = (REPO_ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (\S+)$", text, re.MULTILINE)
    assert {"demo", "test", "models", "wheel"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:.*## ", text, re.MULTILINE), target


SCRIPTS = [".ci/run", "peers/board/install.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = REPO_ROOT / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck(script: str) -> None:
    subprocess.run(["shellcheck", REPO_ROOT / script], check=True)


@pytest.mark.parametrize(
    ("before", "given", "key"),
    [
        (None, "-n x", ""),
        (None, "", "amk-new"),
        (0o644, "", ""),
        (0o644, "-n x", ""),
        (0o644, "", "amk-new"),
        (0o600, "-n x", "amk-new"),
    ],
)
def test_options_of_a_board_s_peer_are_for_root_alone(
    tmp_path: Path, before: int | None, given: str, key: str
) -> None:
    defaults = tmp_path / "defaults"
    if before is not None:
        defaults.write_text("# mine\nASTRA_MESH_OPTIONS=old\nASTRA_MESH_JOIN_KEY=amk-old\n")
        defaults.chmod(before)
    board = REPO_ROOT / "peers/board"
    shutil.copy(board / "astra-mesh-peer.service", tmp_path)
    text = (board / "install.sh").read_text()
    for old, new in (
        ("=/etc/default/astra-mesh\n", f"={defaults}\n"),
        ("=/etc/systemd/system/$unit\n", f"={tmp_path}/installed\n"),
        ('\nmain "$@"', '\ninstall_service "$@"'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "script").write_text(text)
    subprocess.run(["bash", tmp_path / "script", given, key], check=True, capture_output=True)
    assert defaults.stat().st_mode & 0o777 == 0o600
    comment, *settings = defaults.read_text().splitlines()
    assert comment.startswith("# mine" if before is not None else "# Options")
    old = "old" if before is not None else '""'
    expected = {"ASTRA_MESH_OPTIONS": f'"{given}"' if given else old}
    if key or before is not None:
        expected["ASTRA_MESH_JOIN_KEY"] = key or "amk-old"
    assert dict(line.split("=", 1) for line in settings) == expected


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--join-key amk-x", "use --join-key-file"),
        ("-n x --join-key=amk-x", "use --join-key-file"),
        ("--models /home/pi/models", "names a home folder"),
        ("-n x --models=/root/m", "names a home folder"),
        ("--m ~/m", "names a home folder"),
    ],
)
def test_a_board_s_options_hold_no_key_and_no_home_folder(options: str, why: str) -> None:
    script = REPO_ROOT / "peers/board/install.sh"
    done = subprocess.run(
        [script, "--options", options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert why in done.stderr


@pytest.mark.parametrize(
    ("text", "given"),
    [("amk-abc234\nmore\n", "amk-abc234"), ("  amk-abc\n", "amk-abc"), ("amk-z", "amk-z")]
    + [(bad, None) for bad in ("", "\n", "K7QM-2XR8\n", "amk-$(id)\n", "amk-a b\n")],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_board_s_join_key_is_read(
    tmp_path: Path, text: str, given: str | None, source: str
) -> None:
    script = (REPO_ROOT / "peers/board/install.sh").read_text()
    (tmp_path / "script").write_text(script.replace('\nmain "$@"', '\nread_key "$1"'))
    (tmp_path / "key").write_text(text)
    with (tmp_path / "key").open() as stream:
        done = subprocess.run(
            ["bash", tmp_path / "script", "-" if source == "stdin" else tmp_path / "key"],
            stdin=stream,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == ((0, given) if given else (1, ""))
    assert ("holds no join key" in done.stderr) is (given is None)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_service_file_is_valid(tmp_path: Path) -> None:
    text = (REPO_ROOT / "peers/board/astra-mesh-peer.service").read_text()
    unit = tmp_path / "astra-mesh-peer.service"
    unit.write_text(text.replace("/opt/astra-mesh/bin/astra-mesh", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
