"""Peers of different devices: what strangers get (nothing), pairing, parting. Real sockets, TLS."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web, web_response
from msgspec.structs import replace

import astra_mesh
from astra_mesh import limits
from astra_mesh.client import Mesh, checks, reach
from astra_mesh.client.pairing_search import join_by_key
from astra_mesh.client.reach import who_runs
from astra_mesh.errors import NoPeerError, NotPairedError, PairingError
from astra_mesh.mesh import doorman
from astra_mesh.mesh.codes import new_code, new_key, read_secret
from astra_mesh.mesh.connect import dial
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.pairing import Closed, Knock, Message
from astra_mesh.mesh.pairing_guest import Paired, pair_at
from astra_mesh.mesh.pairing_host import check_may_let_in
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.trust import Trust, pairing_tls
from astra_mesh.peer import Peer, PeerConfig, local
from astra_mesh.peer.answer import Answer
from astra_mesh.peer.local import LocalPeer
from astra_mesh.wire.messages import MAGIC, PROTOCOL_VERSION, Hello, PeerId, Role, Task
from tests.integration.mesh_fixtures import client_of, until
from tests.integration.secure import Caller
from tests.timings import patient

WAIT_S = 20.0


def config(trust: Path, *others: Peer, **more: Any) -> PeerConfig:
    typed = tuple(("127.0.0.1", other.port) for other in others)
    given: dict[str, Any] = {"port": 0, "listen": "127.0.0.1", "models": (), "peers": typed}
    given |= {"discovery": False, "ephemeral": True, "trust_dir": trust, "name": trust.name}
    return PeerConfig(**given | more)


@asynccontextmanager
async def devices(folder: Path, count: int) -> AsyncIterator[list[Peer]]:
    """Peers of devices that do not know each other; each dials all before it."""
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        for number in range(count):
            one = Peer(config(folder / f"device{number}", *peers))
            peers.append(await stack.enter_async_context(one))
        yield peers


def trust_of(peer: Peer) -> Trust:
    assert peer.trust is not None
    return peer.trust


async def pair(host: Peer, guest: Peer, member_s: int = 0, wrong: int = 0) -> Paired:
    """The guest's device uses a code that the host's device shows."""
    code = read_secret(new_code())
    invitations = Invitations(trust_of(host).folder)
    await asyncio.to_thread(invitations.open_window, code, member_s)
    for _ in range(wrong):
        with pytest.raises(PairingError, match="wrong"):
            await pair_with(guest, new_code(), host)
    return await pair_with(guest, code.text, host)


async def pair_with(guest: Peer, code: str, host: Peer) -> Paired:
    trust = await asyncio.to_thread(Trust.open, trust_of(guest).folder)
    return await pair_at(trust, read_secret(code), ("127.0.0.1", host.port))


async def shut_out(peer: Peer, other: Peer) -> None:
    """As `astra-mesh unpair` does it, in another process."""
    device = trust_of(other).device.id
    trust = await asyncio.to_thread(Trust.open, trust_of(peer).folder)

    def decide(book: RosterBook) -> bool:
        book.shut_out(device)
        return True

    await asyncio.to_thread(trust.change, decide)


def linked(*peers: Peer) -> Callable[[], bool]:
    return lambda: all(len(peer.others()) == len(peers) - 1 for peer in peers)


# --- pairing --------------------------------------------------------------------------------------


async def test_three_devices_and_one_that_has_to_go(tmp_path: Path) -> None:
    async with devices(tmp_path, 3) as (a, b, c):
        await asyncio.sleep(0.5)
        assert not any(peer.others() for peer in (a, b, c))
        paired = await pair(a, b, wrong=limits.PAIR_TRIES - 1)
        assert paired.joined
        await until(linked(a, b))
        assert len((await pair(b, c)).members) == 3
        await until(linked(a, b, c))  # A never met C before
        await shut_out(b, a)  # not the one that let it in
        await until(lambda: not a.others() and linked(b, c)())
        await until(lambda: trust_of(a).book.alone)
        await pair(a, b)  # B's mesh has C in it, so A joins that
        await until(linked(a, b, c))


async def test_the_host_of_a_pairing_sees_at_once_who_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pairs itself, so it need not look at the disk for it."""
    monkeypatch.setattr(limits, "TRUST_POLL_S", 3_600.0)
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        began = time.monotonic()
        security = a._links._security if a._links is not None else None
        assert security is not None
        await until(lambda: trust_of(b).device.id in security._members)
        assert time.monotonic() - began < patient(1.0)


