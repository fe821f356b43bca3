"""Text from token ids one at a time (incremental detokenization).

Decoding each id alone would lose the spaces that depend on the neighbours and would break
characters that span several tokens. So the stream decodes a short window: some ids whose text is
out already (the context) and those whose text is not (the pending ones), and emits what the
window's text has more than the context's. It waits while the text may still change: while it ends
in an incomplete UTF-8 sequence, and throughout a run of byte tokens (``<0xE2>``), which the
byte-fallback decoder reads as a whole.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

_CONTEXT: Final = 8  # ids; one with text would do for all decoders in use
_LONGEST: Final = (
    128  # ids held back at most (42 characters of 3 bytes); then the text is cut there
)
_TAIL: Final = 3  # an incomplete UTF-8 sequence has at most 3 bytes, hence at most 3 tokens
_UNKNOWN: Final = "\N{REPLACEMENT CHARACTER}"
_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Decoder(Protocol):
    """What the stream needs of a tokenizer."""

    def decode(self, ids: list[int]) -> str:
        """The text of the ids."""

    def piece(self, token_id: int) -> str | None:
        """The vocabulary entry of an id; None if it has no text (special, unknown)."""


class TextStream:
    """Takes token ids, gives text. All pushes and one flush together equal ``decode`` of all ids.

    (Exception: an invalid run of more than 128 byte tokens is cut, so as not to wait for ever.)
    """

    def __init__(self, decoder: Decoder, byte_fallback: bool) -> None:
        self._decoder = decoder
        self._byte_fallback = byte_fallback
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Takes the next id; the text that is certain by now and was not given before."""
        piece = self._decoder.piece(token_id)
        if piece is None:
            return ""
        self._pending.append(token_id)
        full = len(self._pending) >= _LONGEST
        if self._byte_fallback and _BYTE.fullmatch(piece):
            return self._cut() if full else ""
        text = self._decoder.decode(self._context + self._pending)
        if not text.startswith(self._context_text):
            return self._cut() if full else ""
        if text.endswith(_UNKNOWN):
            return self._emit_before_tail(text) or (self._cut() if full else "")
        return self._emit(len(self._pending))

    def flush(self) -> str:
        """The text that was held back; afterwards the stream is as new."""
        text = self._emit(len(self._pending))
        self._context, self._context_text = [], ""
        return text

    def _emit(self, count: int) -> str:
        """Moves the first ``count`` pending ids to the context and returns their text."""
        ids, self._pending = self._pending[:count], self._pending[count:]
        text = self._decoder.decode(self._context + ids)
        if text.startswith(self._context_text):
            new = text[len(self._context_text) :]
        else:  # only after a cut
            new = self._decoder.decode(ids)
        self._keep(self._context + ids)
        return new

    def _keep(self, ids: list[int]) -> None:
        """Shortens the context, but not to ids without text: they would not hold a first place."""
        for context in (ids[-_CONTEXT:], ids[-_LONGEST:]):
            self._context, self._context_text = context, self._decoder.decode(context)
            if self._context_text:
                return

    def _emit_before_tail(self, text: str) -> str:
        """Emits what precedes an incomplete last character, if the two decode apart."""
        for tail in range(1, min(_TAIL, len(self._pending) - 1) + 1):
            count = len(self._pending) - tail
            head = self._decoder.decode(self._context + self._pending[:count])
            rest = self._decoder.decode(self._pending[count:])
            if head.startswith(self._context_text) and head + rest == text:
                return self._emit(count)
        return ""

    def _cut(self) -> str:
        """Emits although the text might change, if possible between two characters."""
        for tail in range(_TAIL + 1):
            count = len(self._pending) - tail
            if not self._decoder.decode(self._pending[:count]).endswith(_UNKNOWN):
                break
        else:
            count = len(self._pending)
        ids = self._pending[:count]
        text = self._emit(count)
        # The run may go on: a context that began within one of its characters would spoil the rest.
        self._context, self._context_text = ids, self._decoder.decode(ids)
        return text
