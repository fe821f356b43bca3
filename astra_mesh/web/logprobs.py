"""Log-probabilities of new tokens as texts, in step with the text that a stop string may end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.client import Token
from astra_mesh.engine.sampling import Likely

_LEAST: Final = -9999.0  # as OpenAI writes what is next to impossible; JSON has no infinity
_CONTEXT: Final = 8  # tokens before one that decide about its spaces
_UNKNOWN: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Scored:
    """A token of a text: how probable it was, and the most probable ones in its place.

    Attributes:
        offset: Where its text begins, in characters of all new text.
    """

    text: str
    logprob: float
    best: tuple[tuple[str, float], ...]
    offset: int


class Scorer:
    """Turns the ids of one text's tokens into texts, and holds them back as the text is."""

    def __init__(self, tokenizer: TextTokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._context: deque[int] = deque(maxlen=_CONTEXT)
        self._held: deque[Scored] = deque()
        self._length = self._out = 0  # characters that came, and that are out

    def push(self, token: Token, likely: Likely) -> None:
        """One more token."""
        best = tuple((self._text(one), max(logprob, _LEAST)) for one, logprob in likely.best)
        logprob = max(likely.logprob, _LEAST)
        self._held.append(Scored(self._text(token.id), logprob, best, self._length))
        self._context.append(token.id)
        self._length += len(token.text)

    def pop(self, text: str) -> tuple[Scored, ...]:
        """More text is out: the tokens that begin in it."""
        self._out += len(text)
        found = []
        while self._held and self._held[0].offset < self._out:
            found.append(self._held.popleft())
        return tuple(found)

    def rest(self) -> tuple[Scored, ...]:
        """The tokens that were held back, when the text is complete."""
        found = tuple(self._held)
        self._held.clear()
        return found

    def _text(self, token: int) -> str:
        if self._tokenizer is None:
            return f"token_id:{token}"
        return self._tokenizer.after(token, list(self._context))


def of_completion(tokens: list[Scored]) -> dict[str, Any]:
    """As ``/v1/completions`` writes them; the chosen token is always among the most probable."""
    return {
        "tokens": [one.text for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [_named(one) for one in tokens],
        "text_offset": [one.offset for one in tokens],
    }


def _named(token: Scored) -> dict[str, float]:
    found: dict[str, float] = {}
    for text, logprob in (*token.best, (token.text, token.logprob)):
        found.setdefault(text, logprob)  # of two tokens with one text, the more probable
    return found


def of_chat(tokens: list[Scored]) -> dict[str, Any]:
    """As ``/v1/chat/completions`` writes them."""
    content = [
        _entry(one.text, one.logprob) | {"top_logprobs": [_entry(*pair) for pair in one.best]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    known = None if _UNKNOWN in text else list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": known}
