"""The archive for others: what is taken out of it."""

import json
import zipfile
from pathlib import Path

import pytest

from astra_mesh.client.checks import Finding, Level, free_bytes, versions
from astra_mesh.client.diagnostics import Redactor, write_archive
from astra_mesh.mesh.codes import new_key
from astra_mesh.mesh.identity import DeviceKey

SECRETS = {
    "an address": "192.168.178.23",
    "an address of version 6": "fe80::1c2d:3e4f:5a6b:7c8d%eth0",
    "a home": "/home/margarete",
    "a home on macOS": "/Users/margarete",
    "a device": "kitchen-pi",
    "a key": DeviceKey.new().pem().decode(),
    "a join key": new_key(),
    "an id": "a1" * 32,
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_what_says_who_and_where_goes(secret: str) -> None:
    redactor = Redactor(["kitchen-pi"])
    for text in (secret, f"at {secret}:", f"({secret})", f"lost {secret} and {secret}"):
        assert secret not in redactor.text(text)
        assert redactor.text(text)[:1] == text[:1] or text == secret


def test_the_same_by_the_same() -> None:
    redactor = Redactor(["kitchen-pi"])
    text = redactor.text("kitchen-pi at 10.0.0.7 lost 10.0.0.8, kitchen-pi is at 10.0.0.7")
    assert text == "name-1 at address-1 lost address-2, name-1 is at address-1"


def test_what_helps_stays() -> None:
    text = "torch 2.13.0+cpu, 12:30, 127.0.0.1, port 7475: no peer"
    assert Redactor().text(text) == text


def test_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_MESH_API_TOKEN", "very-secret-token")
    path = tmp_path / "x.zip"
    findings = [Finding("devices", Level.BAD, "kitchen-pi (a1a1a1a1) at 10.1.2.3 does not answer")]
    peers = [{"name": "kitchen-pi", "peer": "b2" * 32, "address": "10.1.2.3:7475"}]
    files = write_archive(path, findings, peers, ["kitchen-pi"])
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == files
        texts = {name: archive.read(name).decode() for name in files}
    whole = "".join(texts.values())
    for secret in ("kitchen-pi", "10.1.2.3", "b2" * 32, "very-secret-token"):
        assert secret not in whole
    assert json.loads(texts["doctor.json"])[0]["text"].endswith("does not answer")
    assert json.loads(texts["environment.json"])["ASTRA_MESH_API_TOKEN"] == "set"
    assert json.loads(texts["versions.json"])["torch"] == versions()["torch"]
    with pytest.raises(FileExistsError):
        write_archive(path, [], None, [])


def test_free_memory() -> None:
    free = free_bytes()
    assert free is None or free > 1 << 20
