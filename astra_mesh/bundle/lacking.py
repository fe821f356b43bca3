"""What a model's folder lacks so that people can use the model, and which of it is unfit."""

from __future__ import annotations

from typing import Final

from astra_mesh.bundle.configs import again
from astra_mesh.bundle.manifest import check_file, read_manifest
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
    name = TOKENIZER if size else PREPROCESSOR
    try:
        if not size:
            read_preprocessor(bundle.optional_json(PREPROCESSOR))
            return ""
        known = TextTokenizer.from_bundle(bundle).vocab_size
    except AstraMeshError as error:
        return _with_remedy(error.message, bundle, name)
    if abs(known - size) <= _SPARE * size:
        return ""
    return (
        f"{bundle.name}: its {TOKENIZER} has {known} tokens and the model {size}, so it belongs to "
        f"another model: copy this model's {TOKENIZER} into {bundle.path}"
    )


def _with_remedy(message: str, bundle: Bundle, name: str) -> str:
    """The sentence about a file. Peers give anew only what is not as the manifest lists it."""
    path = bundle.path / name
    about = message.removesuffix(f"; {again(path)}")
    if about == message:
        return message
    try:
        entry = (read_manifest(bundle.path) or {}).get(name)
        if entry is None:
            return f"{about}; copy this model's {name} into {bundle.path}"
        check_file(path, entry)
    except AstraMeshError:
        return message
    return (
        f"{about}, and came so with the model; delete {bundle.path} and add the model again with "
        f"a right {name}"
    )
