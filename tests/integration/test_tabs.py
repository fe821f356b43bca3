"""``/tab`` and ``/relay``: joining, channels, and whoever does not keep to the rules."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from astra_mesh import limits
from astra_mesh.errors import MeshError, NoPeerError, PeerLostError
from astra_mesh.mesh.connect import Secure, dial
from astra_mesh.mesh.identity import DeviceKey
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.relay import path_to
from astra_mesh.mesh.sealed import Speaker
from astra_mesh.mesh.sealed_socket import open_sealed
from astra_mesh.mesh.session import Session
from astra_mesh.peer import Peer
from astra_mesh.web import ApiConfig, serving
from astra_mesh.wire.messages import (
    MAGIC,
    PROTOCOL_VERSION,
    Device,
    Hello,
    PeerId,
    Reason,
    Role,
    Roster,
)
from tests.integration.mesh_fixtures import mesh_of, until
from tests.integration.secure import Caller
from tests.integration.tabs import TabClient, connected, joined
from tests.integration.test_trust import devices, pair, shut_out, trust_of
from tests.integration.web_fixtures import TOKEN, live
from tests.timings import patient

DEVICE = Device(host="phone", cores=4.0, host_cores=4.0, threads=1, system="a browser")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """None: what is tested here computes nothing."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def hello_of(tab: TabClient, **changes: Any) -> Hello:
    values: dict[str, Any] = {
        "magic": MAGIC,
        "version": PROTOCOL_VERSION,
        "peer": tab.id,
        "name": "phone",
        "role": Role.PEER,
        "window_bytes": limits.WINDOW_BYTES,
        "device": DEVICE,
        "via": PeerId(tab.welcome["host"]["id"]),
    }
    return Hello(**values | changes)


@asynccontextmanager
async def linked(tab: TabClient, to: PeerId, **changes: Any) -> AsyncIterator[Link]:
    """A link of a tab, open unless it was refused."""
    session = Session(hello_of(tab, **changes), expected=to)
    link = Link(await tab.sealed(to), session, dialled=True)
    task = asyncio.create_task(link.run(lambda message: None))
    try:
        await until(lambda: link.is_open or task.done())
        yield link
    finally:
        await link.close()
        await asyncio.wait([task])


async def refusal(tab: TabClient) -> str:
    """Why the tab's connection was ended."""
    await until(lambda: tab.socket.closed)
    assert tab.refused is not None
    return tab.refused


# --- taking part ----------------------------------------------------------------------------------


async def test_a_tab_is_welcomed_and_told_who_is_here(models: Path) -> None:
    async with live(models, 3) as mesh, joined(mesh.server) as tab:
        host = mesh.peers[-1]
        assert tab.welcome["version"] == 1
        assert tab.welcome["host"] == {"id": host.id, "name": "peer2"}
        assert abs(tab.welcome["until"] - time.time() - limits.TAB_S) < 60
        assert tab.welcome["machine"] == host.device.host
        assert tab.id == tab.identity.peer_id
        assert {one["id"] for one in tab.peers} == {peer.id for peer in mesh.peers}
        assert not any(one["tab"] for one in tab.peers)
        await mesh.peers[0].stop()
        await until(lambda: len(tab.peers) == 2)


async def test_a_tab_has_links_to_all_and_no_address(models: Path) -> None:
    async with live(models, 2) as mesh, joined(mesh.server) as tab:
        near, host = mesh.peers
        async with linked(tab, near.id), linked(tab, host.id):
            for peer in mesh.peers:
                await until(lambda peer=peer: tab.id in peer.others())
                (info,) = [one for one in peer.peer_list() if one.peer == tab.id]
                assert (info.address, info.via, info.port) == ("tab", host.id, 0)
                assert info.device == DEVICE
                link = peer.link(tab.id)
                assert link is not None
                assert link.address == f"a tab of {host.id[:8]}"
            async with mesh.http.ws_connect(f"{mesh.root}/live") as page:
                news = json.loads((await page.receive()).data)
            (shown,) = [one for one in news["peers"] if one["id"] == tab.id]
            assert (shown["address"], shown["via"]) == ("tab", host.id)
        await until(lambda: not any(tab.id in peer.others() for peer in mesh.peers))


