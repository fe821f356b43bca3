"""How OpenAI's two text endpoints write the same things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from astra_mesh.web.logprobs import Scored, of_chat, of_completion

Scores: TypeAlias = list[Scored] | None  # of the tokens of a text, if they were asked for


@dataclass(frozen=True)
class Shape:
    """The names and objects of one endpoint."""

    prefix: str  # of ids
    kind: str
    chunk_kind: str
    logprobs: Callable[[list[Scored]], dict[str, Any]]

    def choice(self, index: int, text: str, finish: str, scores: Scores) -> dict[str, Any]:
        """A whole text."""
        raise NotImplementedError

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What comes before the first piece of a streamed text."""
        return []

    def delta(self, index: int, text: str, scores: Scores) -> dict[str, Any]:
        """More of a streamed text."""
        raise NotImplementedError

    def end(self, index: int, finish: str) -> dict[str, Any]:
        """The end of a streamed text."""
        raise NotImplementedError

    def scored(self, scores: Scores) -> dict[str, Any]:
        """The entry ``logprobs``."""
        return {"logprobs": None if scores is None else self.logprobs(scores)}


class _Completion(Shape):
    def choice(self, index: int, text: str, finish: str, scores: Scores) -> dict[str, Any]:
        return {"index": index, "text": text, **self.scored(scores), "finish_reason": finish}

    def delta(self, index: int, text: str, scores: Scores) -> dict[str, Any]:
        return {"index": index, "text": text, **self.scored(scores), "finish_reason": None}

    def end(self, index: int, finish: str) -> dict[str, Any]:
        return self.choice(index, "", finish, None)


class _Chat(Shape):
    def choice(self, index: int, text: str, finish: str, scores: Scores) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, **self.scored(scores), "finish_reason": finish}

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._chunk(index, {"role": "assistant", "content": ""})]

    def delta(self, index: int, text: str, scores: Scores) -> dict[str, Any]:
        return self._chunk(index, {"content": text}) | self.scored(scores)

    def end(self, index: int, finish: str) -> dict[str, Any]:
        return self._chunk(index, {}) | {"finish_reason": finish}

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


COMPLETION: Final[Shape] = _Completion("cmpl", "text_completion", "text_completion", of_completion)
CHAT: Final[Shape] = _Chat("chatcmpl", "chat.completion", "chat.completion.chunk", of_chat)
