"""A stranger that opens connections to a peer: ``python -m tools.bench.attacker KIND HOST PORT``.

:mod:`tools.bench.flood` runs it on a device of its own in the laboratory. It attacks from a line
``go`` on standard input to a line ``stop``, then prints what it did as one line of JSON. It keeps a
number of connections open, a new one for each that ends, so many a second at most.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from astra_mesh.mesh.identity import DeviceKey
from astra_mesh.mesh.trust import Trust, pairing_tls

NICE: Final = 15  # it stands for other machines, so it leaves the cores to the peers
DRIP_S: Final = 1.0  # between two bytes of a slow one
_TICK_S: Final = 0.02  # connections begin in lumps of so long
_NAME: Final = "astra-mesh"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Kind(NamedTuple):
    """What is done to the peer."""

    text: str
    connections: int  # at once
    per_s: int  # new ones
    addresses: int = 1  # that they come from


KINDS: Final = {
    "silent": Kind("connections that send nothing", 1_000, 1_000),
    "slow": Kind(
        "one byte a second: half before TLS, half before the upgrade, with a member's key", 200, 200
    ),
    "hello": Kind("a ClientHello, always the same one, and nothing after it", 1_000, 1_000),
    "handshake": Kind(
        "whole handshakes: half without a certificate, half with one that is unknown", 1_000, 1_000
    ),
    "silent-many": Kind("as silent, from 64 addresses", 1_000, 1_000, 64),
    "hello-many": Kind("as hello, from 64 addresses", 1_000, 1_000, 64),
    "handshake-many": Kind("as handshake, from 64 addresses", 1_000, 1_000, 64),
}


class Attacker:
    """One attack, again and again.

    Args:
        kind: What it does.
        host, port: The peer.
        trust: The folder of a member's keys, for the slow ones.
        sources: Addresses that connections come from, in turns.
    """

    def __init__(self, kind: str, host: str, port: int, trust: Path, sources: list[str]) -> None:
        self._kind, self._what = KINDS[kind], kind.removesuffix("-many")
        self._host, self._port = host, port
        self._sources = itertools.cycle(sources)
        self._contexts = self._make_contexts(trust)
        self._hello = client_hello()
        self._turns = asyncio.Semaphore(0)
        self.opened = self.handshakes = 0

    def _make_contexts(self, trust: Path) -> Iterator[ssl.SSLContext | None]:
        if self._what == "slow":
            known = Trust.open(trust)
            return itertools.cycle([None, known.client_tls(known.device.issue())])
        if self._what == "handshake":
            stranger = pairing_tls()
            identity = DeviceKey.new().issue()
            path = trust / ".stranger.pem"
            path.write_bytes(identity.key_pem + identity.certificate_pem)
            stranger.load_cert_chain(path)
            path.unlink()
            return itertools.cycle([pairing_tls(), stranger])
        return itertools.repeat(None)

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pace())
            for _ in range(self._kind.connections):
                group.create_task(self._keep_one())

    async def _pace(self) -> None:
        while True:
            for _ in range(round(self._kind.per_s * _TICK_S)):
                if self._turns.locked():
                    self._turns.release()
            await asyncio.sleep(_TICK_S)

    async def _keep_one(self) -> None:
        while True:
            await self._turns.acquire()
            with suppress(OSError):
                async with self._open(next(self._contexts)) as (reader, writer):
                    await self._bother(reader, writer)

    async def _bother(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the peer ends it."""
        if self._what == "hello":
            writer.write(self._hello)
        if self._what == "slow":
            byte = b"\x16" if writer.get_extra_info("ssl_object") is None else b"G"
            while not reader.at_eof() and not writer.is_closing():
                writer.write(byte)
                await asyncio.sleep(DRIP_S)
        await reader.read()

    @asynccontextmanager
    async def _open(self, context: ssl.SSLContext | None) -> AsyncIterator[Connection]:
        self.opened += 1
        reader, writer = await asyncio.open_connection(
            self._host,
            self._port,
            ssl=context,
            server_hostname=_NAME if context else None,
            local_addr=(next(self._sources), 0),
        )
        self.handshakes += context is not None
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


def client_hello() -> bytes:
    """The first message of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = pairing_tls().wrap_bio(incoming, outgoing, server_hostname=_NAME)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def obey(arguments: argparse.Namespace) -> None:
    """Attack from each ``go`` to the next ``stop``."""
    attacker = Attacker(
        arguments.kind, arguments.host, arguments.port, arguments.trust, arguments.sources
    )
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while (await lines.readline()).strip() == b"go":
        attacker.opened = attacker.handshakes = 0
        attack = asyncio.create_task(attacker.run())
        await lines.readline()  # "stop"
        attack.cancel()
        await asyncio.wait([attack])
        done = {"opened": attacker.opened, "handshakes": attacker.handshakes}
        print(json.dumps(done), flush=True)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.attacker", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--trust", type=Path, required=True, help="a member's keys")
    parser.add_argument("--source", action="append", dest="sources", required=True)
    os.nice(NICE)
    asyncio.run(obey(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
