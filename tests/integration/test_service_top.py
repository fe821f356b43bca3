"""``astra-mesh service`` and ``astra-mesh top``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from astra_mesh.cli import service
from astra_mesh.cli.app import app
from astra_mesh.cli.service_paths import SHARED
from astra_mesh.client import Mesh
from astra_mesh.errors import InputError
from tests.forks import python
from tests.integration.mesh_fixtures import mesh_of

pytestmark = pytest.mark.usefixtures("forks")


def run(*argv: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["service", *argv])
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started on the machine that runs the tests, whose folders no unit names."""
    monkeypatch.setattr(service, "_has_systemd", lambda system: False)
    for name in SHARED:
        monkeypatch.delenv(name, raising=False)


def test_a_user_s_service_is_written_changed_and_removed() -> None:
    status, text = run("install", "--options", "--name 'my peer' --threads 2", "--json")
    assert status == 0
    about = json.loads(text)
    assert about["started"] is False
    path = Path(about["unit"])
    assert path == service.unit_path(system=False)
    unit = path.read_text()
    expected = f'ExecStart={sys.executable} -m astra_mesh peer --name "my peer" --threads 2\n'
    assert expected in unit
    assert run("install", "--options", "--lan")[0] == 0
    assert "peer --lan\n" in path.read_text()
    assert run("remove")[0] == 0
    assert not path.exists()
    status, text = run("remove")
    assert status == 2
    assert "nothing to remove" in text


def test_where_the_page_s_address_is_found_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_start", lambda system: True)
    said = {options: run("install", "--options", options)[1] for options in ("--lan", "--name x")}
    assert "the address of its page for other devices is in that log" in said["--lan"]
    assert f"journalctl --user -u {service.UNIT}" in said["--lan"]
    assert "page" not in said["--name x"]


def test_a_unit_is_printed_as_text_or_json_and_not_written() -> None:
    _, text = run("install", "--print", "--options", "--lan")
    status, printed = run("install", "--print", "--options", "--lan", "--json")
    assert status == 0
    path = service.unit_path(system=False)
    assert json.loads(printed) == {"unit": str(path), "text": text}
    assert "peer --lan\n" in text
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [("--name 50%", '"50%%"'), ("--name '$HOME'", '"$$HOME"'), (r"--name 'a\"b'", r'"a\\\"b"')],
)
def test_options_are_not_read_by_systemd(options: str, word: str) -> None:
    assert word in service.unit(options, system=False)


