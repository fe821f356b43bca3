"""What callers may send, as typed structs: wrong types and ranges never reach a handler.

Fields of OpenAI's API that change nothing here are taken and ignored (:class:`Ignored`); those that
would change the answer are refused by name where they ask for something (:mod:`.unsupported`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from astra_mesh import limits

Name = Annotated[
    str, Meta(min_length=1, max_length=limits.NAME_CHARS, description="The model's name.")
]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Tokens = Annotated[list[TokenId], Meta(min_length=1, max_length=limits.PROMPT_TOKENS)]
Text = Annotated[str, Meta(max_length=limits.TEXT_BYTES)]
Stop = Annotated[str, Meta(min_length=1, max_length=limits.API_STOP_CHARS)]
Anything = Any


class MeshOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which peers and codes a request may use; as ``Mesh.generate`` of the Python client."""

    use: Literal["auto", "all", "solo"] = "auto"
    max_peers: Annotated[int, Meta(ge=1, le=limits.PEERS_PER_PLAN)] | None = None  # no limit
    codec: Annotated[str, Meta(max_length=32)] = ""
    rate: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    max_loss: Annotated[float, Meta(ge=0, le=1)] | None = None
    late: Literal["wait", "adapt", "degrade"] = "wait"

    def given(self) -> dict[str, Any]:
        """As arguments of the Python client."""
        return {**structs.asdict(self), "max_peers": self.max_peers or 0}


class Ignored(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that OpenAI's clients may send and that change nothing here."""

    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    x_astra_mesh: MeshOptions = MeshOptions()


IGNORED = frozenset(Ignored.__struct_fields__) - {"x_astra_mesh"} | {
    "reasoning_effort",
    "verbosity",
    "parallel_tool_calls",
}


class StreamOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream holds beside text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Sampled(Ignored, frozen=True, kw_only=True):
    """What both text endpoints take."""

    model: Name
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, lt=2**31)] | None = None  # not OpenAI's, but widespread
    n: Annotated[int, Meta(ge=1, le=limits.API_CHOICES)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=limits.API_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=limits.NEW_TOKENS)] | None = None
    # Refused where they ask for something.
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None


class CompletionRequest(Sampled, frozen=True, kw_only=True):
    """``POST /v1/completions``."""

    prompt: (
        Text
        | Annotated[
            list[Text | TokenId | Tokens], Meta(min_length=1, max_length=limits.PROMPT_TOKENS)
        ]
    )
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    # Refused where they ask for something.
    best_of: Annotated[int, Meta(ge=1)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class ContentPart(Struct, frozen=True, kw_only=True):
    """A part of a message; only texts are read."""

    type: str
    text: Text | None = None


class ChatMessage(Struct, frozen=True, kw_only=True):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[ContentPart], Meta(max_length=limits.API_MESSAGES)] | None = None
    name: Annotated[str, Meta(max_length=limits.NAME_CHARS)] | None = None
    tool_calls: Anything = None
    function_call: Anything = None


class ChatRequest(Sampled, frozen=True, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.API_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=limits.NEW_TOKENS)] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # with ``logprobs`` only
    # Refused where they ask for something.
    tools: Anything = None
    tool_choice: Anything = None
    functions: Anything = None
    function_call: Anything = None
    response_format: Anything = None
    modalities: list[str] | None = None
    audio: Anything = None
    prediction: Anything = None
    web_search_options: Anything = None


class EmbeddingRequest(Ignored, frozen=True, kw_only=True):
    """``POST /v1/embeddings``."""

    model: Name
    input: (
        Text
        | Annotated[
            list[Text | TokenId | Tokens], Meta(min_length=1, max_length=limits.PROMPT_TOKENS)
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class ClassifyRequest(Ignored, frozen=True, kw_only=True):
    """``POST /v1/images/classify``."""

    model: Name
    image: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=limits.API_IMAGE_BODY_BYTES,
            description="A JPEG, PNG, ... file in base64, or a data: URL of one.",
        ),
    ]
    top: Annotated[int, Meta(ge=1, le=100)] = 5


class NothingRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/pairing/open`` and ``/close``: ``{}``."""


class JoinRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/pairing/join``."""

    code: Annotated[
        str,
        Meta(max_length=400, description="That another device shows, or a join key, or its QR."),
    ]
    at: Annotated[
        list[str],
        Meta(max_length=4, description="HOST:PORT of that device, if it does not announce itself."),
    ] = []


class UnpairRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/pairing/unpair``."""

    id: Annotated[str, Meta(description="The whole id, so that no other device can be meant.")]
