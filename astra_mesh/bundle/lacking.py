"""What a model's folder lacks so that people can use the model, and which of it is unfit."""

from __future__ import annotations

from typing import Final

from astra_mesh.bundle.preprocessor import NAME as PREPROCESSOR
from astra_mesh.bundle.preprocessor import read_preprocessor
from astra_mesh.bundle.specs import spec_of
from astra_mesh.bundle.store import Bundle
from astra_mesh.bundle.text import NAME as TOKENIZER
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.errors import AstraMeshError

# Of the vocabulary. Models have rows to spare (2 % in Phi-2), and tokens are added to tokenizers.
_SPARE: Final = 0.1


def lacking_file(bundle: Bundle) -> str:
    """The file that reads texts or pictures for a model, where its folder has none; else ""."""
    needed = TOKENIZER if spec_of(bundle).vocab_size else PREPROCESSOR
    return "" if bundle.has(needed) else needed


def fault_of(bundle: Bundle) -> str:
    """What is wrong with the file that reads texts or pictures for a model; "" if nothing is, or
    its folder has none. Reads it whole."""
    if lacking_file(bundle):
        return ""
    size = spec_of(bundle).vocab_size
    try:
        if not size:
            read_preprocessor(bundle.optional_json(PREPROCESSOR))
            return ""
        known = TextTokenizer.from_bundle(bundle).vocab_size
    except AstraMeshError as error:
        return error.message
    if abs(known - size) <= _SPARE * size:
        return ""
    return (
        f"{bundle.name}: its {TOKENIZER} has {known} tokens and the model {size}, so it belongs to "
        f"another model: copy this model's {TOKENIZER} into {bundle.path}"
    )
