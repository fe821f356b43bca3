"""The spec of a model in a folder, with errors that name the file which they are about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from astra_mesh.bundle.configs import shown
from astra_mesh.errors import ModelError

if TYPE_CHECKING:
    from astra_mesh.bundle.store import Bundle
    from astra_mesh.families import ModelSpec

_NAME: Final = "config.json"  # how the families call the file that they are given the content of


def spec_of(bundle: Bundle) -> ModelSpec:
    """The spec of a bundle; UnsupportedModelError, BadBundleError."""
    return spec_in(bundle.path, bundle.config)


def spec_in(folder: Path, config: Mapping[str, Any]) -> ModelSpec:
    """The spec that a folder's config.json describes; UnsupportedModelError, BadBundleError."""
    return spec_called(shown(folder / _NAME), config)


def spec_called(name: str, config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a config.json that errors call so; UnsupportedModelError, BadBundleError."""
    from astra_mesh.families import read_spec

    try:
        return read_spec(config)
    except ModelError as error:
        about = error.message.removeprefix(_NAME)
        if about == error.message:
            raise
        raise type(error)(f"{name}{about}") from error
