"""The archive for others: what is taken out of it."""

import json
import platform
import zipfile
from pathlib import Path

import platformdirs
import pytest

import astra_mesh
from astra_mesh.client.checks import Finding, Level, free_bytes, versions
from astra_mesh.client.diagnostics import write_archive
from astra_mesh.client.redactor import Redactor
from astra_mesh.mesh.codes import as_uri, new_code, new_key
from astra_mesh.mesh.identity import DeviceKey

SECRETS = {
    "an address": "192.168.178.23",
    "an address of version 6": "fe80::1c2d:3e4f:5a6b:7c8d%eth0",
    "a home": "/home/margarete",
    "a home on macOS": "/Users/margarete",
    "a folder": "/srv/secret-project",
    "a folder with a space": "/srv/secret project/x",
    "a folder at home": "~/secret-project",
    "another user's folder": "~margarete/x",
    "a folder of Windows": r"C:\Users\bob",
    "one with a space": r"C:\Program Files\secret",
    "one with slashes": "D:/secret",
    "a share": r"\\server\secret",
    "a host": "desktop.fritz.box",
    "a host of two labels": "kitchen.local",
    "a login": "user:pw@host",
    "a login with other signs": "user:p@ss:w@desk.lan",
    "a mail address": "bob@example.com",
    "a device": "kitchen-pi",
    "a key": DeviceKey.new().pem().decode(),
    "a join key": new_key(),
    "one in capitals": new_key().upper(),
    "a pairing code": new_code(),
    "one as it is typed": new_code().lower(),
    "one without its dash": "K7QM2XR8",
    "a host of one word": "my-nas:7475",
    "an id": "a1" * 32,
    "what people see of one": "8a928642",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_what_says_who_and_where_goes(secret: str) -> None:
    redactor = Redactor(["kitchen-pi"])
    for text in (secret, f"at {secret}:", f"({secret})", f"lost {secret} and {secret}"):
        assert secret not in redactor.text(text)
        assert redactor.text(text)[:1] == text[:1] or text == secret


@pytest.mark.parametrize("name", ["vm", "pi", "x", "Bob's phone", "(ok)"])
def test_names_go_as_whole_words_however_short(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: f"{name}.lan")
    for redactor in (Redactor(), Redactor([name])):
        text = redactor.text(f"{name} lost {name}: {name.upper()}. Spin vmx.")
        assert text == "name-1 lost name-1: name-1. Spin vmx."
        assert redactor.text(f"at {name}.lan:7475") == "at name-2:7475"


@pytest.mark.parametrize(
    "name",
    ["me@pi Anna Karenina", "a /home/x Anna", "token=x Anna", "10.0.0.7 Anna", "x: y.z A"],
)
def test_a_name_goes_whole_whatever_is_in_it(name: str) -> None:
    text = Redactor([name, "Anna"]).text(f"lost {name}: {name} (a1a1a1a1), and Anna")
    assert text == "lost name-1: name-1 (id-1), and name-2"


def test_a_login_in_a_url_goes_with_its_password() -> None:
    text = Redactor().text("http://bob:p/w@desk.lan:7476/v1 and http://u:pw@[fe80::1%eth0]:80")
    assert text == "http://login-1:7476/v1 and http://login-2:80"


def test_paths_of_the_program_stay_without_where_it_is() -> None:
    file, state = Path(astra_mesh.__file__), platformdirs.user_state_path("astra-mesh")
    text = Redactor().text(f"{file}: {state}/trust/device.pem, {Path(json.__file__)}")
    assert text == ("[astra_mesh]/__init__.py: [state]/trust/device.pem, [python]/json/__init__.py")
    beside = file.parent.parent / "secret.txt"
    assert Redactor().text(f"file://{beside}") == "file://path-1"
    assert Redactor().text(f"{file.parent}-secret/x") == "path-1"


def test_tokens_of_the_api_go() -> None:
    for text in (
        "http://127.0.0.1:7476/#token=s3cret-of-Mine_1, then more",
        "Authorization: Bearer s3cret-of-Mine_1",
        "astra-mesh peer --api-token s3cret-of-Mine_1",
        "ASTRA_MESH_API_TOKEN=s3cret-of-Mine_1",
    ):
        assert "s3cret" not in Redactor().text(text)
        assert "[token]" in Redactor().text(text)


def test_codes_in_the_text_of_a_picture_go() -> None:
    code = new_code()
    for shown in (code, code.replace("-", "")):
        assert "code=[code]" in Redactor().text(as_uri(shown, []))


def test_hosts_of_one_word_go_without_their_port() -> None:
    text = Redactor().text("my-nas:7475, http://my-nas:7475/v1 and pi.lan:7475 at 10.0.0.7:7475.")
    assert text == "host-2:7475, http://host-2:7475/v1 and host-1:7475 at address-1:7475."


def test_the_same_by_the_same() -> None:
    redactor = Redactor(["kitchen-pi"])
    text = redactor.text("kitchen-pi at 10.0.0.7 lost 10.0.0.8, kitchen-pi is at 10.0.0.7")
    assert text == "name-1 at address-1 lost address-2, name-1 is at address-1"


def test_an_id_and_its_first_digits_are_the_same() -> None:
    text = Redactor().text(f"peer {'a1' * 32} (a1a1a1a1) lost b2b2b2b2, 12345678 bytes")
    assert text == "peer id-1 (id-1) lost id-2, 12345678 bytes"


def test_what_helps_stays() -> None:
    for text in (
        "torch 2.13.0+cpu, 12:30, 127.0.0.1, port 7475: no peer",
        "Linux-6.8.0-45-generic-x86_64-with-glibc2.36; 1/2 and/or 12.5 MiB, bf16 0.61x",
        "asyncio.TimeoutError in astra_mesh.peer.local: model.safetensors, Qwen/Qwen2.5-0.5B",
        "clock: 2026-11-28 18:49: set; 2026-11-28 18:49:05 and at 7:05:59",
        "models mesh-128 and tiny-gpt2, half-done, 1234-5678, 22345679 bytes, degraded, Returned",
        "localhost:7475, HOST:7475, port:7475, address:12, at 2026-11-28T18:49:05",
        "firewall: `ufw allow 7475/tcp` lets peers in. Pair by address: --at HOST:PORT",
    ):
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
    for secret in ("kitchen-pi", "10.1.2.3", "a1a1a1a1", "b2b2b2b2", "very-secret-token"):
        assert secret not in whole
    assert json.loads(texts["doctor.json"])[0]["text"].endswith("does not answer")
    assert json.loads(texts["environment.json"])["ASTRA_MESH_API_TOKEN"] == "set"
    assert json.loads(texts["versions.json"])["torch"] == versions()["torch"]
    with pytest.raises(FileExistsError):
        write_archive(path, [], None, [])


def test_free_memory() -> None:
    free = free_bytes()
    assert free is None or free > 1 << 20
