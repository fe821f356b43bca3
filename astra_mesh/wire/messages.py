"""Every message of the protocol as a frozen typed struct (docs/protocol.md).

A frame is the msgpack array ``[type, body]``; :data:`TYPES` maps ``type`` to its struct. Messages
that repeat (:class:`Codes`, :class:`Pooled`, :class:`Token`, :class:`Ping`, :class:`Pong`,
:class:`Credit`, :class:`Throughput`, :class:`Progress`) have positional arrays as bodies, all
others maps.
"""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

PROTOCOL_VERSION = 1
MAGIC = "astra-mesh"

PeerId = NewType("PeerId", str)  # 64 hex digits: SHA-256 of the peer's certificate
DeviceId = NewType("DeviceId", str)  # 64 hex digits: SHA-256 of the device's certificate
ModelId = NewType("ModelId", str)  # 64 hex digits: SHA-256 over config and weights
CodebookId = NewType("CodebookId", str)  # 64 hex digits: SHA-256 of the canonical form; "" for none
RequestId = NewType("RequestId", int)  # 63 random bits, chosen by whoever asks


class Role(enum.Enum):
    """Who is at the other end of a link."""

    PEER = "peer"  # holds models, takes shards
    CLIENT = "client"  # asks, and takes no shard


class Task(enum.Enum):
    """What a request wants."""

    GENERATE = "generate"  # continue a text
    CLASSIFY = "classify"  # label an image or a text
    EMBED = "embed"  # one vector for a text


class Reason(enum.Enum):
    """Why a link or a request is refused; each has a sentence in :data:`REASONS`."""

    PROTOCOL_VERSION = "protocol-version"
    BAD_MESSAGE = "bad-message"
    SELF = "self"
    DUPLICATE = "duplicate"
    WRONG_PEER = "wrong-peer"
    UNPAIRED = "unpaired"
    UNKNOWN_MODEL = "unknown-model"
    UNKNOWN_CODEBOOK = "unknown-codebook"
    BAD_PLAN = "bad-plan"
    NOT_LINKED = "not-linked"
    BUSY = "busy"
    LEAVING = "leaving"
    INTERNAL = "internal"