@pytest.mark.parametrize("options", ["--name 'open", "--name 'a\nExecStart=/bin/sh'"])
def test_options_that_cannot_be(options: str) -> None:
    status, text = run("install", "--options", options)
    assert status == 2
    assert "--options" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--nam kitchen", "--options: No such option: --nam"),
        ("--port x", "--options: --port takes a whole number from 0 to 65535, not 'x'"),
        ("kitchen", "--options: Got unexpected extra argument"),
        ("--help", "--options: with --help a peer ends at once"),
        ("--join-key amk-x", "put ASTRA_MESH_JOIN_KEY=... into ~/.config/astra-mesh/peer.env"),
        (
            "--lan --api-token=abc",
            "put ASTRA_MESH_API_TOKEN=... into ~/.config/astra-mesh/peer.env",
        ),
        ("--no-api --lan", "--options: --no-api does not go with --lan"),
        ("--state-dir mesh", f"--options: --state-dir mesh is no whole path: .* {Path.cwd()}/mesh"),
        ("--record ./times", f"--record times is no whole path: .* {Path.cwd()}/times"),
        ("--model models/toy", f"--model models/toy is no whole path: .* {Path.cwd()}/models/toy"),
        ("--join-key-file key", f"--join-key-file key is no whole path: .* {Path.cwd()}/key"),
        ("--join-key-file -", "no standard input .* put ASTRA_MESH_JOIN_KEY=... into ~/.config/"),
        ("--record /var/tmp/x", "a service has a /tmp and /var/tmp of its own"),
    ],
)
def test_options_that_cannot_work_make_no_service(options: str, said: str) -> None:
    status, text = run("install", "--options", options)
    assert (status, bool(re.search(said, " ".join(text.split())))) == (2, True), text
    assert not service.unit_path(system=False).exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--state-dir /srv/mesh", "writes only in /var/lib/astra-mesh, so not to --state-dir"),
        ("--state-dir /var/lib/astra-mesh/../x", "writes only in /var/lib/astra-mesh"),
        ("--record /tmp/times", "writes only in /var/lib/astra-mesh, so not to --record"),
        ("--record times", "give one that begins with /var/lib/astra-mesh/"),
        ("--join-key-file /root/key", r"KEY=\.\.\. into /etc/astra-mesh/peer.env"),
        ("--model /home/u/toy", "copy that folder into /var/lib/astra-mesh/models .* --model toy"),
        ("--model ~/toy", "no whole path"),
        ("--model tiny-gpt2 --model /tmp/toy", "a service has a /tmp and /var/tmp of its own"),
    ],
)
def test_files_that_a_service_of_the_system_cannot_use_make_none(
    options: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    status, text = run("install", "--system", "--print", "--options", options)
    assert (status, bool(re.search(said, " ".join(text.split())))) == (2, True), text


@pytest.mark.parametrize(
    ("options", "system"),
    [
        ("--state-dir /srv/mesh --join-key-file /srv/key --model ~/toy --record '/srv/m n'", False),
        ("--state-dir /var/lib/astra-mesh/b --record /var/cache/astra-mesh/times", True),
        ("--model tiny-gpt2 --model /srv/toy", True),
    ],
)
def test_files_that_a_service_can_use_are_taken(
    options: str, system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    monkeypatch.setenv("HOME", "/home/u")
    assert f"peer {options}\n".replace("'", '"') in service.unit(options, system)


def test_a_link_into_a_home_is_no_way_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    (tmp_path / "toy").symlink_to("/home/u/toy")
    with pytest.raises(InputError, match="sees no home folders"):
        service.unit(f"--model {tmp_path / 'toy'}", system=True)


def test_where_identity_and_models_lie_is_carried_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "installation" not in service.unit("", system=False)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.chdir("/usr")
    monkeypatch.setenv("ASTRA_MESH_TRUST", 'my "own" \\ 50%')
    monkeypatch.setenv("ASTRA_MESH_MODELS", "~/a:/srv/b c:$d")
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    text = service.unit("--lan", system=False)
    assert (
        "# As they were at the installation.\n"
        'Environment="ASTRA_MESH_TRUST=/usr/my \\"own\\" \\\\ 50%%"\n'
        'Environment="ASTRA_MESH_MODELS=/home/u/a:/srv/b c:/usr/$d"\n'
        'Environment="XDG_STATE_HOME=/srv/state"\n'
    ) in text
    assert "XDG_DATA_HOME" not in text
    if analyze := shutil.which("systemd-analyze"):
        monkeypatch.setattr(sys, "executable", "/bin/true")
        path = tmp_path / service.UNIT
        path.write_text(service.unit("", system=False))
        done = subprocess.run(
            [analyze, "verify", str(path)], check=False, capture_output=True, text=True, timeout=50
        )
        assert service.UNIT not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("/srv/a\nExecStart=/bin/sh", "control characters"),
        ("/tmp/x", "/tmp and /var/tmp of its own"),
    ],
)
def test_folders_that_no_unit_can_name(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTRA_MESH_TRUST", value)
    with pytest.raises(InputError, match=f"ASTRA_MESH_TRUST.*{said}"):
        service.unit("", system=False)


def test_that_they_do_not_count_for_the_system_s_service_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert "not count" not in run("install", "--system", "--print")[1]
    monkeypatch.setenv("ASTRA_MESH_TRUST", "/srv/mine")
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    result = CliRunner().invoke(app, ["service", "install", "--system", "--print"])
    said = " ".join(result.stderr.split())
    assert "ASTRA_MESH_TRUST and XDG_DATA_HOME do not count for a service of the system" in said
    assert "/srv/" not in result.stdout


@pytest.mark.parametrize("system", [False, True])
def test_systemd_takes_the_unit(
    system: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")  # it must exist, outside of homes
    unit = service.unit("--name kitchen", system=system)
    assert "NoNewPrivileges=yes" in unit
    assert "EnvironmentFile=-%E/astra-mesh/peer.env" in unit
    assert ("ProtectHome=yes" in unit) is system
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on this machine")
    path = tmp_path / service.UNIT
    path.write_text(unit)
    done = subprocess.run(
        [analyze, "verify", str(path)], check=False, capture_output=True, text=True, timeout=50
    )
    assert service.UNIT not in done.stderr, done.stderr


def test_a_service_of_the_system_needs_a_python_outside_of_homes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/home/me/.venv/bin/python")
    status, text = run("install", "--system", "--print")
    assert status == 2
    assert "peers/board/install.sh" in re.sub(r"\s+", " ", text)


async def test_top_tells_peers_and_requests(models: Path) -> None:
    async with mesh_of(["left", "right"], models) as peers:
        process = await asyncio.create_subprocess_exec(
            *python(),
            *("-m", "astra_mesh", "top", "--json", "--interval", "0.2"),
            *("--connect", f"127.0.0.1:{peers[0].port}"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            first = json.loads(await process.stdout.readline())
            assert [one["name"] for one in first["peers"]] == ["left", "right"]
            assert first["peers"][1]["port"] == peers[1].port
            async with Mesh(("127.0.0.1", peers[0].port)) as mesh:
                async for _ in mesh.generate("words", "w1 w2 w3", max_new_tokens=2):
                    pass
            kinds = set()
            while "request-ended" not in kinds:
                line = await asyncio.wait_for(process.stdout.readline(), 20)
                kinds.add(json.loads(line).get("event", {}).get("kind"))
        finally:
            process.terminate()
            await process.communicate()
        shown = await asyncio.create_subprocess_exec(
            *python(),
            *("-m", "astra_mesh", "top", "-n", "1", "--connect", f"127.0.0.1:{peers[0].port}"),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"COLUMNS": "160"},
        )
        out, _ = await shown.communicate()
    assert shown.returncode == 0
    assert b"left (asked)" in out
    assert b"words" in out