async def test_a_peers_certificate_tells_on_which_device_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(linked(a, b))
        here = LocalPeer(os.getpid(), a.port, a.id, a.name, "127.0.0.1")
        monkeypatch.setattr(local, "local_peers", lambda: [here])
        monkeypatch.setenv("ASTRA_MESH_TRUST", str(trust_of(a).folder))
        found = {one.peer: one for one in await who_runs(trust_of(a))}
        assert {peer: one.device for peer, one in found.items()} == {
            a.id: trust_of(a).device.id,
            b.id: trust_of(b).device.id,
        }
        assert found[b.id].name == b.name


@pytest.mark.parametrize("shift_s", [0.0, 3_600.0, -90.0])
async def test_the_clock_of_another_device_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift_s: float
) -> None:
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(linked(a, b))

        async def places(_: Trust) -> AsyncIterator[list[tuple[str, int]]]:
            yield [("127.0.0.1", a.port)]

        monkeypatch.setattr(reach, "member_places", places)
        # What the server says; the one that asks has the true time.
        shifted = lambda: formatdate(time.time() + shift_s, usegmt=True)  # noqa: E731
        monkeypatch.setattr(web_response, "rfc822_formatted_time", shifted)
        here = trust_of(a).device.id
        answered = (await reach.who_answers(trust_of(b))).answered[here]
        assert answered.ahead_s == pytest.approx(shift_s, abs=2.0)


async def test_devices_are_called_as_the_peers_with_which_this_one_is_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(linked(a, b))
        address = f"127.0.0.1:{a.port}"

        async def listed() -> list[Any]:
            return [SimpleNamespace(address=address, name="kitchen")]

        async def nobody(_: Trust) -> AsyncIterator[list[tuple[str, int]]]:
            nowhere: list[list[tuple[str, int]]] = []
            for place in nowhere:
                yield place

        monkeypatch.setattr(reach, "_linked", listed)
        monkeypatch.setattr(reach, "nearby_places", nobody)
        assert (await reach.who_answers(trust_of(b))).names == {trust_of(a).device.id: {"kitchen"}}


