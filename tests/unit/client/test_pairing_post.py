"""Which addresses a device names when it shows a code."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from ipaddress import ip_address
from typing import Any

import pytest

from astra_mesh.client.pairing_post import Post, pairing_post, post_at
from astra_mesh.peer import places
from astra_mesh.peer.local import LocalPeer, write_record
from astra_mesh.wire.messages import PeerId

ME = PeerId("a" * 64)


@pytest.fixture(autouse=True)
def _in_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [ip_address(text) for text in ("192.0.2.7", "2001:db8::1", "fe80::1")]
    monkeypatch.setattr(places, "own_addresses", lambda: own)


def test_a_peer_that_listens_everywhere_names_all() -> None:
    both = ("192.0.2.7:7475", "[2001:db8::1]:7475")
    assert post_at(None, 7475) == Post(both, both)
    assert post_at("192.0.2.9", 7475) == Post(("192.0.2.9:7475",), ("192.0.2.9:7475",))


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1:7475"), ("::1", "[::1]:7475")]
)
def test_one_that_listens_on_loopback_names_no_other_and_says_so(host: str, shown: str) -> None:
    post = post_at(host, 7475)
    assert (post.near, post.far) == ((shown,), ())
    assert f"listens on {host} only" in post.note
    assert "without --listen" in post.note


def test_without_a_network_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "own_addresses", lambda: [ip_address("127.0.0.1")])
    post = post_at(None, 7475)
    assert (post.near, post.far) == (("127.0.0.1:7475",), ())
    assert "in no network" in post.note


async def test_of_several_peers_one_that_others_reach_is_named() -> None:
    trust: Any = None  # no post is opened
    for port, listen in ((7000, ""), (7001, "127.0.0.1")):
        record = LocalPeer(os.getpid(), port, ME, "peer", listen)
        await asyncio.to_thread(write_record, record)
    async with AsyncExitStack() as stack:
        assert (await pairing_post(stack, trust)).far[0] == "192.0.2.7:7000"
