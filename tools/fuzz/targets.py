"""What is fuzzed: each parser of bytes from outside, good inputs for it, and what it may raise."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any, Final

import msgspec
from zeroconf import DNSIncoming, DNSPointer, ServiceStateChange  # type: ignore[attr-defined]
from zeroconf.asyncio import AsyncServiceInfo

from astra_mesh import limits
from astra_mesh.errors import AstraMeshError, InputError, PairingError, ProtocolError
from astra_mesh.mesh import codes, pairing
from astra_mesh.mesh.discovery import SERVICE, Discovery, is_instance
from astra_mesh.mesh.identity import DeviceKey, device_certificate, peer_id
from astra_mesh.mesh.quota import Quota
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.sealed import Answerer, Channel, Opener
from astra_mesh.mesh.session import Session, State
from astra_mesh.wire.bits import pack, unpack
from astra_mesh.wire.codec import decode, encode, hello_version
from astra_mesh.wire.messages import Goodbye, Hello, LinkRefused, PeerId, Roster
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


_PARTS: Final = ("_outbox", "_window", "_requests", "_pings", "_quota")  # of a session, that change


@cache
def _sessions() -> tuple[tuple[Session, bytes], tuple[Session, bytes]]:
    """A session that waits for the hello, and one that had it; their parts pickled, for copies."""
    own = next(m for m in map(decode, FRAMES) if isinstance(m, Hello) and m.device is not None)
    session = Session(own, quota=Quota(3, 64 * limits.KIB))
    session.start(0.0)
    greeting = copy.copy(session), _pickled(session)
    session.receive(encode(msgspec.structs.replace(own, peer=PeerId("e" * 64))), 0.0)
    assert session.state is State.OPEN
    return greeting, (session, _pickled(session))


def _pickled(session: Session) -> bytes:
    return pickle.dumps([getattr(session, part) for part in _PARTS], pickle.HIGHEST_PROTOCOL)


def _fresh(greeted: bool) -> Session:
    """A copy of one of them: making a session and reading a hello takes longer than most inputs."""
    model, parts = _sessions()[greeted]
    session = copy.copy(model)
    for name, part in zip(_PARTS, pickle.loads(parts), strict=True):  # noqa: S301
        setattr(session, name, part)
    return session


def _session(data: bytes) -> None:
    """A whole conversation: frames with two bytes of length before each.

    Its first bit says whether they follow a good hello, or begin with the hello.
    """
    session = _fresh(greeted=data[:1] < b"\x80")
    now, rest = 0.0, data
    while len(rest) > 1 and session.state is not State.CLOSED:
        size = int.from_bytes(rest[:2], "big") & 0x7FFF
        frame, rest = rest[2 : 2 + size], rest[2 + size :]
        now += 0.001
        session.receive(frame, now)
        session.tick(now)
        sum(map(len, session.frames()))
    assert session.unconsumed_bytes <= session.hello.window_bytes
    assert session.queued_bytes < 1 << 20
    if session.close_error is not None:
        assert session.state in (State.CLOSING, State.CLOSED)


def _conversations() -> list[bytes]:
    small = [frame for frame in FRAMES if len(frame) < 2_000]
    joined = [struct.pack(">H", len(frame)) + frame for frame in small]
    greetings = [
        struct.pack(">H", 0x8000 | len(frame)) + frame
        for frame in small
        if isinstance(decode(frame), Hello | LinkRefused | Goodbye)
    ]
    return [*joined, *greetings, b"".join(joined), b"".join(reversed(joined))]


def _bits(data: bytes) -> None:
    if len(data) < 3:
        return
    tokens, groups, bits = data[0], data[1] % 33, data[2] % 16 + 1
    with suppress(ProtocolError):
        found = unpack(data[3:], tokens, groups, bits)
        assert found.shape == (tokens, groups)
        assert pack(found, bits) == data[3:]


def _one_of(kinds: Sequence[type[Any]], data: bytes) -> type[Any]:
    """Which of several types an input is read as: the input decides, so that each run is alike."""
    return kinds[sum(data[-4:]) % len(kinds)]


# --- trust ----------------------------------------------------------------------------------------


@cache
def _device() -> DeviceKey:
    return DeviceKey.new()


def _pairing(data: bytes) -> None:
    with suppress(ProtocolError, PairingError):
        pairing.parse(data, _one_of((pairing.Knock, pairing.Reply, pairing.Proof), data))


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
    with suppress(ProtocolError):
        message = decode(data)
        if isinstance(message, Roster):
            known = RosterBook(_device(), "own", book.message())
            known.merge(message, member.id)
            assert set(known.members()) <= set(book.members()), "a forged member"


def _roster_seeds() -> list[bytes]:
    book, member = _book()
    other = RosterBook(member, "member", book.message())
    left = RosterBook(member, "member", book.message())
    other.shut_out(_device().id)
    left.say_farewell()
    return [encode(one.message()) for one in (book, other, left)]


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
    for full in (name, f"{name}.{SERVICE}"):
        watch._on_change(None, SERVICE, full, ServiceStateChange.Added)  # type: ignore[arg-type]
    for full in watch._pending:  # the library takes every name that gets so far
        AsyncServiceInfo(SERVICE, full)
    _announced(data)
    for _, shown, addresses in found:
        assert shown.isprintable()
        assert len(shown) <= 64
        assert len(addresses) <= 8


def _announced(packet: bytes) -> None:
    """The names that a whole packet points to, as the library reads them."""
    for record in DNSIncoming(packet).answers():
        if isinstance(record, DNSPointer) and is_instance(record.alias):
            AsyncServiceInfo(SERVICE, record.alias)


def _packet(*labels: bytes) -> bytes:
    """RFC 1035: an answer which says that a service's instance has this name."""
    service = (b"_astra-mesh", b"_tcp", b"local")
    first, second = (
        b"".join(bytes([len(label)]) + label for label in name) + b"\0"
        for name in (service, (*labels, *service))
    )
    about = struct.pack(">HHIH", 12, 1, 4500, len(second))  # PTR, IN, seconds
    return struct.pack(">6H", 0, 0x8400, 0, 1, 0, 0) + first + about + second


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


