"""The async client: ask a mesh for text, labels and vectors.

Nothing here needs torch, unless no peer runs on this machine: then one starts in this process.
"""

from astra_mesh.client.answers import Classification, Embedding, ModelEntry, Token
from astra_mesh.client.generation import Generation
from astra_mesh.client.mesh import Mesh, connect

__all__ = [
    "Classification",
    "Embedding",
    "Generation",
    "Mesh",
    "ModelEntry",
    "Token",
    "connect",
]