REASONS: dict[Reason, str] = {
    Reason.PROTOCOL_VERSION: "the two ends speak different protocol versions; update the older one",
    Reason.BAD_MESSAGE: "a message was malformed or not allowed at this point",
    Reason.SELF: "this is the peer itself",
    Reason.DUPLICATE: "there is already a link between these two peers",
    Reason.WRONG_PEER: "another peer answers at this address than was expected",
    Reason.UNPAIRED: "the two devices are not paired any more; `astra-mesh pair` pairs them again",
    Reason.UNKNOWN_MODEL: "the peer does not have that model",
    Reason.UNKNOWN_CODEBOOK: "the peer does not have that codebook for the model",
    Reason.BAD_PLAN: "the plan does not fit the model or the peers",
    Reason.NOT_LINKED: "the peer has no link to another peer of the plan",
    Reason.BUSY: "the peer has as many requests as it takes; try again later",
    Reason.LEAVING: "the peer is about to leave the mesh",
    Reason.INTERNAL: "the peer met an error of its own",
}


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Base of messages with a map as body. Unknown keys are ignored, so fields can be added."""


class Positional(msgspec.Struct, frozen=True, array_like=True):
    """Base of messages with a positional array as body."""


# --- what peers tell about themselves -------------------------------------------------------------


class Timing(Message, frozen=True):
    """Measured time of one block on one device, seconds: ``fixed_s + per_token_s * tokens +
    per_pair_s * tokens * keys`` (keys: tokens attended), plus the cost of codes and of the head."""

    fixed_s: float
    per_token_s: float
    per_pair_s: float
    encode_token_s: float = 0.0  # one token with a codec that has no codebook
    decode_token_s: float = 0.0  # one remote token with such a codec
    head_s: float = 0.0  # final norm and head of one answer
    step_s: float = 0.0  # one decoding step (all blocks and head) at a short cache


class CodebookOffer(Message, frozen=True):
    """A codebook that a peer holds for a model."""

    id: CodebookId
    codec: str  # "vq", "astra"
    rates: list[int]  # bits per token and block, one entry for each number of stages it can use
    default_rate: int
    # Seconds for one token and block, one entry for each rate; empty until measured.
    encode_token_s: list[float] = []
    decode_token_s: list[float] = []
    project_token_s: list[float] = []  # decoding without tables; empty: as ``decode_token_s``


class ModelOffer(Message, frozen=True):
    """A model that a peer holds."""

    id: ModelId
    name: str
    family: str
    tasks: list[Task]
    codebooks: list[CodebookOffer] = []
    timing: Timing | None = None  # None until the model is loaded and measured
    loaded: bool = False
    precision: str = "fp32"  # of the products: "fp32", "bf16", "fp16" or "int8"
    divergence: float = 0.0  # of the answers from those in fp32: mean KL in nats, or 1 - cosine
    also: list[str] = []  # names of copies that the peer has of the model


def names_of(offer: ModelOffer) -> list[str]:
    """All names under which a peer has a model."""
    return [offer.name, *offer.also]


class Device(Message, frozen=True):
    """The hardware under a peer, as far as planning needs it."""

    host: str  # opaque id of the machine: peers with the same share its cores
    cores: float  # cores the peer may use (CPU quota counted)
    host_cores: float  # cores of the whole machine
    threads: int
    system: str = ""  # "Linux aarch64", for people
    memory_bytes: int = 0
    software: str = ""  # astra_mesh version


# --- link -----------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """First message in both directions."""

    magic: str
    version: int
    peer: PeerId
    name: str
    role: Role
    window_bytes: int  # credit given to the other end for codes
    device: Device | None = None  # None for clients
    models: list[ModelOffer] = []
    port: int = 0  # where it listens; 0 for clients and tabs
    via: PeerId = PeerId("")  # of a browser tab: the peer that relays for it; "" for all others


class LinkInfo(Message, frozen=True):
    """A link of the sender, as it measured it."""

    peer: PeerId  # at the other end
    round_trip_s: float | None = None
    send_bps: float | None = None  # bits per second towards that peer
    host: str = ""  # where it can be dialled, as the sender reaches it; "": nowhere
    port: int = 0


class Status(Message, frozen=True):
    """Replaces ``models`` of the hello (a model was added, loaded or measured), and what the sender
    told of its links."""

    models: list[ModelOffer]
    links: list[LinkInfo] = []  # to other peers


class LinkRefused(Message, frozen=True):
    """The link is refused; the sender closes after it."""

    reason: Reason
    text: str = ""


class Goodbye(Message, frozen=True):
    """The sender leaves; the link closes after it."""

    text: str = ""


class Ping(Positional, frozen=True):
    """Asks for a :class:`Pong`; ``padding`` measures throughput."""

    number: int
    padding: bytes = b""


class Pong(Positional, frozen=True):
    """Answers a :class:`Ping` of the same number."""

    number: int


class Credit(Positional, frozen=True):
    """Gives the other end ``size`` more bytes of codes to send."""

    size: int


class Throughput(Positional, frozen=True):
    """What the sender measured towards the other end, which cannot measure it itself."""

    bps: float  # bits per second


# --- requests between peers -----------------------------------------------------------------------


class Shard(Message, frozen=True):
    """Tokens ``start <= i < stop`` of one request, owned by one peer."""

    peer: PeerId
    start: int
    stop: int


class Late(enum.Enum):
    """What happens to codes that do not come in time."""

    WAIT = "wait"  # they are waited for: the answer is the plan's, whatever the network did
    ADAPT = "adapt"  # they are waited for, but senders take lower rates, and the answer says so
    DEGRADE = "degrade"  # and what is known of earlier blocks stands in for what comes too late


class LinkRate(Message, frozen=True):
    """How many stages of the code ``sender`` sends to ``receiver``."""

    sender: PeerId
    receiver: PeerId
    stages: int


class Plan(Message, frozen=True):
    """How one request is run. Immutable."""

    model: ModelId
    codec: str  # "vq", "astra", "fp32", "fp16", "int8", "int4"
    codebook: CodebookId  # "" for codecs without one
    shards: list[Shard]  # in token order, contiguous, the first starts at 0
    rates: list[LinkRate]  # one for each directed link that carries codes
    answering: PeerId  # generate: owner of the last non-empty shard
    class_token: str  # "single" or "distributed"; "none" where the model has no class token
    predicted_s: float = 0.0
    late: Late = Late.WAIT


class Sampling(Message, frozen=True):
    """How new tokens are chosen. ``temperature`` 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    seed: int | None = None


class Inputs(Message, frozen=True):
    """What the model reads: token ids, or an image file's bytes."""

    tokens: list[int] = []
    token_types: list[int] = []  # BERT segments; empty: all 0
    image: bytes = b""


class RosterEntry(Message, frozen=True):
    """The standing of one device in a mesh, signed by the device that decided it.

    Of two entries for one device the one with the higher generation holds; of the same generation
    the one that says no.
    """

    certificate: bytes  # DER; its SHA-256 is the id of the device
    name: str
    generation: int  # counts the changes of this device's standing, from 1
    member: bool
    until: int  # seconds since 1970 at which the membership ends; 0: for good
    by: DeviceId
    signature: bytes  # ECDSA with SHA-256 over what :mod:`astra_mesh.mesh.roster` says


