"""Every prefix and every flipped bit of every example in the protocol, against codec and session.

Of examples longer than :data:`WHOLE` bytes every :data:`STEP`-th bit is flipped, beginning with
another one in each example.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import cache

import pytest

from astra_mesh.errors import MeshError, ProtocolError
from astra_mesh.mesh.session import Session, State
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import decode, encode, hello_version, peek
from tests.unit.mesh.sessions import B, hello, opened, started
from tools import make_vectors

VECTORS = {vector["name"]: bytes.fromhex(vector["frame"]) for vector in make_vectors.vectors()}
NAMES = list(VECTORS)
WHOLE = 240
STEP = 11
# What a hello, a refusal or a goodbye can lead to, however its bytes fell.
ENDS = (State.GREETING, State.OPEN, State.CLOSING, State.CLOSED)


def damaged(name: str) -> Iterator[bytes]:
    frame = VECTORS[name]
    for end in range(len(frame)):
        yield frame[:end]
    step = 1 if len(frame) <= WHOLE else STEP
    for place in range(NAMES.index(name) % step, 8 * len(frame), step):
        other = bytearray(frame)
        other[place // 8] ^= 1 << place % 8
        yield bytes(other)


@cache
def models() -> list[bytes]:
    """Sessions that wait for the hello, and with a link to a peer and to a client, to be copied."""
    found: list[Session] = [started(hello(B)), opened(), opened(other=m.Role.CLIENT)]
    return [pickle.dumps(session, pickle.HIGHEST_PROTOCOL) for session in found]


@pytest.mark.parametrize("name", NAMES)
def test_the_codec_takes_or_refuses(name: str) -> None:
    for frame in damaged(name):
        hello_version(frame)
        try:
            message = decode(frame)
        except ProtocolError:
            continue
        assert decode(encode(message)) == message
        kind, request = peek(frame)
        assert kind is type(message)
        assert request is None or request == getattr(message, "request", request)


@pytest.mark.parametrize("name", NAMES)
def test_no_prefix_is_a_message(name: str) -> None:
    frame = VECTORS[name]
    for end in range(len(frame)):
        with pytest.raises(ProtocolError):
            decode(frame[:end])


@pytest.mark.parametrize("name", NAMES)
def test_a_session_takes_or_refuses(name: str) -> None:
    for model in models():
        for frame in damaged(name):
            session: Session = pickle.loads(model)
            taken = session.receive(frame, 1.0)
            assert len(taken) <= 1
            assert session.state in ENDS
            if session.close_error is None:
                continue
            assert not taken
            assert isinstance(session.close_error, MeshError)
            if session.state is State.CLOSING:  # the other end is told why, and nothing follows
                (last,) = [decode(one) for one in session.frames()][-1:]
                assert isinstance(last, m.LinkRefused)
                assert session.receive(VECTORS[name], 1.0) == []
