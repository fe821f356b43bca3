"""A client on a device of the benchmark's LAN: asks the peer there through the package's client.

A line of JSON on standard input, a :class:`Question`, gives one line of JSON: what the report says,
or {"error": ...}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any, Final

import msgspec

from astra_mesh.cli.console import run_async
from astra_mesh.client import Mesh, connect
from astra_mesh.client.inputs import UseName
from astra_mesh.errors import AstraMeshError
from astra_mesh.wire.messages import Planned, Report

LINE_BYTES: Final = 4 << 20
CONNECT_TRIES: Final = 200
CONNECT_PAUSE_S: Final = 0.2


class Question(msgspec.Struct, frozen=True):
    """What to ask; without tokens and image: who is there."""

    model: str = ""
    tokens: list[int] = []
    image: bytes = b""
    members: int = 1
    codec: str = ""
    rate: int = 0


async def ask(mesh: Mesh, question: Question) -> dict[str, Any]:
    """The reply to one question."""
    if not question.tokens and not question.image:
        found = await mesh.peers()
        return {
            "peers": [one.name for one in found],
            "bps": [one.send_bps for one in found if not one.self],
        }
    use: UseName = "solo" if question.members == 1 else "all"
    if question.image:
        answer = await mesh.classify(
            question.model,
            question.image,
            use=use,
            max_peers=question.members,
            codec=question.codec,
            rate=question.rate,
        )
        return _told(answer.planned, answer.report)
    generation = mesh.generate(
        question.model,
        question.tokens,
        max_new_tokens=1,
        use=use,
        max_peers=question.members,
        codec=question.codec,
        rate=question.rate,
    )
    async with generation:
        async for _ in generation:
            pass
    assert generation.report is not None
    return _told(generation.planned, generation.report)


def _told(planned: Planned | None, report: Report) -> dict[str, Any]:
    return {
        "seconds": report.actual_s,
        "predicted_s": report.predicted_s,
        "solo_predicted_s": None if planned is None else planned.solo_s,
        "bits": report.bits_per_token,
        "notes": report.notes,
        "peers": [
            {
                "tokens": one.tokens,
                "compute_s": one.compute_s,
                "encode_s": one.encode_s,
                "decode_s": one.decode_s,
                "wait_s": one.wait_s,
                "finished_s": one.finished_s,
                "sent_bytes": sum(one.sent_bytes.values()),
            }
            for one in report.peers
        ],
    }


async def _connected(address: str) -> Mesh:
    """The peer starts while we knock."""
    for _ in range(CONNECT_TRIES):
        try:
            return await connect(address).open()
        except AstraMeshError:
            await asyncio.sleep(CONNECT_PAUSE_S)
    return await connect(address).open()


async def _serve(address: str) -> None:
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    mesh = await _connected(address)
    print(json.dumps({"ready": True}), flush=True)
    try:
        while line := await reader.readline():
            try:
                reply = await ask(mesh, msgspec.json.decode(line, type=Question))
            except AstraMeshError as error:
                reply = {"error": error.message}
            print(json.dumps(reply), flush=True)
    finally:
        await mesh.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="of the peer, HOST:PORT")
    run_async(_serve(parser.parse_args().address))


if __name__ == "__main__":
    main()
