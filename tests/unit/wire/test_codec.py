"""The codec against its vectors, and against frames made to break it."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest

from astra_mesh import limits
from astra_mesh.errors import AstraMeshError, ProtocolError, _all_errors
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import AnyMessage, decode, encode, hello_version
from tools import make_vectors

VECTORS: list[dict[str, Any]] = json.loads(make_vectors.PATH.read_text())
FRAMES = {vector["name"]: bytes.fromhex(vector["frame"]) for vector in VECTORS}
A, B, REQUEST = make_vectors.A, make_vectors.B, make_vectors.REQUEST
BY_NAME = {kind.__name__: kind for kind in m.TYPES.values()}


def frame_of(kind: type[msgspec.Struct], body: Any) -> bytes:
    """A frame with any body, packed without checks."""
    number = next(number for number, found in m.TYPES.items() if found is kind)
    packed: bytes = msgpack.packb([number, body])
    return packed


def body_of(name: str) -> Any:
    """The body of a vector, to be altered."""
    return msgpack.unpackb(FRAMES[name])[1]


def decode_or_refuse(frame: bytes) -> AnyMessage | None:
    """Either a message or a ProtocolError; anything else is a failure."""
    try:
        return decode(frame)
    except ProtocolError as exc:
        sentence = exc.message
    assert sentence.isprintable()
    assert len(sentence) < 300
    return None


# --- vectors --------------------------------------------------------------------------------------


def test_the_file_is_what_the_tool_writes() -> None:
    assert make_vectors.vectors() == VECTORS, "run python -m tools.make_vectors, read the diff"


def test_every_type_has_a_vector() -> None:
    assert {vector["message"] for vector in VECTORS} == set(BY_NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    kind = BY_NAME[vector["message"]]
    message = msgspec.convert(make_vectors.from_json(vector["body"]), kind)
    assert decode(frame) == message
    assert decode(bytearray(frame)) == decode(memoryview(frame)) == message
    assert encode(message) == frame


def test_the_document_shows_the_bytes() -> None:
    document = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
    shown = "".join(document.split())
    for name in ("hello of a client", "ping", "pong", "credit", "codes", "token", "accept"):
        assert FRAMES[name].hex() in shown, f"the bytes of {name!r} are not in docs/protocol.md"


def test_the_document_names_every_type_and_field() -> None:
    document = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
    for number, kind in m.TYPES.items():
        assert f"| {number} | `{kind.__name__}` |" in document, kind
    for kind in make_structs():
        for field in kind.__struct_fields__:
            assert f"`{field}`" in document, f"{kind.__name__}.{field}"
    for reason in m.Reason:
        assert f"`{reason.value}`" in document
    for code in _all_errors(AstraMeshError):
        assert f"`{code}`" in document


def make_structs() -> list[type[msgspec.Struct]]:
    found = [kind for kind in vars(m).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, msgspec.Struct)]


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FRAMES)
def test_every_prefix_is_refused(name: str) -> None:
    frame = FRAMES[name]
    for length in range(len(frame)):
        with pytest.raises(ProtocolError):
            decode(frame[:length])


@pytest.mark.parametrize("name", FRAMES)
def test_bit_flips_give_a_message_or_a_refusal(name: str) -> None:
    frame = FRAMES[name]
    step = max(1, 8 * len(frame) // 500)
    for bit in range(0, 8 * len(frame), step):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        message = decode_or_refuse(bytes(damaged))
        if message is not None:
            encode(message)


@pytest.mark.parametrize("name", FRAMES)
def test_bytes_behind_the_frame_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        decode(FRAMES[name] + b"\x00")


# --- attacks --------------------------------------------------------------------------------------

HUGE = struct.pack(">I", 0xFFFFFFFF)
ATTACKS = {
    "empty": b"",
    "one byte": b"\x92",
    "not an array": b"\x81\x03\x91\x01",
    "three items": b"\x93\x04\x91\x01\xc0",
    "type as a two-byte integer": b"\x92\xcc\x04\x91\x01",
    "unknown type": b"\x92\x63\x90",
    "negative type": b"\x92\xff\x90",
    "float type": b"\x92\xca\x00\x00\x00\x00\x90",
    "nested beyond the unpacker's stack": b"\x92\x02" + b"\x91" * 5_000 + b"\xc0",
    "nested maps": b"\x92\x02" + b"\x81\xa1a" * 3_000 + b"\xc0",
    "array said to be huge": b"\x92\x06\xdd" + HUGE,
    "map said to be huge": b"\x92\x06\xdf" + HUGE,
    "text said to be huge": b"\x92\x02\x81\xa4text\xdb" + HUGE,
    "bytes said to be huge": b"\x92\x0e\xc6" + HUGE,
    "extension": b"\x92\x04\x91\xd4\x01\x00",
    "timestamp": b"\x92\x04\x91\xd6\xff\x00\x00\x00\x00",
    "byte that msgpack does not use": b"\x92\x04\x91\xc1",
    "text that is no UTF-8": b"\x92\x02\x81\xa4text\xa2\xc3\x28",
    "surrogate in UTF-8": b"\x92\x02\x81\xa4text\xa3\xed\xa0\x80",
    "integer key": b"\x92\x02\x81\x01\xa1x",
    "map as key": b"\x92\x02\x81\x80\xa1x",
    "the same key twice": b"\x92\x02\x82\xa4text\xa1a\xa4text\xa1b",
    "the same unknown key twice": b"\x92\x02\x82\xa1z\xa1a\xa1z\xa1b",
    "bool for an integer": b"\x92\x04\x91\xc3",
    "text for an integer": b"\x92\x04\x91\xa11",
    "float for an integer": b"\x92\x04\x91\xca\x3f\x80\x00\x00",
    "nil for an integer": b"\x92\x04\x91\xc0",
    "negative integer": b"\x92\x04\x91\xff",
    "integer of 2**63": b"\x92\x04\x91\xcf\x80" + bytes(7),
    "map for a positional body": b"\x92\x04\x81\xa6number\x01",
    "array for a map body": b"\x92\x02\x91\xa1x",
    "too few positional fields": b"\x92\x0e\x93\x01\x00\x00",
    "one type's body as another": b"\x92\x0e" + FRAMES["ping"][2:],
}


@pytest.mark.parametrize("frame", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(frame)


def test_every_single_byte_and_pair() -> None:
    for value in range(256):
        assert decode_or_refuse(bytes([value])) is None
        for second in range(0, 256, 5):
            assert decode_or_refuse(bytes([value, second])) is None


def test_a_frame_too_large_is_not_parsed() -> None:
    with pytest.raises(ProtocolError, match="allowed"):
        decode(bytes(limits.FRAME_BYTES + 1))
    frame = b"\x92\x04\x91\x01" + bytes(100)
    with pytest.raises(ProtocolError, match="too many for Pong"):
        decode(frame)


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\xc0", b"\xa0"])
def test_many_tiny_items_are_stopped(item: bytes) -> None:
    inner = b"\xdd" + struct.pack(">I", 100_000) + item * 100_000
    outer = b"\x92\x1e\x81\xa1z\x9f" + inner * 15
    with pytest.raises(ProtocolError, match="too many items"):
        decode(outer)


def test_nesting_is_bounded() -> None:
    body = body_of("goodbye")
    deep: Any = 1
    for _ in range(limits.NESTING_DEPTH - 1):
        deep = [deep]
    assert decode(frame_of(m.Goodbye, {**body, "unknown": deep})) == m.Goodbye(text="bye")
    with pytest.raises(ProtocolError, match="nested"):
        decode(frame_of(m.Goodbye, {**body, "unknown": [deep]}))


# --- ranges ---------------------------------------------------------------------------------------

LONG = "x" * 501
RANGES: list[tuple[str, dict[str, Any]]] = [
    ("hello", {"magic": "astra-mash"}),
    ("hello", {"peer": A.upper()}),
    ("hello", {"peer": A[:-1]}),
    ("hello", {"peer": A + "\n"}),
    ("hello", {"name": ""}),
    ("hello", {"name": "x" * 65}),
    ("hello", {"name": "two\nlines"}),
    ("hello", {"name": "\x1b[2J"}),
    ("hello", {"name": "\u202egnp"}),
    ("hello", {"role": "king"}),
    ("hello", {"window_bytes": 0}),
    ("hello", {"window_bytes": limits.WINDOW_MIN_BYTES - 1}),
    ("hello", {"window_bytes": limits.WINDOW_MAX_BYTES + 1}),
    ("hello", {"version": -1}),
    ("hello", {"models": body_of("hello")["models"] * 65}),
    ("goodbye", {"text": LONG}),
    ("link refused", {"reason": "because"}),
    ("link refused", {"text": LONG}),
    ("accept", {"request": -1}),
    ("accept", {"request": 2**63}),
    ("accept", {"request": None}),
    ("accept", {"request": "1"}),
    ("refuse", {"text": LONG}),
    ("fail", {"code": "x" * 33}),
    ("fail", {"text": LONG}),
    ("done", {"report": {**body_of("done")["report"], "compute_s": math.nan}}),
    ("done", {"report": {**body_of("done")["report"], "wait_s": math.inf}}),
    ("done", {"report": {**body_of("done")["report"], "wait_s": -0.5}}),
    ("done", {"report": {**body_of("done")["report"], "sent_bytes": {"b2": 1}}}),
    ("done", {"report": {**body_of("done")["report"], "rates": {"b2": [1, 16]}}}),
    ("done", {"report": {**body_of("done")["report"], "rates": {B: [1]}}}),
    ("done", {"report": {**body_of("done")["report"], "rates": {B: [1, 0]}}}),
    ("done", {"report": {**body_of("done")["report"], "rates": {B: [512, 16]}}}),
    ("done", {"report": {**body_of("done")["report"], "rates": {B: [1, 16] * 97}}}),
    ("done", {"report": {**body_of("done")["report"], "tokens": limits.PROMPT_TOKENS + 1}}),
    ("ask for text", {"tokens": [1]}),
    ("ask for text", {"text": None}),
    ("ask for text", {"model": ""}),
    ("ask for text", {"model": "x" * 65}),
    ("ask for text", {"sampling": {"temperature": math.nan}}),
    ("ask for text", {"sampling": {"top_p": -math.inf}}),
    ("ask for text", {"sampling": {"max_new_tokens": limits.NEW_TOKENS + 1}}),
    ("ask for text", {"options": {"max_peers": 65}}),
    ("propose", {"inputs": {"tokens": [1, -2]}}),
    ("propose", {"inputs": {"tokens": [2**31]}}),
    ("propose", {"inputs": {"tokens": [1] * (limits.PROMPT_TOKENS + 1)}}),
    ("propose", {"inputs": {"image": bytes(limits.IMAGE_BYTES + 1)}}),
    ("propose", {"plan": {**body_of("propose")["plan"], "shards": []}}),
    ("propose", {"plan": {**body_of("propose")["plan"], "codebook": "abc"}}),
    (
        "propose",
        {
            "plan": {
                **body_of("propose")["plan"],
                "shards": [{"peer": A, "start": 4, "stop": 3}],
            }
        },
    ),
    ("peers", {"peers": body_of("peers")["peers"] * 300}),
    ("result", {"vector": bytes(3)}),
    ("result", {"labels": [{"label": "cat", "probability": 1.5}]}),
    ("result", {"report": {**body_of("result")["report"], "notes": [LONG]}}),
    ("event", {"kind": ""}),
    ("event", {"name": "a\tb"}),
]


@pytest.mark.parametrize(
    ("name", "change"), RANGES, ids=[f"{name} {next(iter(change))}" for name, change in RANGES]
)
def test_fields_out_of_range(name: str, change: dict[str, Any]) -> None:
    kind = type(decode(FRAMES[name]))
    decode(frame_of(kind, body_of(name)))  # it is the change that is refused
    with pytest.raises(ProtocolError):
        decode(frame_of(kind, {**body_of(name), **change}))


POSITIONAL: list[tuple[type[msgspec.Struct], list[Any]]] = [
    (m.Codes, [REQUEST, limits.BLOCKS, 0, 0, 1, b""]),
    (m.Codes, [REQUEST, 0, limits.STAGES, 0, 1, b""]),
    (m.Codes, [REQUEST, 0, 0, 0, 0, b""]),
    (m.Codes, [REQUEST, 0, 0, limits.PROMPT_TOKENS, 1, b""]),
    (m.Codes, [REQUEST, 0, 0, 1, limits.PROMPT_TOKENS, b""]),
    (m.Codes, [REQUEST, 0, 0, 0, 1, bytes(limits.CODES_DATA_BYTES + 1)]),
    (m.Codes, [REQUEST, 0, 0, 0, 1, "text"]),
    (m.Codes, [2**63, 0, 0, 0, 1, b""]),
    (m.Pooled, [REQUEST, math.inf, b""]),
    (m.Pooled, [REQUEST, 1.0, bytes(5)]),
    (m.Token, [REQUEST, limits.NEW_TOKENS, 1, ""]),
    (m.Token, [REQUEST, 0, 2**31, ""]),
    (m.Token, [REQUEST, 0, 1, "x" * 4097]),
    (m.Credit, [0]),
    (m.Credit, [limits.WINDOW_MAX_BYTES + 1]),
    (m.Throughput, [0.0]),
    (m.Throughput, [math.nan]),
    (m.Ping, [1, bytes(limits.PING_PADDING_BYTES + 1)]),
]


@pytest.mark.parametrize(("kind", "body"), POSITIONAL)
def test_positional_fields_out_of_range(kind: type[msgspec.Struct], body: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        decode(frame_of(kind, body))


def test_the_limits_themselves_are_allowed() -> None:
    largest = m.Codes(m.RequestId(2**63 - 1), 511, 63, 0, 131_072, bytes(limits.CODES_DATA_BYTES))
    assert decode(encode(largest)) == largest
    ask = m.Ask(request=REQUEST, task=m.Task.CLASSIFY, model="v", image=bytes(limits.IMAGE_BYTES))
    assert decode(encode(ask)) == ask
    text = m.Ask(request=REQUEST, task=m.Task.EMBED, model="v", text="x" * limits.TEXT_BYTES)
    assert decode(encode(text)) == text
    inputs = m.Inputs(tokens=[2**31 - 1] * limits.PROMPT_TOKENS)
    plan = make_vectors.PLAN
    propose = m.Propose(request=REQUEST, task=m.Task.GENERATE, plan=plan, inputs=inputs)
    assert decode(encode(propose)) == propose


def test_the_largest_plan_fits() -> None:
    peers = [m.PeerId(f"{number:064x}") for number in range(limits.PEERS_PER_PLAN)]
    plan = msgspec.structs.replace(
        make_vectors.PLAN,
        shards=[m.Shard(peer=peer, start=i, stop=i + 1) for i, peer in enumerate(peers)],
        rates=[m.LinkRate(sender=a, receiver=b, stages=2) for a in peers for b in peers if a != b],
    )
    inputs = m.Inputs(tokens=[1] * limits.PROMPT_TOKENS, token_types=[1] * limits.PROMPT_TOKENS)
    propose = m.Propose(request=REQUEST, task=m.Task.EMBED, plan=plan, inputs=inputs)
    assert decode(encode(propose)) == propose


@pytest.mark.parametrize(
    "message",
    [
        m.Throughput(math.inf),
        m.Pong(-1),
        m.Goodbye(text=LONG),
        m.Goodbye(text="\ud800"),
        m.Ask(request=REQUEST, task=m.Task.EMBED, model="v", text="é" * limits.TEXT_BYTES),
        m.Ask(request=REQUEST, task=m.Task.EMBED, model="v"),
        make_vectors.TIMING,  # a part, not a message
    ],
)
def test_what_nobody_would_accept_is_not_sent(message: AnyMessage) -> None:
    with pytest.raises(ProtocolError):
        encode(message)


def test_unknown_keys_are_ignored() -> None:
    assert decode(frame_of(m.Goodbye, {"text": "x", "mood": ["new"]})) == m.Goodbye(text="x")


def test_errors_do_not_repeat_what_was_sent() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(frame_of(m.LinkRefused, {"reason": "\x1b[31m" + "evil" * 1000}))
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 300


# --- versions -------------------------------------------------------------------------------------


def test_the_version_of_any_hello_is_known() -> None:
    assert hello_version(FRAMES["hello"]) == 1
    assert hello_version(frame_of(m.Hello, {"version": 9, "all": "else", "is": 1})) == 9


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        FRAMES["ping"],
        FRAMES["hello"][:-1],
        frame_of(m.Hello, [1, 2]),
        frame_of(m.Hello, {"version": "1"}),
        frame_of(m.Hello, {"version": True}),
        frame_of(m.Hello, {}),
    ],
)
def test_what_is_no_hello_has_no_version(frame: bytes) -> None:
    assert hello_version(frame) is None