class _InMemory(PurePosixPath):
    """A file that costs no system calls."""

    data = b""

    def stat(self) -> SimpleNamespace:
        """As of a regular file."""
        return SimpleNamespace(st_mode=stat.S_IFREG, st_size=len(self.data))

    def open(self, mode: str) -> io.BytesIO:
        """For reading."""
        return io.BytesIO(self.data)


def _header(data: bytes) -> None:
    from astra_mesh.bundle.header import read_header

    path = _InMemory("fuzz/model.safetensors")
    path.data = data
    with suppress(AstraMeshError):
        header = read_header(path)  # type: ignore[arg-type]
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

    kinds = (CompletionRequest, ChatRequest, EmbeddingRequest)
    with suppress(ApiError):
        decode_body(data, _one_of(kinds, data))


_JSON_SEEDS: Final = [
    b'{"model":"tiny-gpt2","prompt":"Once","max_tokens":4,"stream":true,"stop":["a"],"seed":1}',
    b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"n":2}',
    b'{"model":"m","input":["a","b"],"encoding_format":"base64","temperature":0.5}',
]


@cache
def _guarded() -> Any:
    from astra_mesh.web.config import ApiConfig
    from astra_mesh.web.guard import Guard

    return Guard(ApiConfig(token="t" * 32))


def _guard(data: bytes) -> None:
    from astra_mesh.web.errors import ApiError

    texts = [*data.decode("utf-8", "surrogateescape").split("\n"), "", "", ""]
    headers = dict(zip(("Host", "Origin", "Authorization"), texts, strict=False))
    with suppress(ApiError):
        _guarded().check("/v1/models", headers)
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
        _announcement,
        lambda: [
            b"kitchen\nid=" + b"a1" * 32 + b"\nv=1\nname=kitchen\nat=10.0.0.1",
            _packet(b"kitchen-a1a1a1a1"),
        ],
    ),
    "header": Target(_header, _header_seeds),
    "json": Target(_json, lambda: _JSON_SEEDS),
    "api": Target(_api, lambda: _JSON_SEEDS),
    "guard": Target(
        _guard, lambda: [b"localhost:7476\nhttp://localhost:7476\nBearer " + b"t" * 32]
    ),
    "address": Target(_address, lambda: [b"host:7475", b"[fe80::1%eth0]:1", b"192.168.1.2"]),
}
