"""What is fuzzed: each parser of bytes from outside, good inputs for it, and what it may raise."""

from __future__ import annotations

import base64
import json
import struct
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec

from astra_mesh.errors import AstraMeshError, InputError, PairingError, ProtocolError
from astra_mesh.mesh import codes, pairing
from astra_mesh.mesh.discovery import SERVICE, Discovery
from astra_mesh.mesh.identity import DeviceKey, device_certificate, peer_id
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.sealed import Answerer, Channel, Opener
from astra_mesh.mesh.session import Session, State
from astra_mesh.wire.bits import pack, unpack
from astra_mesh.wire.codec import decode, encode, hello_version
from astra_mesh.wire.messages import Hello, PeerId, Roster
from tools import make_sealed_vectors as sealed_vectors
from tools import make_vectors

FRAMES: Final = [bytes.fromhex(vector["frame"]) for vector in make_vectors.vectors()]


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        run: Takes an input; an exception that leaves it is a finding.
        seeds: Good inputs.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


# --- the wire -------------------------------------------------------------------------------------


def _wire(data: bytes) -> None:
    hello_version(data)
    with suppress(ProtocolError):
        message = decode(data)
        assert decode(encode(message)) == message


@cache
def _hellos() -> tuple[Hello, bytes]:
    message = next(m for m in map(decode, FRAMES) if isinstance(m, Hello) and m.device is not None)
    other = msgspec.structs.replace(message, peer=PeerId("e" * 64))
    return message, encode(other)


def _session(data: bytes) -> None:
    """A whole conversation: frames with two bytes of length before each, after a good hello."""
    own, other = _hellos()
    session = Session(own)
    session.start(0.0)
    session.receive(other, 0.0)
    now, rest = 0.0, data
    while len(rest) > 1:
        size = int.from_bytes(rest[:2], "big")
        frame, rest = rest[2 : 2 + size], rest[2 + size :]
        now += 0.001
        session.receive(frame, now)
        session.tick(now)
        sum(map(len, session.frames()))
    assert session.unconsumed_bytes <= own.window_bytes
    assert session.queued_bytes < 1 << 20
    if session.close_error is not None:
        assert session.state in (State.CLOSING, State.CLOSED)


def _conversations() -> list[bytes]:
    small = [frame for frame in FRAMES if len(frame) < 2_000]
    joined = [struct.pack(">H", len(frame)) + frame for frame in small]
    return [*joined, b"".join(joined), b"".join(reversed(joined))]


def _bits(data: bytes) -> None:
    if len(data) < 3:
        return
    tokens, groups, bits = data[0], data[1] % 33, data[2] % 16 + 1
    with suppress(ProtocolError):
        found = unpack(data[3:], tokens, groups, bits)
        assert found.shape == (tokens, groups)
        assert pack(found, bits) == data[3:]


# --- trust ----------------------------------------------------------------------------------------


@cache
def _device() -> DeviceKey:
    return DeviceKey.new()


def _pairing(data: bytes) -> None:
    for kind in (pairing.Knock, pairing.Reply, pairing.Proof, pairing.Welcome):
        with suppress(ProtocolError, PairingError):
            pairing.parse(data, kind)


def _pairing_seeds() -> list[bytes]:
    certificate = _device().certificate
    messages: list[pairing.Message] = [
        pairing.Knock(1, b"", certificate, "guest", b"A" * 33),
        pairing.Reply(certificate, "host", b"B" * 33),
        pairing.Proof(bytes(32), bytes(70), bytes(16), True, bytes(9)),
        pairing.Welcome(bytes(9)),
        pairing.Closed("window"),
    ]
    return [msgspec.msgpack.encode(message) for message in messages]


def _certificate(data: bytes) -> None:
    with suppress(ValueError):
        device_certificate(data)


@cache
def _book() -> tuple[RosterBook, DeviceKey]:
    book, member = RosterBook(_device(), "own"), DeviceKey.new()
    book.let_in(member.certificate, "member")
    return book, member


def _roster(data: bytes) -> None:
    book, member = _book()
    known = RosterBook(_device(), "own", book.message())
    with suppress(ProtocolError):
        message = decode(data)
        if isinstance(message, Roster):
            known.merge(message, member.id)
            assert set(known.members()) <= set(book.members()), "a forged member"


def _roster_seeds() -> list[bytes]:
    book, member = _book()
    other = RosterBook(member, "member", book.message())
    other.shut_out(_device().id)
    return [encode(book.message()), encode(other.message())]


def _codes(data: bytes) -> None:
    with suppress(InputError):
        codes.read_secret(data.decode("utf-8", "replace"))


def _codes_seeds() -> list[bytes]:
    texts = [codes.new_code(), codes.new_key(), codes.as_uri(codes.new_code(), ["[::1]:7475"])]
    return [text.encode() for text in texts]


def _announcement(data: bytes) -> None:
    found: list[Any] = []
    watch = Discovery(
        PeerId("0" * 64), "x", 1, on_found=lambda *of: found.append(of), on_gone=lambda peer: None
    )
    name, *texts = data.decode("utf-8", "replace").split("\n")
    pairs = [text.partition("=") for text in texts]
    properties = {key: value if mark else None for key, mark, value in pairs}
    hosts = [value for key, value in properties.items() if key.startswith("at")]
    info = SimpleNamespace(
        decoded_properties=properties,
        port=len(data) % 65_536,
        parsed_scoped_addresses=lambda version: [host or "" for host in hosts],
    )
    watch._report(f"{name}.{SERVICE}", info)  # type: ignore[arg-type]
    for _, shown, addresses in found:
        assert shown.isprintable()
        assert len(shown) <= 64
        assert len(addresses) <= 8


