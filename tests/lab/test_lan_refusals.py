"""What the LAN refuses, and how it says so; needs no root."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tools.lab import network
from tools.lab.network import Lan
from tools.lab.system import LabError, LabUnavailableError, Owner, owner_of


@pytest.mark.parametrize(
    "devices",
    [[], ["a", "a"], ["switch"], ["A"], ["a b"], ["-a"], ["a" * 33], [f"d{n}" for n in range(201)]],
)
def test_bad_device_names(devices: list[str]) -> None:
    with pytest.raises(ValueError, match="device"):
        Lan(devices)


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabUnavailableError, match="need root"):
        Lan(["a"]).__enter__()


@pytest.mark.parametrize(
    ("bits", "said"), [(0x1000, "need CAP_SYS_ADMIN"), (0x200000, "need CAP_NET_ADMIN"), (0, "and")]
)
def test_root_without_the_rights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bits: int, said: str
) -> None:
    (tmp_path / "status").write_text(f"Name:\tpython\nCapEff:\t{bits:016x}\n")
    monkeypatch.setattr(network, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert said in str(network.unavailable_reason())


def test_no_ip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "iproute2" in str(network.unavailable_reason())


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux only" in str(network.unavailable_reason())


def test_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(argv: list[str], **_: object) -> str:
        raise LabError(f"{' '.join(argv)}: Operation not permitted")

    monkeypatch.setattr(network, "require_lab", lambda: None)
    monkeypatch.setattr(network, "sweep", list)
    monkeypatch.setattr(network, "command", refuse)
    with pytest.raises(LabUnavailableError, match="Operation not permitted"):
        Lan(["a"]).__enter__()


def test_an_unknown_device() -> None:
    with pytest.raises(LabError, match="no device 'z'; there are a, b"):
        Lan(["a", "b"]).address("z")


def test_the_owner_is_in_the_name() -> None:
    assert owner_of("astra-lab-12-345-0a1b2c-left") == Owner(12, 345)
    assert owner_of(Lan(["a"]).namespace("a")) is not None
    for name in ("astra-lab", "astra-lab-12-left", "x-astra-lab-12-345-0a1b2c-left"):
        assert owner_of(name) is None


def test_a_pid_that_another_process_has_now_is_not_the_owner() -> None:
    owner = owner_of(Lan(["a"]).namespace("a"))
    assert owner is not None
    assert owner.is_alive()
    assert not Owner(owner.pid, owner.started - 1).is_alive()
