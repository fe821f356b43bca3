"""How OpenAI's two text endpoints write the same things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Shape:
    """The names and objects of one endpoint."""

    prefix: str  # of ids
    kind: str
    chunk_kind: str

    def choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        """A whole text."""
        raise NotImplementedError

    def opening(self, index: int) -> list[dict[str, Any]]:
        """What comes before the first piece of a streamed text."""
        return []

    def delta(self, index: int, text: str) -> dict[str, Any]:
        """More of a streamed text."""
        raise NotImplementedError

    def end(self, index: int, finish: str) -> dict[str, Any]:
        """The end of a streamed text."""
        raise NotImplementedError


class _Completion(Shape):
    def choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    def delta(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def end(self, index: int, finish: str) -> dict[str, Any]:
        return self.choice(index, "", finish)


class _Chat(Shape):
    def choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._chunk(index, {"role": "assistant", "content": ""})]

    def delta(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk(index, {"content": text})

    def end(self, index: int, finish: str) -> dict[str, Any]:
        return self._chunk(index, {}) | {"finish_reason": finish}

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


COMPLETION: Final[Shape] = _Completion("cmpl", "text_completion", "text_completion")
CHAT: Final[Shape] = _Chat("chatcmpl", "chat.completion", "chat.completion.chunk")