class Roster(Message, frozen=True):
    """All devices of the mesh, and all that were: sent when a link opens and when it changes."""

    mesh: bytes  # 16 random bytes
    entries: list[RosterEntry]


class Prepare(Message, frozen=True):
    """Load and measure a model; the answer is a :class:`Status`, or a :class:`Fail`."""

    request: RequestId
    model: ModelId


class Propose(Message, frozen=True):
    """A plan for a request, with all that a participant needs to start at once."""

    request: RequestId
    task: Task
    plan: Plan
    inputs: Inputs
    sampling: Sampling | None = None
    watch: bool = False  # somebody looks on: send :class:`Progress`


class Accept(Message, frozen=True):
    """The participant takes its shard and starts."""

    request: RequestId


class Refuse(Message, frozen=True):
    """The participant does not take part."""

    request: RequestId
    reason: Reason
    text: str = ""


class Codes(Positional, frozen=True):
    """Codes of tokens ``first <= i < first + count`` (absolute positions) of the sender's shard."""

    request: RequestId
    block: int
    stage: int  # the first one in ``data``
    first: int
    count: int
    data: bytes  # one or more stages, each as the codec packs it: the length tells how many


class Pooled(Positional, frozen=True):
    """The sender's share of the pooled output: ``sum(vector) / sum(weight)`` is the mean."""

    request: RequestId
    weight: float
    vector: bytes  # (D,) float32 little-endian


class Progress(Positional, frozen=True):
    """What happened on a participant since its last message of this kind, for whoever looks on.

    ``marks`` are groups of four: microseconds since it accepted; which mark (the place in
    :class:`astra_mesh.engine.timeline.Mark`); the block; the shard that a remote part came from,
    plus 1, or 0 for the own one.
    """

    request: RequestId
    marks: list[int]


class PeerReport(Message, frozen=True):
    """What one peer did for one request."""

    peer: PeerId
    tokens: int  # of its shard
    compute_s: float
    encode_s: float
    decode_s: float
    wait_s: float
    finished_s: float  # after it accepted
    sent_bytes: dict[str, int] = {}  # code bytes by receiving peer
    decode_steps: int = 0
    late_parts: int = 0  # codes of one shard and block that came too late: a prediction stood in
    # By receiving peer, where the rate was not the plan's: a block, the bits per token from it on,
    # the next block, and so on.
    rates: dict[str, list[int]] = {}
    precision: str = ""  # of its products, as in :class:`ModelOffer`; "": it does not tell


class Done(Message, frozen=True):
    """The sender's part is complete."""

    request: RequestId
    report: PeerReport


class Cancel(Message, frozen=True):
    """Stop the request and free what it holds."""

    request: RequestId
    text: str = ""


class Fail(Message, frozen=True):
    """The request ended by an error (``code`` as in :mod:`astra_mesh.errors`)."""

    request: RequestId
    code: str
    text: str
    retry_s: float = 0.0  # "busy": when it is worth asking again


class Token(Positional, frozen=True):
    """One new token, from the answering peer to the one that planned, and on to the client."""

    request: RequestId
    index: int
    token: int
    text: str = ""


# --- clients --------------------------------------------------------------------------------------


class Use(enum.Enum):
    """Which peers a request may use."""

    AUTO = "auto"  # the plan with the shortest predicted time
    ALL = "all"  # every peer that holds the model
    SOLO = "solo"  # only the peer that is asked


class Options(Message, frozen=True):
    """What a client may choose."""

    use: Use = Use.AUTO
    max_peers: int = 0  # 0: no limit
    codec: str = ""  # "": the bundle's codebook ("vq" if it has one), else "fp16"
    rate: int = 0  # bits per token and block; 0: the fastest one within ``max_loss``
    class_token: str = ""  # "": what the bundle was adapted for
    max_loss: float | None = None  # that the codes may cost; None: the limit stored in the bundle
    late: Late = Late.WAIT


class Ask(Message, frozen=True):
    """A client's request. Exactly one of ``text``, ``tokens`` and ``image`` is given."""

    request: RequestId
    task: Task
    model: str  # name, or the first digits of the id
    text: str | None = None
    tokens: list[int] | None = None
    image: bytes | None = None
    sampling: Sampling | None = None
    options: Options = Options()
    answered: list[int] = []  # new tokens that another peer gave before it was lost: go on after
    may_refer: bool = False  # the client asks another peer if it gets a :class:`Refer`


