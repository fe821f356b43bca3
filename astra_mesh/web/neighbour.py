"""Whether it is another peer's API that has a port which is taken."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
import msgspec

from astra_mesh import limits
from astra_mesh.errors import PortInUseError
from astra_mesh.mesh.connect import Address, show_address
from astra_mesh.web.answers import HealthAnswer

_ASK_S: Final = 1.0  # for an answer of this machine


async def check_own_port(address: Address) -> None:
    """PortInUseError that says so if what answers at an address of this machine is such an API."""
    root = f"http://{show_address(address)}"
    try:
        async with (
            asyncio.timeout(_ASK_S),
            aiohttp.ClientSession() as http,
            http.get(f"{root}/health", allow_redirects=False) as answer,
        ):
            found = await answer.content.read(limits.KIB)
        msgspec.json.decode(found, type=HealthAnswer)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.MsgspecError):
        return
    raise PortInUseError(
        f"an astra-mesh peer that runs here already has its API and page at {root}/: use these, or "
        "choose another port with --api-port, or --api-port 0 for any free one"
    )