async def test_a_link_of_a_tab_is_measured_like_any_other(models: Path) -> None:
    async with (
        live(models, 1) as mesh,
        joined(mesh.server) as tab,
        linked(tab, mesh.peers[0].id) as link,
    ):
        await link.probe()
        assert link.send_bps is not None
        there = mesh.peers[0].link(tab.id)
        assert there is not None
        await until(lambda: there.receive_bps is not None and there.send_bps is not None)


@asynccontextmanager
async def two_hosts(models: Path) -> AsyncIterator[tuple[list[Peer], TabClient, TabClient]]:
    async with (
        mesh_of(["a", "b"], models) as peers,
        serving(peers[0], ApiConfig(port=0)) as first,
        serving(peers[1], ApiConfig(port=0)) as second,
        joined(first) as one,
        joined(second) as other,
    ):
        yield peers, one, other


async def test_tabs_of_two_hosts_meet(models: Path) -> None:
    async with two_hosts(models) as (peers, one, other):
        hosts = [peer.id for peer in peers]
        async with (
            linked(one, hosts[0]),
            linked(one, hosts[1]),
            linked(other, hosts[0]),
            linked(other, hosts[1]),
        ):
            await until(lambda: len(one.peers) == 3 and len(other.peers) == 3)
            assert {(p["id"], p["tab"]) for p in one.peers} == {
                (hosts[0], False),
                (hosts[1], False),
                (other.id, True),
            }
            await meet(one, other)


async def test_tabs_of_one_host_meet(models: Path) -> None:
    async with live(models, 1) as mesh, joined(mesh.server) as one, joined(mesh.server) as other:
        host = mesh.peers[0].id
        async with linked(one, host), linked(other, host):
            await until(lambda: len(one.peers) == len(other.peers) == 2)
            await meet(one, other)


async def meet(one: TabClient, other: TabClient) -> None:
    """A channel from tab to tab: the other one is told the truth about who opens."""
    opening = asyncio.create_task(one.sealed(other.id))
    channel = await asyncio.wait_for(other.incoming.get(), patient(5.0))
    assert channel.number % 2 == 0
    assert channel.peer == one.id
    first = (await channel.receive()).data
    assert one.speaker.certificate in first
    await channel.close()
    with pytest.raises(PeerLostError):
        await opening


async def test_devices_that_were_paired_take_each_others_tabs(tmp_path: Path) -> None:
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(lambda: b.id in a.others() and a.id in b.others())
        async with serving(b, ApiConfig(port=0)) as server, joined(server) as tab:
            await until(lambda: len(tab.peers) == 2)
            async with linked(tab, a.id) as link:
                await until(lambda: tab.id in a.others())
                assert a.others()[tab.id].via == b.id
                await shut_out(a, b)
                await until(lambda: not link.is_open)
                assert link.session.close_reason is Reason.UNPAIRED


# --- the certificate ------------------------------------------------------------------------------


async def test_a_tab_gets_nowhere_by_tls(models: Path) -> None:
    """As who dials, and as who is dialled."""
    async with live(models, 1) as mesh, joined(mesh.server) as tab:
        caller = await Caller.new()
        tls = await asyncio.to_thread(caller.trust.tls, tab.identity)
        secure = Secure(tls.client, caller.trust.whose_connection)
        for path in ("/mesh", path_to(mesh.peers[0].id), "/share/x"):
            with pytest.raises(MeshError):
                await dial(mesh.http, "127.0.0.1", mesh.peers[0].port, path=path, secure=secure)
        done = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            done.set()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls.server)
        port = server.sockets[0].getsockname()[1]
        async with server:
            opened = await mesh.http.get(
                f"https://127.0.0.1:{port}", ssl=caller.tls.client, server_hostname="astra-mesh"
            )
            opened.close()
            await done.wait()
        assert caller.trust.whose(tab.speaker.certificate) is None