async def test_who_only_looks_whether_a_peer_answers_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(linked(a, b))

        async def places(_: Trust) -> AsyncIterator[list[tuple[str, int]]]:
            yield [("127.0.0.1", a.port)]

        monkeypatch.setattr(reach, "member_places", places)
        caplog.clear()
        assert (await reach.who_answers(trust_of(b))).answered
        await until(lambda: "looked whether this peer answers" in caplog.text)
        caplog.clear()
        monkeypatch.setattr(web.WebSocketResponse, "send_bytes", closing)
        assert (await reach.who_answers(trust_of(b))).answered
        await until(lambda: "looked whether this peer answers" in caplog.text)
    # The link between the two may end in that way as well, which is no warning either.
    warned = "\n".join(one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "without a goodbye" not in warned
    assert "writing failed" not in warned


async def closing(_: web.WebSocketResponse, frame: bytes) -> None:
    """It has gone before it is greeted."""
    raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")


async def test_programs_of_one_user_need_no_pairing(tmp_path: Path) -> None:
    async with Peer(config(tmp_path)) as a, Peer(config(tmp_path, a)) as b:
        await until(linked(a, b))
        async with Mesh(("127.0.0.1", a.port), trust_dir=tmp_path) as mesh:
            assert len(await mesh.peers()) == 2


async def test_whoever_is_alone_joins_the_other(tmp_path: Path) -> None:
    async with devices(tmp_path, 3) as (a, b, c):
        await pair(a, b)
        paired = await pair(c, b)  # C shows the code, B belongs to a mesh already
        assert not paired.joined
        await until(linked(a, b, c))


async def test_two_meshes_are_not_mixed(tmp_path: Path) -> None:
    async with devices(tmp_path, 4) as (a, b, c, d):
        await pair(a, b)
        await pair(c, d)
        with pytest.raises(PairingError, match="unpair --leave"):
            await pair(a, c)
        await asyncio.sleep(0.3)
        assert len(trust_of(a).members()) == len(trust_of(c).members()) == 2


async def test_a_right_code_that_cannot_be_followed_uses_up_no_try(tmp_path: Path) -> None:
    async with devices(tmp_path, 5) as (a, b, c, d, e):
        await pair(a, b)
        await pair(c, d)
        code = read_secret(new_code())
        invitations = Invitations(trust_of(a).folder)
        await asyncio.to_thread(invitations.open_window, code)
        for _ in range(limits.PAIR_TRIES + 1):
            with pytest.raises(PairingError, match="unpair --leave"):
                await pair_with(c, code.text, a)
        window = await asyncio.to_thread(invitations.window)
        assert window is not None
        assert (window.tries, window.judging) == (limits.PAIR_TRIES, 0)
        for _ in range(limits.PAIR_TRIES - 1):  # a guesser has as many as before
            with pytest.raises(PairingError, match="the code is wrong: that device"):
                await pair_with(c, new_code(), a)
        await pair_with(e, code.text, a)
        assert len(trust_of(a).members()) == 3


async def test_the_window_closes_after_three_wrong_codes(tmp_path: Path) -> None:
    async with devices(tmp_path, 2) as (a, b):
        code = read_secret(new_code())
        invitations = Invitations(trust_of(a).folder)
        own = await asyncio.to_thread(invitations.open_window, code)
        for _ in range(limits.PAIR_TRIES - 1):
            with pytest.raises(PairingError, match="the code is wrong: that device"):
                await pair_with(b, new_code(), a)
        with pytest.raises(PairingError, match=r"the third wrong one, so the window is closed"):
            await pair_with(b, new_code(), a)
        await asyncio.to_thread(invitations.close_own, own)  # as `pair` does when it ends
        with pytest.raises(PairingError, match="three wrong codes were given"):
            await pair_with(b, code.text, a)  # the fourth is right, and late
        assert trust_of(a).book.alone


async def test_a_code_is_used_once(tmp_path: Path) -> None:
    async with devices(tmp_path, 3) as (a, b, c):
        code = read_secret(new_code())
        await asyncio.to_thread(Invitations(trust_of(a).folder).open_window, code)
        await pair_with(b, code.text, a)
        with pytest.raises(PairingError, match="no pairing window"):
            await pair_with(c, code.text, a)


async def test_a_device_does_not_pair_with_itself(tmp_path: Path) -> None:
    async with Peer(config(tmp_path)) as a:
        code = read_secret(new_code())
        await asyncio.to_thread(Invitations(tmp_path).open_window, code)
        with pytest.raises(PairingError, match="same device"):
            await pair_with(a, code.text, a)
        assert (await asyncio.to_thread(Invitations(tmp_path).window)).tries == limits.PAIR_TRIES  # type: ignore[union-attr]


async def test_a_board_joins_by_its_key(tmp_path: Path) -> None:
    async with devices(tmp_path, 3) as (a, b, c):
        key = new_key()
        await asyncio.to_thread(Invitations(trust_of(a).folder).open_key, read_secret(key), 60.0)
        at = [f"127.0.0.1:{a.port}"]
        assert await join_by_key(trust_of(b), key, at) is not None
        await until(linked(a, b))
        assert await join_by_key(trust_of(b), key, at) is None  # a restart: it has joined before
        with pytest.raises(PairingError, match="does not take this join key"):
            await pair_with(c, key, a)


async def test_a_board_joins_by_its_key_whoever_stands_behind_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("astra_mesh.client.pairing_search._AGAIN_S", 0.05)
    async with devices(tmp_path, 3) as (a, b, c):
        key = new_key()
        await asyncio.to_thread(Invitations(trust_of(a).folder).open_key, read_secret(key), 60.0)
        behind = {("127.0.0.1", one.port) for one in (b, c)}

        async def addresses_of(host: str, port: int) -> set[tuple[str, int]]:
            assert (host, port) == ("peers", 7475)
            return set(behind)

        monkeypatch.setattr("astra_mesh.peer.names.addresses_of", addresses_of)
        joining = asyncio.ensure_future(join_by_key(trust_of(b), key, names=[("peers", 7475)]))
        await until(lambda: "not joined yet" in caplog.text)
        behind.add(("127.0.0.1", a.port))
        assert await asyncio.wait_for(joining, patient(20)) is not None
        await until(linked(a, b))


async def test_a_board_that_finds_nobody_is_told_which_option_names_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def nobody() -> AsyncGenerator[list[tuple[str, int]], None]:
        places: list[list[tuple[str, int]]] = []
        for addresses in places:
            yield addresses

    monkeypatch.setattr("astra_mesh.client.pairing_search.search", nobody)
    async with devices(tmp_path, 1) as (a,):
        joining = asyncio.ensure_future(join_by_key(trust_of(a), new_key()))
        await until(lambda: "not joined yet" in caplog.text)
        joining.cancel()
    assert "(--peer HOST:PORT)" in caplog.text


async def test_a_guest_is_out_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b, member_s=4)
        await until(linked(a, b))
        assert not trust_of(b).book.ended
        await until(lambda: not a.others())
        assert trust_of(a).book.alone
        monkeypatch.setenv("ASTRA_MESH_TRUST", str(trust_of(b).folder))
        (told,) = await checks._members()
        assert told.level is checks.Level.BAD
        assert "this device was a guest until" in told.text
        assert "astra-mesh pair CODE" in told.text
        with pytest.raises(PairingError, match="this device was a guest until"):
            check_may_let_in(trust_of(b))


