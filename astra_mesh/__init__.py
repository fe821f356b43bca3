"""One transformer inference, spread over the devices in the room.

async with astra_mesh.connect() as mesh:
    async for token in mesh.generate("tiny-gpt2", "Once upon a time"):
        print(token, end="", flush=True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from astra_mesh._version import __version__
from astra_mesh.errors import AstraMeshError

if TYPE_CHECKING:
    from astra_mesh.client import Mesh, Token, connect

__all__ = ["AstraMeshError", "Mesh", "Token", "__version__", "connect"]

_IN_CLIENT = ("Mesh", "Token", "connect")  # imported on first use: `import astra_mesh` stays quick


def __getattr__(name: str) -> Any:
    if name in _IN_CLIENT:
        return getattr(import_module("astra_mesh.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_IN_CLIENT])