# --- tabs -----------------------------------------------------------------------------------------


def _sealed(data: bytes) -> None:
    """A first message to a peer, a second to a tab, and a frame, each from somebody hostile."""
    peer = sealed_vectors.speaker(sealed_vectors.PEER_CERTIFICATE, sealed_vectors.PEER)
    tab = sealed_vectors.speaker(sealed_vectors.TAB_CERTIFICATE, sealed_vectors.TAB)
    with suppress(ProtocolError):
        Answerer(peer, data).finish(data)
        raise AssertionError("a forged opener")
    with suppress(ProtocolError):
        Opener(tab, peer_id(sealed_vectors.PEER_CERTIFICATE)).finish(data)
        raise AssertionError("a forged answerer")
    with suppress(ProtocolError):
        Channel(bytes(32), bytes(32)).open(data)
        raise AssertionError("a forged frame")


def _sealed_seeds() -> list[bytes]:
    handshake, opened, _ = sealed_vectors.handshake()
    messages = [bytes.fromhex(handshake[name]) for name in ("first", "second", "third")]
    return [*messages, opened.seal(b"frame")]


def _tab(data: bytes) -> None:
    from astra_mesh.web.tab_messages import Join, read, read_key, unframed

    with suppress(ProtocolError):
        unframed(data)
    with suppress(ProtocolError, ValueError):
        message = read(data.decode("utf-8", "surrogateescape"))
        if isinstance(message, Join):
            _device().issue_tab(read_key(message.key), 2**33)


def _tab_seeds() -> list[bytes]:
    point = base64.b64encode(bytes.fromhex(sealed_vectors.vectors()["signatures"][0]["public"]))
    return [
        b'{"type":"join","key":"' + point + b'","name":"phone"}',
        b'{"type":"open","channel":1,"to":"' + b"a1" * 32 + b'"}',
        b'{"type":"close","channel":3}',
        bytes(5),
    ]


# --- files and the API ----------------------------------------------------------------------------


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="astra-fuzz-"))


def _header(data: bytes) -> None:
    from astra_mesh.bundle.header import read_header

    path = _folder() / "model.safetensors"
    path.write_bytes(data)
    with suppress(AstraMeshError):
        header = read_header(path)
        assert all(0 <= one.begin <= one.end <= len(data) for one in header.tensors.values())


def _header_seeds() -> list[bytes]:
    tensors = {
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "U8", "shape": [3], "data_offsets": [16, 19]},
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    return [struct.pack("<Q", len(text)) + text + bytes(19)]


def _json(data: bytes) -> None:
    from astra_mesh.bundle.configs import parse_object

    with suppress(ValueError, RecursionError):  # its callers turn these into BadBundleError
        parse_object(data)


def _api(data: bytes) -> None:
    from astra_mesh.web.body import decode as decode_body
    from astra_mesh.web.errors import ApiError
    from astra_mesh.web.requests import ChatRequest, CompletionRequest, EmbeddingRequest

    for kind in (CompletionRequest, ChatRequest, EmbeddingRequest):
        with suppress(ApiError):
            decode_body(data, kind)


_JSON_SEEDS: Final = [
    b'{"model":"tiny-gpt2","prompt":"Once","max_tokens":4,"stream":true,"stop":["a"],"seed":1}',
    b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"n":2}',
    b'{"model":"m","input":["a","b"],"encoding_format":"base64","temperature":0.5}',
]


def _guard(data: bytes) -> None:
    from astra_mesh.web.config import ApiConfig
    from astra_mesh.web.errors import ApiError
    from astra_mesh.web.guard import Guard

    texts = [*data.decode("utf-8", "surrogateescape").split("\n"), "", "", ""]
    headers = dict(zip(("Host", "Origin", "Authorization"), texts, strict=False))
    with suppress(ApiError):
        Guard(ApiConfig(token="t" * 32)).check("/v1/models", headers)
        assert headers["Authorization"].partition(" ")[2].strip() == "t" * 32


def _address(data: bytes) -> None:
    from astra_mesh.client.addresses import parse_address

    with suppress(InputError):
        parse_address(data.decode("utf-8", "replace"))


TARGETS: Final[dict[str, Target]] = {
    "wire": Target(_wire, lambda: FRAMES),
    "session": Target(_session, _conversations),
    "bits": Target(_bits, lambda: [bytes([4, 2, 8]) + bytes(8), bytes([9, 3, 4]) + bytes(14)]),
    "pairing": Target(_pairing, _pairing_seeds),
    "certificate": Target(_certificate, lambda: [_device().certificate]),
    "roster": Target(_roster, _roster_seeds),
    "sealed": Target(_sealed, _sealed_seeds),
    "tab": Target(_tab, _tab_seeds),
    "codes": Target(_codes, _codes_seeds),
    "announcement": Target(
        _announcement, lambda: [b"kitchen\nid=" + b"a1" * 32 + b"\nv=1\nname=kitchen\nat=10.0.0.1"]
    ),
    "header": Target(_header, _header_seeds),
    "json": Target(_json, lambda: _JSON_SEEDS),
    "api": Target(_api, lambda: _JSON_SEEDS),
    "guard": Target(
        _guard, lambda: [b"localhost:7476\nhttp://localhost:7476\nBearer " + b"t" * 32]
    ),
    "address": Target(_address, lambda: [b"host:7475", b"[fe80::1%eth0]:1", b"192.168.1.2"]),
}
