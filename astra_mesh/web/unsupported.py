"""Fields of OpenAI's API that ask for what a mesh does not do: refused, never ignored."""

from __future__ import annotations

from typing import Any, Final

from astra_mesh.web.errors import ApiError, bad
from astra_mesh.web.requests import ChatRequest, CompletionRequest

_TOOLS: Final = "tools are not supported: leave them out, or describe them in a message"
# Field -> values that ask for nothing, and what to say about others.
ALLOWED: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "frequency_penalty": ((0,), "penalties are not supported: leave it out, or give 0"),
    "presence_penalty": ((0,), "penalties are not supported: leave it out, or give 0"),
    "logit_bias": (({},), "logit_bias is not supported: leave it out"),
    "echo": ((False,), "echo is not supported: put the prompt before the answer yourself"),
    "suffix": (("",), "suffix is not supported: texts are continued at their end only"),
    "tools": (([],), _TOOLS),
    "tool_choice": (("none", "auto"), _TOOLS),
    "functions": (([],), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    "response_format": (({"type": "text"},), "answers are plain text: leave response_format out"),
    "modalities": ((["text"], []), "answers are plain text: leave modalities out"),
    "audio": ((), "audio is not supported: leave it out"),
    "prediction": ((), "prediction is not supported: leave it out"),
    "web_search_options": ((), "a mesh does not search the web: leave web_search_options out"),
}


def check_supported(request: CompletionRequest | ChatRequest) -> None:
    """ApiError for the first field that asks for what is not there."""
    for name, (allowed, sentence) in ALLOWED.items():
        value = getattr(request, name, None)
        if value is not None and not any(_same(value, one) for one in allowed):
            raise _refused(name, sentence)
    if request.stream_options is not None and not request.stream:
        raise bad("stream_options needs stream: true beside it", "stream_options")
    if getattr(request, "top_logprobs", None) is not None and not request.logprobs:
        raise bad("top_logprobs needs logprobs: true beside it", "top_logprobs")
    best_of = getattr(request, "best_of", None)
    if best_of is not None and best_of != (request.n or 1):
        raise _refused("best_of", "best_of is not supported: leave it out, or give the same as n")


def _same(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def _refused(name: str, sentence: str) -> ApiError:
    return bad(sentence, name, "unsupported_parameter")
