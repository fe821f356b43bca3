"""The shapes of the answers, for the description of the API and the tests that hold it to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0)]
Reports = Annotated[
    list[dict[str, Any]],
    Meta(description="One entry per choice, text or picture: its plan, times and bytes."),
]


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens read and made."""

    prompt_tokens: Count
    total_tokens: Count
    completion_tokens: Count = 0


class CompletionLogprobs(Struct, frozen=True, kw_only=True):
    """Log-probabilities of a text's tokens, of one length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[Count]


class Choice(Struct, frozen=True, kw_only=True):
    """One text."""

    index: Count
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: CompletionLogprobs | None = None


class CompletionAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/v1/completions``, not streamed."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[Choice]
    usage: Usage
    x_astra_mesh: Reports


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ProbableToken(Struct, frozen=True, kw_only=True):
    """One of the most probable tokens."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | None  # None: a part of a character


class ChosenToken(ProbableToken, frozen=True, kw_only=True):
    """A token of the answer."""

    top_logprobs: list[ProbableToken]


class ChatLogprobs(Struct, frozen=True, kw_only=True):
    """Log-probabilities of an answer's tokens."""

    content: list[ChosenToken]
    refusal: None = None


class ChatChoice(Struct, frozen=True, kw_only=True):
    """One answer."""

    index: Count
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None


class ChatAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/v1/chat/completions``, not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: Usage
    x_astra_mesh: Reports


class Vector(Struct, frozen=True, kw_only=True):
    """One vector: numbers, or float32 little-endian in base64."""

    index: Count
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/v1/embeddings``."""

    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: Usage
    x_astra_mesh: Reports


class LabelEntry(Struct, frozen=True, kw_only=True):
    """One class, with its probability."""

    index: Count
    object: Literal["label"]
    label: str
    score: Annotated[float, Meta(ge=0, le=1.001)]


class ClassifyAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/v1/images/classify``: the most probable first."""

    object: Literal["list"]
    data: list[LabelEntry]
    model: str
    usage: Usage
    x_astra_mesh: Reports


class ModelAnswer(Struct, frozen=True, kw_only=True):
    """One model."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    x_astra_mesh: dict[str, Any]


class ModelsAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/v1/models``."""

    object: Literal["list"]
    data: list[ModelAnswer]


class QualityRow(Struct, frozen=True, kw_only=True):
    """One codec at one rate, on one number of peers."""

    codec: str
    bits: Count  # per token and block
    peers: Count
    loss: float
    metrics: dict[str, float]


class QualityOfTask(Struct, frozen=True, kw_only=True):
    """What one run of ``astra-mesh eval --save`` measured."""

    data: str  # name of the file or folder
    sequences: Count
    measure: str  # of the loss
    limit: float  # what the loss has to stay within
    baseline: dict[str, float]  # the single device's own figures
    definitions: dict[str, str]  # of the metrics
    measured: list[QualityRow]
    recommended_bits: Count | None  # None: no rate stays within the limit


class QualityAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/v1/models/NAME/quality``, by task; nothing where it was not measured."""

    object: Literal["quality"]
    model: str
    tasks: dict[str, QualityOfTask]


class MeshLink(Struct, frozen=True, kw_only=True):
    """A link that a peer tells of."""

    id: str  # of the peer at the other end
    round_trip_s: float | None  # None: not measured yet
    send_bps: float | None  # bits per second towards that peer


class MeshPeer(Struct, frozen=True, kw_only=True):
    """A peer, and the link to it from the one that is asked."""

    id: str
    name: str
    self: bool  # the one that is asked
    address: str
    via: str  # of a browser tab: the id of the peer that relays for it
    system: str
    cores: float
    host: str  # peers of one machine have the same
    holds: list[str]  # names of its models
    round_trip_s: float | None
    send_bps: float | None
    receive_bps: float | None
    links: list[MeshLink]  # of its own, as it tells; empty for the one that is asked


class MeshAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/v1/mesh``."""

    object: Literal["mesh"]
    peers: list[MeshPeer]


class HealthAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/health``."""

    status: Literal["ok"]
    version: str


class PairedDevice(Struct, frozen=True, kw_only=True):
    """A device of the mesh."""

    id: str
    name: str  # of the peer that runs on it now, else as the mesh keeps it; devices choose theirs
    peers: list[str]  # names of those that run on it now
    self: bool
    until: float | None  # seconds since 1970 at which its membership ends; None: never


class PairingWindow(Struct, frozen=True, kw_only=True):
    """A window that lets one device in by a code."""

    open: bool  # whether a device may still come in
    until: float  # seconds since 1970; of two windows never the same
    seconds_left: Count
    tries_left: Count
    came: list[str]  # names of devices that came in
    came_ids: list[str]  # their ids, in the same order


class PairingAnswer(Struct, frozen=True, kw_only=True):
    """Of ``/v1/pairing``: the devices of the mesh, and the window if there is one."""

    object: Literal["pairing"]
    devices: list[PairedDevice]
    window: PairingWindow | None


class QrDrawing(Struct, frozen=True, kw_only=True):
    """A QR as the path of an SVG whose side is ``size``, its quiet zone included."""

    size: Count
    path: str


class OpenedAnswer(PairingAnswer, frozen=True, kw_only=True):
    """Of ``/v1/pairing/open``: the only answer with the code."""

    code: str
    uri: str  # what the QR holds
    addresses: list[str]  # where this device answers, for another that does not find it
    note: str  # why no other device can reach these; empty: they can
    qr: QrDrawing


class JoinedAnswer(PairingAnswer, frozen=True, kw_only=True):
    """Of ``/v1/pairing/join``."""

    paired: str  # name of the other device
    paired_id: str  # its id


class LeftAnswer(PairingAnswer, frozen=True, kw_only=True):
    """Of ``/v1/pairing/leave``."""

    said: list[str]  # who knows it, and what is left to do where somebody does not


class ErrorEntry(Struct, frozen=True, kw_only=True):
    """What went wrong: a sentence, and stable words."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Struct, frozen=True, kw_only=True):
    """Every answer that is an error."""

    error: ErrorEntry
