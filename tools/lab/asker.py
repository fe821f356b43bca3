"""A client on a device that asks its peer again and again; :mod:`tools.lab.client` drives it.

It takes one JSON document a line on standard input and answers each with one line, in the order in
which they end; the end of standard input is its own. It runs outside the device's CPU quota. Each
question has a connection of its own, with ``--keep`` all have the first one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec

from astra_mesh.client import Mesh
from astra_mesh.errors import AstraMeshError

KEEP: Final = "--keep"
_kept: dict[int, Mesh] = {}  # by the port of their peer


async def answer(document: dict[str, Any]) -> dict[str, Any]:
    """Do what one line says; errors become ``error``. Times are monotonic seconds."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(document["timeout_s"]):
            async with _mesh(document["port"]) as mesh:
                began = time.monotonic()
                found = await _TASKS[document["task"]](mesh, document)
    except TimeoutError:
        found = {"error": {"code": "deadline", "message": "no answer in the request's timeout_s"}}
    except AstraMeshError as error:
        found = {"error": {"code": error.code, "message": error.message}}
    except Exception as error:  # of one question: the others go on
        found = {"error": {"code": "asker", "message": f"{type(error).__name__}: {error}"}}
    ended = time.monotonic()
    return {"id": document["id"], "began": began, "wall_s": ended - began, **found}


@contextlib.asynccontextmanager
async def _mesh(port: int) -> AsyncIterator[Mesh]:
    """To the peer of this device."""
    keep = KEEP in sys.argv[1:]
    mesh = _kept.get(port) or await Mesh(("127.0.0.1", port)).open()
    if keep:
        _kept[port] = mesh
    try:
        yield mesh
    finally:
        if not keep:
            await mesh.close()


async def peers(mesh: Mesh, document: dict[str, Any]) -> dict[str, Any]:
    """Who is here."""
    return {"peers": await mesh.peers()}


async def generate(mesh: Mesh, document: dict[str, Any]) -> dict[str, Any]:
    """Continue a text; ``token_s`` is when each token came, ``first_s`` the first."""
    began, times, ids = time.monotonic(), list[float](), []
    given = document["text"] if document["tokens"] is None else document["tokens"]
    asked = mesh.generate(document["model"], given, **document["options"])
    async with asked as generation:
        async for token in generation:
            times.append(time.monotonic() - began)
            ids.append(token.id)
    answered: dict[str, Any] = {"text": generation.text, "tokens": ids, "token_s": times}
    answered["first_s"] = times[0] if times else None
    return {**answered, "planned": generation.planned, "report": generation.report}


async def classify(mesh: Mesh, document: dict[str, Any]) -> dict[str, Any]:
    """Label a picture or a text."""
    image = document["image"]
    given = document["text"] if image is None else Path(image)
    found = await mesh.classify(document["model"], given, **document["options"])
    return {"labels": found.labels, "planned": found.planned, "report": found.report}


async def embed(mesh: Mesh, document: dict[str, Any]) -> dict[str, Any]:
    """A vector of a text."""
    found = await mesh.embed(document["model"], document["text"], **document["options"])
    vector = [float(value) for value in found.vector]
    return {"vector": vector, "planned": found.planned, "report": found.report}


_TASKS = {"peers": peers, "generate": generate, "classify": classify, "embed": embed}


async def _reply(line: bytes) -> None:
    document = msgspec.to_builtins(await answer(json.loads(line)), str_keys=True)
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Answer until standard input ends; what is under way then is dropped."""
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as group:
        tasks = set()
        while line := await reader.readline():
            task = group.create_task(_reply(line))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()
    for mesh in _kept.values():
        await mesh.close()


if __name__ == "__main__":
    asyncio.run(main())
