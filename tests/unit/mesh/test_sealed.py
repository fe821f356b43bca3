from __future__ import annotations

import itertools
import json
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from astra_mesh.errors import ProtocolError
from astra_mesh.mesh.identity import DeviceKey, peer_id
from astra_mesh.mesh.sealed import Answerer, Channel, Opener, Speaker, certificate_of
from tools import make_sealed_vectors as made

VECTORS: dict[str, Any] = json.loads(made.PATH.read_text())


def pair() -> tuple[Opener, Answerer]:
    opener = Opener(
        made.speaker(made.TAB_CERTIFICATE, made.TAB),
        peer_id(made.PEER_CERTIFICATE),
        ephemeral=made.key("opener ephemeral"),
    )
    return opener, answerer(opener.first)


def answerer(first: bytes) -> Answerer:
    me = made.speaker(made.PEER_CERTIFICATE, made.PEER)
    return Answerer(me, first, ephemeral=made.key("answerer ephemeral"))


def channels() -> tuple[Channel, Channel]:
    opener, other = pair()
    third, opened = opener.finish(other.second)
    return opened, other.finish(third)


def flips(message: bytes) -> Iterator[bytes]:
    """The message with each of its bits changed in turn."""
    for place, bit in itertools.product(range(len(message)), range(8)):
        changed = bytearray(message)
        changed[place] ^= 1 << bit
        yield bytes(changed)


# --- vectors --------------------------------------------------------------------------------------


def test_the_file_of_vectors_is_what_this_version_does() -> None:
    assert made.vectors() == VECTORS


def test_vectors_open_at_the_other_end() -> None:
    opened, answered = channels()
    ends = {"opener": answered, "answerer": opened}
    for one in VECTORS["frames"]:
        assert ends[one["sender"]].open(bytes.fromhex(one["sealed"])).hex() == one["frame"]


@pytest.mark.parametrize("one", VECTORS["refused"], ids=lambda one: one["name"])
def test_vectors_that_are_refused(one: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        pair()[0].finish(bytes.fromhex(one["second"]))


def test_both_forms_of_a_signature_are_taken() -> None:
    """Libraries differ in whether they make s small."""
    opener, other = pair()
    third, _ = opener.finish(other.second)
    s = int.from_bytes(third[32:], "big")
    order = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
    other.finish(third[:32] + (order - s).to_bytes(32, "big"))


# --- the handshake --------------------------------------------------------------------------------


def test_keys_are_fresh_each_time() -> None:
    me = Speaker.with_key(made.TAB_CERTIFICATE, made.TAB)
    peer = Speaker.with_key(made.PEER_CERTIFICATE, made.PEER)
    sealed = set()
    for _ in range(2):
        opener = Opener(me, peer_id(made.PEER_CERTIFICATE))
        other = Answerer(peer, opener.first)
        third, opened = opener.finish(other.second)
        answered = other.finish(third)
        message = opened.seal(b"the same")
        assert answered.open(message) == b"the same"
        assert opened.open(answered.seal(b"the same")) == b"the same"
        sealed.add(message)
    assert len(sealed) == 2


def test_each_bit_of_the_first_message_counts() -> None:
    opener, _ = pair()
    refused = 0
    for changed in flips(opener.first):
        try:
            second = answerer(changed).second
        except ProtocolError:
            refused += 1
            continue
        with pytest.raises(ProtocolError):
            opener.finish(second)
    assert refused > 8 * 64  # all of the key and of the lengths at least


def test_each_bit_of_the_second_message_counts() -> None:
    opener, other = pair()
    for changed in flips(other.second):
        with pytest.raises(ProtocolError):
            opener.finish(changed)


def test_each_bit_of_the_third_message_counts() -> None:
    opener, other = pair()
    third, _ = opener.finish(other.second)
    for changed in [*flips(third), third[:-1], third + b"\0", b""]:
        with pytest.raises(ProtocolError):
            other.finish(changed)
    other.finish(third)


def test_the_third_message_of_another_handshake_is_refused() -> None:
    opener, other = pair()
    third, _ = opener.finish(other.second)
    fresh = Answerer(Speaker.with_key(made.PEER_CERTIFICATE, made.PEER), opener.first)
    with pytest.raises(ProtocolError, match="somebody else"):
        fresh.finish(third)


def test_the_second_message_of_another_handshake_is_refused() -> None:
    other = pair()[1]
    me = Speaker.with_key(made.TAB_CERTIFICATE, made.TAB)
    with pytest.raises(ProtocolError, match="somebody else"):
        Opener(me, peer_id(made.PEER_CERTIFICATE)).finish(other.second)


def test_whoever_has_the_certificate_but_not_its_key_is_refused() -> None:
    opener, _ = pair()
    thief = Answerer(made.speaker(made.PEER_CERTIFICATE, made.TAB), opener.first)
    with pytest.raises(ProtocolError, match="somebody else"):
        opener.finish(thief.second)
    posing = Opener(made.speaker(made.TAB_CERTIFICATE, made.PEER), opener._expected)
    other = answerer(posing.first)
    third, _ = posing.finish(other.second)
    with pytest.raises(ProtocolError, match="somebody else"):
        other.finish(third)


def test_another_peer_of_the_same_device_is_refused_by_its_id() -> None:
    device = DeviceKey.new()
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = device.issue().peer_id
    certificate = ssl.PEM_cert_to_DER_cert(device.issue(key).certificate_pem.decode())
    opener = Opener(made.speaker(made.TAB_CERTIFICATE, made.TAB), wanted)
    other = Answerer(Speaker.with_key(certificate, key), opener.first)
    with pytest.raises(ProtocolError, match=f"instead of {wanted[:8]}"):
        opener.finish(other.second)


def test_who_relays_can_see_who_opens() -> None:
    assert certificate_of(pair()[0].first) == made.TAB_CERTIFICATE
    with pytest.raises(ProtocolError):
        certificate_of(b"amt1")


# --- frames ---------------------------------------------------------------------------------------


def test_each_bit_of_a_frame_counts() -> None:
    opened, answered = channels()
    message = opened.seal(b"a frame")
    for changed in [*flips(message), message[:-1], message + b"\0", message[:16], b""]:
        with pytest.raises(ProtocolError, match="altered"):
            answered.open(changed)
    assert answered.open(message) == b"a frame"


def test_a_frame_opens_once_and_in_its_order_only() -> None:
    opened, answered = channels()
    first, second = opened.seal(b"first"), opened.seal(b"second")
    with pytest.raises(ProtocolError):
        answered.open(second)  # the first was left out, or comes later
    assert answered.open(first) == b"first"
    with pytest.raises(ProtocolError):
        answered.open(first)
    assert answered.open(second) == b"second"


def test_a_frame_does_not_open_where_it_came_from() -> None:
    opened, _ = channels()
    with pytest.raises(ProtocolError):
        opened.open(opened.seal(b"mirrored"))
