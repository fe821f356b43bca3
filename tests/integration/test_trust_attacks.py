"""Attacks on trust by somebody who was inside once, or who kept what went by."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from astra_mesh import limits
from astra_mesh.errors import PairingError
from astra_mesh.mesh import pairing, pairing_guest
from astra_mesh.mesh.codes import new_code, read_secret
from astra_mesh.mesh.doorman import abandon
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.pairing import Message
from astra_mesh.mesh.trust import pairing_tls
from tests.integration.mesh_fixtures import until
from tests.integration.secure import Caller
from tests.integration.test_trust import (
    UPGRADE,
    WAIT_S,
    answer_to,
    devices,
    linked,
    pair,
    pair_with,
    secure_connection,
    shut_out,
    trust_of,
)
from tests.timings import patient


async def test_a_device_that_was_shut_out_gets_no_byte(tmp_path: Path) -> None:
    """Neither with the certificate of its peer, nor with a fresh one."""
    async with devices(tmp_path, 2) as (a, b):
        await pair(a, b)
        await until(linked(a, b))
        caller = await Caller.new(trust_of(b).folder)
        old = caller.tls.client
        assert b" 101 " in await answer_until_upgraded(a.port, old)
        await shut_out(a, b)
        await until(lambda: not a.others())
        trust = caller.trust
        fresh = await asyncio.to_thread(trust.tls, trust.device.issue())
        for context in (old, fresh.client):
            assert await answer_to(a, context, UPGRADE) == b""
        with pytest.raises(PairingError, match="no pairing window"):
            await pair_with(b, new_code(), a)


async def answer_until_upgraded(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="astra-mesh"
    )
    try:
        writer.write(UPGRADE)
        async with asyncio.timeout(patient(WAIT_S)):
            return await reader.readuntil(b"\r\n\r\n")
    finally:
        abandon(writer)
        with suppress(OSError):
            await writer.wait_closed()


async def test_a_pairing_cannot_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a guest said, said again at a window with the same code."""
    said: list[bytes] = []
    send = pairing.send

    async def recorded(writer: asyncio.StreamWriter, message: Message) -> None:
        data = msgspec.msgpack.encode(message)
        said.append(len(data).to_bytes(4, "big") + data)
        await send(writer, message)

    async with devices(tmp_path, 2) as (a, b):
        code = read_secret(new_code())
        invitations = Invitations(trust_of(a).folder)
        await asyncio.to_thread(invitations.open_window, code)
        monkeypatch.setattr(pairing_guest, "send", recorded)
        await pair_with(b, code.text, a)
        monkeypatch.undo()
        await until(linked(a, b))
        await shut_out(a, b)
        await until(lambda: not a.others())
        await asyncio.to_thread(invitations.open_window, code)
        assert len(said) >= 2
        answer = await answer_to(a, pairing_tls(), b"".join(said))
        assert b"wrong" in answer
        assert trust_of(a).book.alone
        window = await asyncio.to_thread(invitations.window)
        assert window is not None
        assert window.tries == limits.PAIR_TRIES - 1  # it counts as a guess
        assert (await pair_with(b, code.text, a)).members  # who knows the code comes in


async def test_no_session_is_resumed(tmp_path: Path) -> None:
    """There is no ticket, so every connection shows its certificate anew, also one that ended."""
    async with devices(tmp_path, 1) as (a,):
        caller = await Caller.new(trust_of(a).folder)
        _, writer = await secure_connection(a, caller.tls.client)
        writer.write(UPGRADE)
        await asyncio.sleep(0.2)
        secure: ssl.SSLObject = writer.get_extra_info("ssl_object")
        assert secure.version() == "TLSv1.3"
        assert secure.session is None or not secure.session.has_ticket
        abandon(writer)
        with suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_older_tls_is_refused(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with devices(tmp_path, 1) as (a,):
        context = (await Caller.new(trust_of(a).folder)).tls.client
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
        assert await answer_to(a, context, UPGRADE) == b""


async def test_a_window_that_was_closed_takes_no_right_code(tmp_path: Path) -> None:
    async with devices(tmp_path, 2) as (a, b):
        code = read_secret(new_code())
        invitations = Invitations(trust_of(a).folder)
        await asyncio.to_thread(invitations.open_window, code)
        await asyncio.to_thread(invitations.close, b"")
        with pytest.raises(PairingError, match="no pairing window"):
            await pair_with(b, code.text, a)
        assert trust_of(a).book.alone