@asynccontextmanager
async def relay(
    peer: Peer, to: PeerId, caller: Caller | None = None
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """What a host opens for its tabs."""
    caller = caller or await Caller.new()
    async with aiohttp.ClientSession() as http:
        socket = await dial(http, "127.0.0.1", peer.port, path=path_to(to), secure=caller.secure)
        yield socket
        await socket.close()


async def test_only_tabs_of_the_asking_device_are_let_in(models: Path) -> None:
    async with live(models, 1) as mesh, joined(mesh.server) as tab:
        (peer,) = mesh.peers
        async with relay(peer, peer.id) as socket:
            await open_sealed(socket, tab.speaker, peer.id)
        stranger = Speaker.with_key(DeviceKey.new().issue_tab(tab.point, 2**33), tab.key)
        ended = trust_of(peer).device.issue_tab(tab.point, int(time.time()) - 1)
        a_peer = Speaker.of((await Caller.new()).identity)
        for other in (stranger, Speaker.with_key(ended, tab.key), a_peer):
            async with relay(peer, peer.id) as socket:
                with pytest.raises(PeerLostError):
                    await open_sealed(socket, other, peer.id)


async def test_a_relay_to_somebody_else(models: Path) -> None:
    async with live(models, 2) as mesh:
        first, second = mesh.peers
        for wanted in (second.id, PeerId("f" * 64), PeerId("x")):
            with pytest.raises(NoPeerError, match="404"):
                async with relay(first, wanted):
                    pass


async def test_pages_open_no_relay(models: Path) -> None:
    async with live(models, 1) as mesh:
        caller = await Caller.new()
        url = f"https://127.0.0.1:{mesh.peers[0].port}{path_to(mesh.peers[0].id)}"
        options: dict[str, Any] = {"ssl": caller.tls.client, "server_hostname": "astra-mesh"}
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await mesh.http.ws_connect(url, origin="https://page.example", **options)
        assert refused.value.status == 403
        async with mesh.http.get(url, **options) as answer:
            assert answer.status == 426


# --- what a host could do -------------------------------------------------------------------------


async def test_what_a_host_changes_on_the_way_ends_the_link(models: Path) -> None:
    async with (
        live(models, 1) as mesh,
        joined(mesh.server) as tab,
        linked(tab, mesh.peers[0].id) as link,
    ):
        channel = tab.channels[1]
        original = channel.send_bytes

        async def change(data: bytes) -> None:
            await original(bytes([data[0] ^ 1]) + data[1:])

        channel.send_bytes = change  # type: ignore[method-assign]
        await until(lambda: not link.is_open, patient(10.0))
        assert mesh.peers[0].link(tab.id) is None


async def test_a_tab_that_says_it_comes_through_another(models: Path) -> None:
    async with live(models, 2) as mesh, joined(mesh.server) as tab:
        async with linked(tab, mesh.peers[0].id, via=mesh.peers[0].id) as link:
            assert link.session.close_reason is Reason.WRONG_PEER
        async with linked(tab, mesh.peers[0].id, via=PeerId("")) as link:
            assert link.session.close_reason is Reason.WRONG_PEER


async def test_a_tab_that_decides_about_devices(models: Path) -> None:
    async with live(models, 1) as mesh, joined(mesh.server) as tab:
        (peer,) = mesh.peers
        async with linked(tab, peer.id) as link:
            link.session.hello = hello_of(tab, via=PeerId(""))  # so that it sends it at all
            link.send(Roster(mesh=trust_of(peer).book.mesh, entries=[]))
            await until(lambda: not link.is_open)
            assert link.session.close_reason is Reason.BAD_MESSAGE


# --- what a tab could do --------------------------------------------------------------------------


async def test_pages_of_other_sites_do_not_join(models: Path) -> None:
    async with live(models, 1, token=TOKEN) as mesh:
        url, own = f"{mesh.root}/tab", {"Authorization": f"Bearer {TOKEN}"}
        table = [
            ({**own, "Origin": "http://evil.example"}, 403),
            ({**own, "Sec-Fetch-Site": "cross-site"}, 403),
            ({**own, "Host": "evil.example"}, 403),
            ({}, 401),
        ]
        for headers, status in table:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await mesh.http.ws_connect(url, headers=headers)
            assert refused.value.status == status
        async with mesh.http.get(url, headers=own) as answer:
            assert answer.status == 426
            assert (await answer.json())["error"]["code"] == "upgrade_required"
        async with mesh.http.ws_connect(
            url, headers={**own, "Origin": mesh.root}, protocols=("astra-mesh.tab", "bearer.x")
        ) as socket:
            assert socket.protocol == "astra-mesh.tab"


FIRST: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("{", "not understood"),
    "another message": ('{"type":"close","channel":1}', "something else than join"),
    "binary": (b"\0\0\0\1x", "something else than join"),
    "no base64": ('{"type":"join","key":"!"}', "base64"),
    "no key": ('{"type":"join","key":"AAAA"}', "public key"),
    "too long": (json.dumps({"type": "join", "key": "A" * 5000}), "too long"),
}


