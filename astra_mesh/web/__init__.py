"""The HTTP API of a peer: OpenAI's shape, on a port of its own (docs/api.md)."""

from astra_mesh.web.config import ApiConfig
from astra_mesh.web.server import ApiServer, serving

__all__ = ["ApiConfig", "ApiServer", "serving"]
