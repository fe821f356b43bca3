from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_mesh.client.addresses import DEFAULT_PORT, PATTERN, parse_address
from astra_mesh.errors import InputError
from astra_mesh.mesh.connect import show_address
from astra_mesh.peer.config import DEFAULT_PORT as PEER_PORT


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("kitchen.local", ("kitchen.local", DEFAULT_PORT)),
        ("kitchen:80", ("kitchen", 80)),
        (" 10.0.0.7:7475 ", ("10.0.0.7", 7475)),
        ("[fe80::1%eth0]:9", ("fe80::1%eth0", 9)),
        ("[::1]", ("::1", DEFAULT_PORT)),
        ("fe80::1", ("fe80::1", DEFAULT_PORT)),
    ],
)
def test_addresses_as_people_type_them(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert parse_address(show_address(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "a b",
        "http://host",
        "[::1",
        "h/p",
        "🙂",
    ],
)
def test_what_is_no_address_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        parse_address(text)


PIECES = [
    "a",
    "é",
    ".",
    "-",
    ":",
    "::",
    "[",
    "]",
    "%",
    "0",
    "00",
    "7475",
    "65535",
    "65536",
    " ",
    "\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=12))
def test_the_pattern_of_the_description_tells_the_same(text: str) -> None:
    try:
        parse_address(text)
        fits = True
    except InputError:
        fits = False
    assert (re.search(PATTERN, text) is not None) == fits


@pytest.mark.parametrize("text", ["http://192.0.2.7:7476", "HTTPS://board/", "ws://x:1/mesh"])
def test_an_address_of_a_page_is_told_from_that_of_a_peer(text: str) -> None:
    with pytest.raises(InputError, match=r"of the API.*HOST:PORT without http://"):
        parse_address(text)


def test_the_default_port_is_that_of_peers() -> None:
    assert DEFAULT_PORT == PEER_PORT
