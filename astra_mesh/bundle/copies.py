"""Folders that hold the same model: the id is over config and weights, so the files that texts are
read and written with may differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from astra_mesh.bundle.hashing import file_sha256
from astra_mesh.bundle.store import Bundle
from astra_mesh.bundle.text import NAME as TOKENIZER

TEMPLATE: Final = "chat_template.jinja"
SETTINGS: Final = "tokenizer_config.json"
_READERS: Final = (TOKENIZER, SETTINGS, TEMPLATE, "special_tokens_map.json")


class Words(NamedTuple):
    """What a folder has to read and write texts with."""

    tokenizer: bool
    chat: bool  # a chat template


def words_of(bundle: Bundle) -> Words:
    """What a folder has to read and write texts with.

    Raises:
        BadBundleError: Its settings cannot be read.
    """
    chat = bundle.has(TEMPLATE) or bool(bundle.optional_json(SETTINGS).get("chat_template"))
    return Words(bundle.has(TOKENIZER), chat)


def best_words(copies: Sequence[tuple[Bundle, Words]]) -> tuple[Bundle, Words]:
    """Of copies, the one whose tokenizer and chat template count: one with both, the first by name.
    Reads nothing."""
    return max(sorted(copies, key=lambda one: one[0].name), key=lambda one: one[1])


def read_alike(copies: Sequence[Bundle]) -> bool:
    """Whether all have the same tokenizer and chat template.

    Raises:
        BadBundleError: A file cannot be read.
    """
    return len({tuple(_hashes(one)) for one in copies}) == 1


def _hashes(bundle: Bundle) -> list[str]:
    paths = [bundle.path / name for name in _READERS]
    return [file_sha256(path) if path.exists() else "" for path in paths]