@pytest.mark.parametrize("kind", FIRST)
async def test_a_first_message_that_is_no_join(models: Path, kind: str) -> None:
    said, why = FIRST[kind]
    async with live(models, 1) as mesh, connected(mesh.server) as tab:
        if isinstance(said, bytes):
            await tab.socket.send_bytes(said)
        else:
            await tab.socket.send_str(said)
        assert why in await refusal(tab)


async def test_who_says_nothing_is_sent_away(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TAB_JOIN_S", 0.2)
    async with live(models, 1) as mesh, connected(mesh.server) as tab:
        assert "no join" in await refusal(tab)


LATER: dict[str, tuple[list[str | bytes], str]] = {
    "no JSON": (["nonsense"], "not understood"),
    "a second join": (['{"type":"join","key":"AAAA"}'], "second join"),
    "an even channel": (['{"type":"open","channel":2,"to":"x"}'], "opens odd ones"),
    "the same channel": (
        ['{"type":"open","channel":3,"to":"x"}', '{"type":"open","channel":3,"to":"x"}'],
        "a higher one",
    ),
    "a lower channel": (
        ['{"type":"open","channel":3,"to":"x"}', '{"type":"open","channel":1,"to":"x"}'],
        "a higher one",
    ),
    "a channel that nobody opened": ([b"\0\0\0\1x"], "nobody opened"),
    "one that the host did not open": ([b"\0\0\0\2x"], "nobody opened"),
    "channel 0": ([b"\0\0\0\0x"], ""),
    "closing what nobody opened": (['{"type":"close","channel":1}'], "nobody opened"),
    "no channel": ([b"\0\0"], "without a channel"),
}


@pytest.mark.parametrize("kind", LATER)
async def test_a_tab_that_breaks_a_rule_is_sent_away(models: Path, kind: str) -> None:
    said, why = LATER[kind]
    async with live(models, 1) as mesh, joined(mesh.server) as tab:
        for message in said:
            if isinstance(message, bytes):
                await tab.socket.send_bytes(message)
            else:
                await tab.socket.send_str(message)
        if why:
            assert why in await refusal(tab)
        else:  # ignored, like what was on its way when a channel ended
            await tab.say(type="open", channel=1, to="x")
            await until(lambda: not tab.socket.closed and tab.news.is_set())


async def test_a_frame_that_is_too_large(models: Path) -> None:
    async with live(models, 1) as mesh, joined(mesh.server) as tab:
        channel = await tab.open(mesh.peers[0].id)
        with suppress(ConnectionError):
            await channel.send_bytes(bytes(limits.SEALED_FRAME_BYTES + 1))
        await until(lambda: tab.socket.closed)


async def test_channels_to_nobody_are_closed_with_a_reason(models: Path) -> None:
    async with live(models, 1) as mesh, joined(mesh.server) as tab:
        for to in (PeerId("f" * 64), PeerId(""), tab.id):
            channel = await tab.open(to)
            await channel.send_bytes(b"anybody?")
            await until(lambda channel=channel: channel.why is not None)
            assert channel.why
            await channel.send_bytes(b"late")  # is ignored
        assert not tab.socket.closed


async def test_a_peer_that_cannot_be_reached_is_named(models: Path) -> None:
    async with live(models, 2) as mesh, joined(mesh.server) as tab:
        far, host = mesh.peers
        hello = host._hellos[far.id]
        links = host._links
        assert links is not None
        links._membership._entries.clear()
        link = host.link(far.id)
        assert link is not None
        link.address, link.dialled = "127.0.0.1:1", True
        channel = await tab.open(hello.peer)
        await until(lambda: channel.why is not None)
        assert "no peer at 127.0.0.1:1" in (channel.why or "")


async def test_a_flood_of_channels(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TAB_CHANNELS", 4)
    async with live(models, 1) as mesh:
        async with joined(mesh.server) as tab:
            for _ in range(20):  # one after the other is no flood
                channel = await tab.open(mesh.peers[0].id)
                await channel.close()
            for _ in range(5):
                await tab.open(mesh.peers[0].id)
            assert "more than 4 channels" in await refusal(tab)
        async with joined(mesh.server) as tab, linked(tab, mesh.peers[0].id) as link:
            assert link.is_open  # others are served


async def test_too_many_tabs(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TABS", 1)
    async with live(models, 1) as mesh:
        async with joined(mesh.server):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with connected(mesh.server):
                    pass
            assert refused.value.status == 429
        async with joined(mesh.server) as tab:
            assert tab.peers


async def test_a_tab_whose_time_is_over(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TAB_S", patient(1.5))
    async with live(models, 1) as mesh, joined(mesh.server) as tab:
        async with linked(tab, mesh.peers[0].id):
            assert "join again" in await refusal(tab)
        await until(lambda: tab.id not in mesh.peers[0].others())


# --- ends -----------------------------------------------------------------------------------------


async def test_links_end_with_the_tab_at_once(models: Path) -> None:
    async with live(models, 2) as mesh:
        async with (
            joined(mesh.server) as tab,
            linked(tab, mesh.peers[0].id),
            linked(tab, mesh.peers[1].id),
        ):
            await until(lambda: all(tab.id in peer.others() for peer in mesh.peers))
            transport = tab.socket._writer.transport
            assert transport is not None
            transport.abort()
            await until(lambda: not any(tab.id in peer.others() for peer in mesh.peers), 2.0)
        assert mesh.peers[1].tabs.forward(tab.id) is None


async def test_a_host_that_ends_takes_its_tabs_along(models: Path) -> None:
    async with (
        live(models, 2) as mesh,
        joined(mesh.server) as tab,
        linked(tab, mesh.peers[0].id) as link,
    ):
        await until(lambda: tab.id in mesh.peers[0].others())
        await mesh.server.stop()
        await until(lambda: not link.is_open and tab.socket.closed)
        await until(lambda: tab.id not in mesh.peers[0].others())


async def test_a_peer_that_leaves_closes_its_channel(models: Path) -> None:
    async with live(models, 2) as mesh, joined(mesh.server) as tab:
        async with linked(tab, mesh.peers[0].id) as link:
            await until(lambda: tab.id in mesh.peers[0].others())
            await mesh.peers[0].stop()
            await until(lambda: not link.is_open)
            assert link.close_error is None  # it said goodbye
            await until(lambda: not tab.channels)
        assert not tab.socket.closed