class ExpectedCost(Message, frozen=True):
    """What the codes of a plan cost in quality, as ``eval --save`` measured it."""

    measure: str  # "perplexity", "accuracy", "agreement", "cosine"
    loss: float  # 0 also where the codes happened to do better
    peers: int  # that it was measured on
    data: str  # name of the file or folder
    sequences: int  # of them


class Planned(Message, frozen=True):
    """The plan that a client's request runs under."""

    request: RequestId
    plan: Plan
    names: dict[str, str]  # peer id -> name
    bits_per_token: float  # per token and block, the largest rate of the plan; 0 for solo
    solo_s: float  # predicted time on the asked peer alone
    reason: str  # why this plan, for people
    prompt_tokens: int
    expected: ExpectedCost | None = None  # None: one device, or not measured
    elsewhere: list[str] = []  # addresses of other peers that hold the model, should this one go


class Refer(Message, frozen=True):
    """Another peer would answer sooner: the end of this request, and where to ask again."""

    request: RequestId
    peer: PeerId
    name: str
    address: str  # "host:port"
    reason: str  # for people


class Label(Message, frozen=True):
    """One class with its probability."""

    label: str
    probability: float


class Report(Message, frozen=True):
    """What a request cost, all peers together."""

    plan: Plan
    predicted_s: float  # prefill: until the first token, the labels or the vector
    actual_s: float
    total_s: float
    bits_per_token: float
    peers: list[PeerReport]
    new_tokens: int = 0
    finish: str = ""  # "length", "eos", "context" for generate
    notes: list[str] = []
    expected: ExpectedCost | None = None  # None: one device, or not measured
    loading_s: float = 0.0  # that the request waited for peers to load the model, before its plan
    # The whole request: from its arrival at the peer that answered, or, as a client has it, from
    # when that one sent it. 0: not told.
    took_s: float = 0.0
    lost_s: float = 0.0  # of that, with peers that were lost or refused, before this plan
    # From the first new token to the last, where several peers gave some: ``total_s`` is one's own.
    tokens_s: float = 0.0


class Result(Message, frozen=True):
    """The end of a client's request."""

    request: RequestId
    report: Report
    labels: list[Label] = []
    vector: bytes = b""  # (D,) float32 little-endian, for embed


class ListPeers(Message, frozen=True):
    """Asks for :class:`Peers`."""

    request: RequestId


class PeerInfo(Message, frozen=True):
    """A peer as another one sees it."""

    peer: PeerId
    name: str
    address: str
    self: bool
    device: Device
    models: list[ModelOffer]
    round_trip_s: float | None = None
    send_bps: float | None = None  # bits per second towards that peer
    receive_bps: float | None = None
    port: int = 0  # where it listens, 0 if it does not tell
    via: PeerId = PeerId("")  # of a browser tab: the peer that relays for it; "" for all others
    links: list[LinkInfo] = []  # of its own, as it told


class Peers(Message, frozen=True):
    """The mesh as the asked peer sees it, itself first."""

    request: RequestId
    peers: list[PeerInfo]
    strangers: list[str] = []  # names of those near that are not paired with this device


class Subscribe(Message, frozen=True):
    """Asks for :class:`Event` messages from now on."""

    request: RequestId


class RequestNews(Message, frozen=True):
    """How a request of the sender stands."""

    key: int  # counts the requests of the sender
    task: Task
    model: str
    took_s: float  # since it was asked
    new_tokens: int = 0
    peers: list[str] = []  # names of those that compute it by the last plan; empty: not planned yet
    sent_bytes: int = 0  # between peers, all together; told at the end
    notes: list[str] = []  # what was degraded, and what else a person may care for; at the end
    outcome: str = ""  # "" while it runs; then "answered", "cancelled" or a sentence


class Event(Message, frozen=True):
    """Something happened: kinds "peer-joined", "peer-left", "unpaired-found"; "request-started",
    "request-news" (now and then while it runs), "request-ended".
    """

    request: RequestId  # of the subscription
    kind: str
    peer: str = ""
    name: str = ""
    text: str = ""
    about: RequestNews | None = None  # of the last three kinds


TYPES: dict[int, type[msgspec.Struct]] = {
    0: Hello,
    1: LinkRefused,
    2: Goodbye,
    3: Ping,
    4: Pong,
    5: Credit,
    6: Status,
    7: Throughput,
    8: Roster,
    10: Prepare,
    11: Propose,
    12: Accept,
    13: Refuse,
    14: Codes,
    15: Pooled,
    16: Token,
    17: Done,
    18: Cancel,
    19: Fail,
    20: Progress,
    30: Ask,
    31: Planned,
    32: Result,
    33: ListPeers,
    34: Peers,
    35: Subscribe,
    36: Event,
    37: Refer,
}