# --- strangers ------------------------------------------------------------------------------------


async def secure_connection(
    peer: Peer, context: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", peer.port, ssl=context, server_hostname="astra-mesh"
    )


async def answer_to(peer: Peer, context: ssl.SSLContext | None, data: bytes) -> bytes:
    """All that a peer says to somebody who sends ``data``, until it ends the connection."""
    try:
        if context is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
        else:
            reader, writer = await secure_connection(peer, context)
    except OSError:
        return b""
    try:
        writer.write(data)
        async with asyncio.timeout(patient(WAIT_S)):
            return await reader.read()
    except OSError:
        return b""
    finally:
        abandon(writer)
        with suppress(OSError):
            await writer.wait_closed()


UPGRADE = (
    b"GET /mesh HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def with_certificate_of(folder: Path) -> ssl.SSLContext:
    """Dials with a certificate of that device, and believes whatever answers."""
    caller = await Caller.new(folder)
    context = caller.tls.client
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    "data", [UPGRADE, b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, b"\xff" * 64, b""], ids=repr
)
async def test_a_stranger_gets_no_byte(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAIR_EXCHANGE_S", 1.0)
    waits = doorman.Waits(pairing_s=1.0)
    monkeypatch.setattr(doorman, "Waits", lambda: waits)
    async with Peer(config(tmp_path / "a")) as peer:
        stranger = await with_certificate_of(tmp_path / "b")
        assert await answer_to(peer, stranger, data) == b""
        said = await answer_to(peer, pairing_tls(), data)  # shows no certificate
        assert said == b"" or isinstance(_message(said), Closed)
        said = await answer_to(peer, None, data) if data else b""  # no TLS at all: an alert
        assert len(said) <= 7
        assert said[:1] in (b"", b"\x15")


def _message(said: bytes) -> Message:
    assert int.from_bytes(said[:4], "big") == len(said) - 4
    return msgspec.msgpack.decode(said[4:], type=Message)


async def test_a_knock_without_a_window(tmp_path: Path) -> None:
    async with Peer(config(tmp_path / "a")) as peer:
        device = (await Caller.new(tmp_path / "b")).trust.device
        for knock in (
            Knock(1, b"", device.certificate, "b", b"A" * 33),
            Knock(1, b"x" * 8, device.certificate, "b", b"A" * 33),
            Knock(9, b"", device.certificate, "b", b""),
        ):
            data = msgspec.msgpack.encode(knock)
            said = await answer_to(peer, pairing_tls(), len(data).to_bytes(4, "big") + data)
            assert isinstance(_message(said), Closed)


async def test_what_a_member_sends_that_is_no_http_is_no_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(config(tmp_path / "a")) as peer:
        member = await with_certificate_of(tmp_path / "a")
        for data in (b"\0\1\2 no http\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000):
            assert (await answer_to(peer, member, data)).startswith(b"HTTP/1.0 400")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_what_a_stranger_says_is_not_repeated(tmp_path: Path) -> None:
    async with Peer(config(tmp_path / "a")) as peer:
        data = msgspec.msgpack.encode(Closed("said\x1b[2J by a stranger"))
        assert await answer_to(peer, pairing_tls(), len(data).to_bytes(4, "big") + data) == b""


async def test_hostile_knocks_at_an_open_window(tmp_path: Path) -> None:
    async with Peer(config(tmp_path / "a")) as peer:
        code = read_secret(new_code())
        await asyncio.to_thread(Invitations(tmp_path / "a").open_window, code)
        device = (await Caller.new(tmp_path / "b")).trust.device
        bad = [Knock(1, b"", b"\x30", "b", b"A" * 33), Knock(1, b"", device.certificate, "b", b"")]
        for knock in bad:
            data = msgspec.msgpack.encode(knock)
            said = await answer_to(peer, pairing_tls(), len(data).to_bytes(4, "big") + data)
            assert isinstance(_message(said), Closed)
        assert await answer_to(peer, pairing_tls(), b"\x7f\xff\xff\xff")
        window = await asyncio.to_thread(Invitations(tmp_path / "a").window)
        assert window is not None
        assert window.tries == limits.PAIR_TRIES - len(bad)  # each could have been a guess


async def test_dialling_a_stranger_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(config(tmp_path / "a")) as peer:
        with pytest.raises(NotPairedError, match="astra-mesh pair"):
            await Mesh(("127.0.0.1", peer.port), trust_dir=tmp_path / "b").open()
        with pytest.raises(NotPairedError):
            async with astra_mesh.connect(f"127.0.0.1:{peer.port}"):
                pass
        async with Peer(config(tmp_path / "c", peer)) as other:
            await asyncio.sleep(2.0)
            assert not other.others()
    named = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(named) == 1
    assert "not paired" in named[0]


async def test_a_client_is_told_who_is_near_and_not_paired(tmp_path: Path) -> None:
    async with Peer(config(tmp_path / "a")) as peer, Peer(config(tmp_path / "b")) as board:
        assert peer._links is not None
        async with Mesh(("127.0.0.1", peer.port), trust_dir=tmp_path / "a") as mesh:
            assert await mesh.strangers() == []
            peer._links._found(board.id, "board", [("127.0.0.1", board.port)])  # it announced that
            async with asyncio.timeout(patient(5.0)):
                while not (near := await mesh.strangers()):
                    await asyncio.sleep(0.05)
            assert near == ["board"]
            assert [one.name for one in await mesh.peers()] == [peer.name]
            peer._links._gone(board.id)
            assert await mesh.strangers() == []


async def test_who_was_paired_while_its_dial_failed_is_no_stranger(tmp_path: Path) -> None:
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(lambda: a.link(b.id) is not None)
        links, now = a._links, trust_of(a).version
        assert links is not None
        links._near[b.id] = "b"
        links._note_stranger(b.id, now)  # it dialled this one meanwhile
        links._near[PeerId("f" * 64)] = "other"
        links._note_stranger(PeerId("f" * 64), now - 1)  # the dial began before the roster changed
        assert links.strangers() == []
        links._note_stranger(PeerId("f" * 64), now)
        assert links.strangers() == ["other"]


async def test_a_peer_that_trusts_us_but_whom_we_do_not_trust(tmp_path: Path) -> None:
    """Each end checks for itself: a mesh that took our certificate in without being asked."""
    async with devices(tmp_path, 2) as (a, b):
        certificate = trust_of(b).device.certificate

        def decide(book: Any) -> bool:
            book.let_in(certificate, "b")
            return True

        await asyncio.to_thread(trust_of(a).change, decide)
        await asyncio.sleep(2.0)
        assert not any(peer.others() for peer in (a, b))


async def test_a_hello_with_the_id_of_another(tmp_path: Path) -> None:
    caller = await Caller.new(tmp_path)
    async with Peer(config(tmp_path)) as peer, aiohttp.ClientSession() as http:
        hello = Hello(
            magic=MAGIC,
            version=PROTOCOL_VERSION,
            peer=PeerId("ab" * 32),
            name="mallory",
            role=Role.PEER,
            window_bytes=1 << 20,
        )
        link = Link(await caller.dial(http, peer.port), Session(hello), dialled=True)
        error = await link.run(lambda message: None)
        assert error is not None
        assert "another peer answers" in error.message
        assert not peer.others()


async def test_a_forged_announcement_leads_to_no_link(tmp_path: Path) -> None:
    """Not even where a member answers: its certificate is that of another peer."""
    forged = PeerId("f" * 64)
    async with Peer(config(tmp_path)) as a, Peer(config(tmp_path)) as b:
        links = a._links
        assert links is not None
        links._found(forged, "b", [("127.0.0.1", b.port)])
        await until(lambda: links._membership._entries[forged].failures > 0)
        assert (a.others(), b.others()) == ({}, {})
        links._found(b.id, "b", [("127.0.0.1", b.port)])
        await until(linked(a, b))
        assert links.link(forged) is None


async def test_forged_and_many_rosters_from_a_member(tmp_path: Path) -> None:
    """A flood of good ones costs one at a time; a forged one ends the link, by name."""
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(linked(a, b))
        book = trust_of(b).book
        link = b.link(a.id)
        assert link is not None
        for _ in range(200):
            link.send(book.message())
        await asyncio.sleep(0.2)
        assert linked(a, b)()
        good = book.message()
        forged = [replace(entry, generation=9, name="x") for entry in good.entries]
        link.send(replace(good, entries=forged))
        await until(lambda: not link.is_open)
        assert link.close_error is not None
        assert "not signed" in link.close_error.message
        assert len(trust_of(a).members()) == 2


# --- time and number ------------------------------------------------------------------------------


async def test_slow_ones_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = doorman.Waits(handshake_s=1.0, upgrade_s=1.0, pairing_s=1.0)
    monkeypatch.setattr(doorman, "Waits", lambda: waits)
    async with Peer(config(tmp_path)) as peer:
        caller = await Caller.new(tmp_path)
        raw = await asyncio.open_connection("127.0.0.1", peer.port)  # before TLS
        half = await asyncio.open_connection("127.0.0.1", peer.port)  # inside its first record
        half[1].write(b"\x16\x03\x01\x02\x00\x01")
        pairing = await secure_connection(peer, pairing_tls())  # inside a pairing
        pairing[1].write(b"\x00\x00")
        member = await secure_connection(peer, caller.tls.client)  # before the upgrade
        member[1].write(UPGRADE[:40])
        for reader, writer in (raw, half, pairing, member):
            async with asyncio.timeout(patient(WAIT_S)):
                with suppress(OSError):
                    assert await reader.read() == b""
            abandon(writer)
        async with aiohttp.ClientSession() as http:
            await (await caller.dial(http, peer.port)).close()


async def drips(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"G")
        await asyncio.sleep(0.05)


def abandon(writer: asyncio.StreamWriter) -> None:
    writer.close()
    writer.transport.abort()


async def test_dripping_bytes_do_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = doorman.Waits(handshake_s=1.0, upgrade_s=1.0, pairing_s=1.0)
    monkeypatch.setattr(doorman, "Waits", lambda: waits)
    async with Peer(config(tmp_path)) as peer:
        caller = await Caller.new(tmp_path)
        reader, writer = await secure_connection(peer, caller.tls.client)
        async with asyncio.timeout(patient(WAIT_S)):
            drip = asyncio.create_task(drips(writer))
            with suppress(OSError):
                await reader.read()  # ends, whatever a member is told
        drip.cancel()
        await asyncio.wait([drip])
        abandon(writer)


async def test_a_flood_of_connections_leaves_room_for_members(tmp_path: Path) -> None:
    async with Peer(config(tmp_path)) as peer, AsyncExitStack() as stack:
        caller = await Caller.new(tmp_path)
        for _ in range(3 * limits.HANDSHAKES):  # they never say a word
            _, writer = await asyncio.open_connection("127.0.0.1", peer.port)
            stack.callback(abandon, writer)
        async with aiohttp.ClientSession() as http:
            socket = await dial(http, "127.0.0.1", peer.port, secure=caller.secure)
            await socket.close()
        keeper = peer._links
        assert keeper is not None
        assert keeper._door._doorman is not None
        assert len(keeper._door._doorman._greeting) <= limits.HANDSHAKES_PER_HOST


async def test_one_device_cannot_take_all_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINKS_PER_DEVICE", 2)
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(linked(a, b))
        guest = await Caller.new(trust_of(b).folder)
        own = await Caller.new(trust_of(a).folder)
        async with aiohttp.ClientSession() as http:
            second = await guest.dial(http, a.port)
            with pytest.raises(NoPeerError, match="HTTP 503"):
                await guest.dial(http, a.port)
            await (await own.dial(http, a.port)).close()
            await second.close()
            await until_dialled(guest, http, a.port)  # there is room again


async def test_one_device_cannot_take_all_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all its links; those of others, and of the peer's own device, go on."""

    async def forever(self: Answer) -> None:
        await asyncio.sleep(WAIT_S)

    monkeypatch.setattr(limits, "REQUESTS_PER_DEVICE", 2)
    monkeypatch.setattr(Answer, "run", forever)
    async with devices(tmp_path, 2) as (a, b), AsyncExitStack() as stack:
        await pair(a, b)
        await until(linked(a, b))
        guests = [await Caller.new(trust_of(b).folder) for _ in range(2)]
        first, second = [await stack.enter_async_context(client_of(a, one)) for one in guests]
        own = await stack.enter_async_context(client_of(a, await Caller.new(trust_of(a).folder)))
        for client in (first, second, own, own, own):
            client.send(Task.GENERATE, "words", text="Once")
        reply = await second.reply(second.send(Task.GENERATE, "words", text="Once"))
        assert reply.failure is not None
        assert reply.failure.code == "busy"
        assert "your device has 2 requests open here" in reply.failure.text
        await until(lambda: a._requests is not None and len(a._requests._answers) == 5)
        await first.link.close()  # its place is free again
        await until(lambda: a._requests is not None and len(a._requests._answers) == 4)
        second.send(Task.GENERATE, "words", text="Once")
        await until(lambda: a._requests is not None and len(a._requests._answers) == 5)


async def until_dialled(caller: Caller, http: aiohttp.ClientSession, port: int) -> None:
    async with asyncio.timeout(patient(WAIT_S)):
        while True:
            with suppress(NoPeerError):
                await (await caller.dial(http, port)).close()
                return
            await asyncio.sleep(0.05)


async def test_a_flood_of_pairings_is_bounded(tmp_path: Path) -> None:
    async with Peer(config(tmp_path)) as peer, AsyncExitStack() as stack:
        for _ in range(3 * limits.PAIR_CONNECTIONS):
            _, writer = await secure_connection(peer, pairing_tls())
            stack.callback(abandon, writer)
        keeper = peer._links
        assert keeper is not None
        assert keeper._door._doorman is not None
        assert len(keeper._door._doorman._pairing) <= limits.PAIR_CONNECTIONS


async def test_a_port_without_tls_is_no_peers_port() -> None:
    """The API's, say."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    caller, secret = await Caller.new(), read_secret(new_code())
    async with server, aiohttp.ClientSession() as http:
        with pytest.raises(NoPeerError, match="no port of the mesh"):
            await caller.dial(http, port)
        with pytest.raises(PairingError, match="no port of the mesh"):
            await pair_at(caller.trust, secret, ("127.0.0.1", port))
