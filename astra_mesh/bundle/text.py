"""Text to token ids and back, by the bundle's tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from astra_mesh import limits
from astra_mesh.bundle.configs import bad_file, read_file
from astra_mesh.bundle.store import Bundle
from astra_mesh.bundle.stream import TextStream
from astra_mesh.errors import InputError, PromptTooLongError, WrongTaskError

NAME: Final = "tokenizer.json"
_LARGEST_ID: Final = 2**32 - 1


class TextTokenizer:
    """A tokenizer as its bundle defines it, but never truncating or padding."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Iterable[int] = ()) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
        self._byte_fallback = _has_byte_fallback(tokenizer)
        self.eos_ids = frozenset(eos_ids)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> TextTokenizer:
        """The tokenizer of a bundle.

        Raises:
            WrongTaskError: the model has none: it takes token ids only.
            BadBundleError: tokenizer.json cannot be used.
        """
        if not bundle.has(NAME):
            raise WrongTaskError(
                f"{bundle.name} has no {NAME}, so it takes and gives token ids, not text: pass "
                f"token ids, or add the {NAME} that the model was trained with"
            )
        return cls.from_file(bundle.file(NAME), eos_ids(bundle))

    @classmethod
    def from_file(cls, path: Path, eos_ids: Iterable[int] = ()) -> TextTokenizer:
        """The tokenizer in a tokenizer.json.

        Raises:
            BadBundleError: missing, too large, or not understood.
        """
        data = read_file(path, limits.JSON_BYTES)
        try:
            return cls(Tokenizer.from_buffer(data), eos_ids)
        except BaseException as error:
            # The library's Rust panics are no Exception; whatever stops the program is let through.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                reason = str(error)[:200]
                raise bad_file(path, f"is no tokenizer that can be used ({reason})") from error
            raise

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer's post-processor adds.

        Raises:
            PromptTooLongError: more than limits.TEXT_BYTES.
            InputError: it cannot be encoded (half a surrogate pair).
        """
        return self.encode_full(text)[0]

    def encode_full(self, text: str, special: bool = True) -> tuple[list[int], list[int]]:
        """Token ids and their segment ids (BERT's token types), equally long; errors as encode.

        ``special``: whether the post-processor adds its special tokens; a chat template wrote them
        into the text already.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InputError(f"the text has an invalid character at {error.start}") from error
        if size > limits.TEXT_BYTES:
            raise PromptTooLongError(
                f"the text is longer than the {limits.TEXT_BYTES / limits.MIB:.3g} MiB allowed: "
                "shorten it"
            )
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=special)
        except Exception as error:
            raise InputError(f"the tokenizer refuses the text ({str(error)[:200]})") from error
        return list(encoding.ids), list(encoding.type_ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens; ids outside the vocabulary have no text.

        Raises:
            InputError: an id is negative or over 32 bits.
        """
        wanted = list(ids)
        if any(not 0 <= i <= _LARGEST_ID for i in wanted):
            raise InputError("token ids are whole numbers from 0 on")
        # The library knows special tokens by text, and misses those that its normalizer changes.
        plain = [i for i in wanted if i not in self._special]
        return self._tokenizer.decode(plain, skip_special_tokens=True)

    def piece(self, token_id: int) -> str | None:
        """The vocabulary entry of an id; None for special tokens and ids outside the vocabulary."""
        if token_id in self._special or not 0 <= token_id <= _LARGEST_ID:
            return None
        return self._tokenizer.id_to_token(token_id)

    def after(self, token_id: int, context: list[int]) -> str:
        """The text that one more id adds to those of ``context``; special tokens have their names,
        and bytes that are no whole character are replacement characters.
        """
        known = 0 <= token_id <= _LARGEST_ID
        name = self._tokenizer.id_to_token(token_id) if known else None
        if name is None or token_id in self._special:
            return name or f"token_id:{token_id}"
        before, whole = self.decode(context), self.decode([*context, token_id])
        return whole[len(before) :] if whole.startswith(before) else self.decode([token_id])

    def stream(self) -> TextStream:
        """A new stream that turns ids into text as they come."""
        return TextStream(self, self._byte_fallback)


def eos_ids(bundle: Bundle) -> frozenset[int]:
    """The ids that end a generated text: generation_config.json's, else config.json's; may be none.

    Raises:
        BadBundleError: generation_config.json is malformed.
    """
    chosen = bundle.optional_json("generation_config.json").get("eos_token_id")
    return parse_eos(bundle.config if chosen is None else {"eos_token_id": chosen})


def parse_eos(config: Mapping[str, Any]) -> frozenset[int]:
    """``eos_token_id`` of a config, an int or a list of them; anything else counts as none."""
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if type(v) is int and v >= 0)


def _has_byte_fallback(tokenizer: Tokenizer) -> bool:
    """Whether runs of tokens like <0xE2> are decoded as bytes."""
    if tokenizer.decoder is None:
        return False
    return b'"ByteFallback"' in tokenizer.decoder.__getstate__()
