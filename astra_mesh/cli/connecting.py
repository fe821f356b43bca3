"""How commands get to the mesh, and what they say where nobody else is in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from astra_mesh.cli.console import clean, err

if TYPE_CHECKING:
    from astra_mesh.client import Mesh

LOOKING: Final = "looking for peers"
ALONE: Final = (
    'alone: no other peer found; start "astra-mesh peer" on another device of this network '
    "(or name one with --peer HOST:PORT), and pair the two once: astra-mesh pair"
)


async def alone(mesh: Mesh) -> str:
    """What somebody can do who is in no mesh with others."""
    from astra_mesh.naming import listed

    strangers = [clean(name) for name in await mesh.strangers()]
    if not strangers:
        return ALONE
    what = "is near, but not paired" if len(strangers) == 1 else "are near, but not paired"
    return f"alone: {listed(strangers)} {what} with this device; pair them once: astra-mesh pair"


@asynccontextmanager
async def opened(
    connect: str | None, typed: list[str] | None, *, silent: bool = False
) -> AsyncIterator[Mesh]:
    """The mesh, with a live line while it is looked for; ``silent``: the caller has its own."""
    status = err.status(LOOKING, spinner="dots")
    if not silent:
        status.start()
    try:
        from astra_mesh import client

        mesh = await client.connect(connect, peers=typed or ())
    finally:
        status.stop()
    try:
        yield mesh
    finally:
        await mesh.close()
