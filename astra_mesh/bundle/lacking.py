"""What a model's folder lacks so that people can use the model."""

from __future__ import annotations

from astra_mesh.bundle.preprocessor import NAME as PREPROCESSOR
from astra_mesh.bundle.specs import spec_of
from astra_mesh.bundle.store import Bundle
from astra_mesh.bundle.text import NAME as TOKENIZER


def lacking_file(bundle: Bundle) -> str:
    """The file that reads texts or pictures for a model, where its folder has none; else ""."""
    needed = TOKENIZER if spec_of(bundle).vocab_size else PREPROCESSOR
    return "" if bundle.has(needed) else needed
