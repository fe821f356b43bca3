"""The page for other devices: what is said where none can open it."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner

from astra_mesh.cli.app import app
from astra_mesh.cli.lan import api_addresses, check_api, closed_to_others
from astra_mesh.peer import places
from astra_mesh.web import ApiConfig

TOKEN = "a-token-of-the-tests"
ALONE = ["127.0.0.1", "::1"]
NEAR = ["192.168.1.20", "fe80::1"]


@pytest.mark.parametrize(
    "option", [("--lan",), ("--api-token", TOKEN), ("--api-port", "0"), ("--api-port=7476",)]
)
def test_what_is_for_the_api_does_not_go_without_one(option: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["peer", "--no-api", *option])
    assert result.exit_code == 2
    name = option[0].partition("=")[0]
    assert f"--no-api does not go with {name}:" in " ".join(result.stderr.split())


def test_a_token_in_a_variable_may_be_meant_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_MESH_API_TOKEN", TOKEN)
    command: Any = getattr(typer.main.get_command(app), "commands")["peer"]  # noqa: B009
    context = command.make_context("peer", ["--no-api"])
    assert context.params["api_token"] == TOKEN
    check_api(context)
    check_api(command.make_context("peer", ["--lan", "--api-port", "1"]))


@pytest.mark.parametrize(
    ("listen", "addresses", "token", "said"),
    [
        (None, ALONE, TOKEN, "no other device can open the page: this machine has no address"),
        ("0.0.0.0", ALONE, TOKEN, "no other device can open the page: this machine has no address"),
        ("127.0.0.1", NEAR, TOKEN, "no other device can open the page: this peer listens on 127.0"),
        ("localhost", NEAR, TOKEN, "this peer listens on localhost only (--listen)"),
        (None, NEAR, TOKEN, ""),
        ("192.168.1.20", NEAR, TOKEN, ""),
        (None, ALONE, None, ""),
    ],
)
def test_a_page_that_no_phone_can_open_is_told(
    monkeypatch: pytest.MonkeyPatch,
    listen: str | None,
    addresses: list[str],
    token: str | None,
    said: str,
) -> None:
    monkeypatch.setattr(places, "own_addresses", lambda: [*map(ipaddress.ip_address, addresses)])
    peer = cast("Any", SimpleNamespace(config=SimpleNamespace(listen=listen)))
    found = closed_to_others(peer, ApiConfig(port=0, token=token))
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.parametrize(
    ("listen", "addresses", "token", "found"),
    [
        (None, NEAR, TOKEN, ["http://192.168.1.20:7476/v1", "http://127.0.0.1:7476/v1"]),
        (None, NEAR, None, ["http://127.0.0.1:7476/v1"]),
        (None, ALONE, TOKEN, ["http://127.0.0.1:7476/v1"]),
        ("127.0.0.1", NEAR, TOKEN, ["http://127.0.0.1:7476/v1"]),
    ],
)
def test_the_api_is_named_where_others_reach_it(
    monkeypatch: pytest.MonkeyPatch,
    listen: str | None,
    addresses: list[str],
    token: str | None,
    found: list[str],
) -> None:
    monkeypatch.setattr(places, "own_addresses", lambda: [*map(ipaddress.ip_address, addresses)])
    peer = cast("Any", SimpleNamespace(config=SimpleNamespace(listen=listen)))
    config = ApiConfig(port=0, token=token)
    assert api_addresses(peer, config, "http://127.0.0.1:7476/v1") == found
