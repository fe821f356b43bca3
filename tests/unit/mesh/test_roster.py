"""The list of devices: decisions, copies that become equal, and what forgers can do (nothing)."""

import itertools
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.errors import PairingError, ProtocolError
from astra_mesh.mesh import identity
from astra_mesh.mesh.identity import DeviceKey, device_certificate
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.wire.codec import decode, encode
from astra_mesh.wire.messages import Roster

A, B, C, D = (DeviceKey.new() for _ in range(4))
NAMES = {A.id: "a", B.id: "b", C.id: "c", D.id: "d"}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def book(device: DeviceKey, clock: Any = None) -> RosterBook:
    return RosterBook(device, NAMES[device.id], clock=clock or Clock())


def join(host: RosterBook, device: DeviceKey, until: int = 0, clock: Any = None) -> RosterBook:
    """Let a device in, as a pairing does; its own book."""
    host.let_in(device.certificate, NAMES[device.id], until)
    guest = book(device, clock)
    guest.adopt(host.message())
    return guest


def three() -> tuple[RosterBook, RosterBook, RosterBook]:
    """A let B in, which let C in; all know it."""
    a = book(A)
    b = join(a, B)
    c = join(b, C)
    a.merge(b.message(), B.id)
    return a, b, c


def names(of: RosterBook) -> set[str]:
    return {NAMES[key] for key in of.members()}


def test_a_device_is_the_first_member_of_its_mesh() -> None:
    a = book(A)
    assert names(a) == {"a"}
    assert a.alone
    assert a.may_decide(A.id)
    assert not a.is_member(B.id)
    assert a.find("a") == []


def test_the_third_pairs_with_either() -> None:
    a, b, c = three()
    assert names(a) == names(b) == names(c) == {"a", "b", "c"}
    assert not a.alone
    assert [key for key, _ in a.find("c")] == [key for key, _ in a.find(C.id[:6])] == [C.id]
    assert a.find(C.id[:6].upper()) == a.find("c")
    assert a.find("") == []


def test_it_survives_the_file() -> None:
    a, _, _ = three()
    kept = decode(encode(a.message()))
    assert isinstance(kept, Roster)
    assert RosterBook(A, "a", kept).message() == a.message()


def test_shut_out_everywhere() -> None:
    a, b, c = three()
    a.shut_out(B.id)
    assert names(a) == {"a", "c"}  # B had let C in: A signed for it again
    assert c.merge(a.message(), A.id)
    assert names(c) == {"a", "c"}
    assert b.merge(a.message(), A.id)
    assert not b.counts_itself


def test_what_a_device_lets_in_after_it_was_shut_out_counts_nowhere() -> None:
    a, b, c = three()
    a.shut_out(B.id)
    b.let_in(D.certificate, "d")  # B has not heard of it
    c.merge(b.message(), B.id)  # and neither has C
    assert "d" in names(c)
    c.merge(a.message(), A.id)
    a.merge(c.message(), C.id)
    assert names(a) == names(c) == {"a", "c"}


def test_a_shut_out_device_is_not_listened_to() -> None:
    a, b, _ = three()
    a.shut_out(B.id)
    b.let_in(D.certificate, "d")
    assert not a.merge(b.message(), B.id)
    assert names(a) == {"a", "c"}


def test_old_entries_do_not_come_back() -> None:
    a, _, c = three()
    old = a.message()
    a.shut_out(B.id)
    assert not a.merge(old, C.id)
    c.merge(a.message(), A.id)
    assert not c.merge(old, A.id)
    assert names(a) == names(c) == {"a", "c"}


def test_paired_again_after_it_was_shut_out() -> None:
    a, _, c = three()
    a.shut_out(B.id)
    b = join(a, B)
    c.merge(a.message(), A.id)
    assert names(a) == names(b) == names(c) == {"a", "b", "c"}


def test_the_founder_can_be_shut_out() -> None:
    a, b, c = three()
    b.shut_out(A.id)
    assert names(b) == {"b", "c"}
    assert c.merge(b.message(), B.id)
    assert names(c) == {"b", "c"}
    d = join(c, D)
    b.merge(c.message(), C.id)
    assert names(d) == names(b) == {"b", "c", "d"}
    assert not b.merge(a.message(), A.id)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_copies_become_equal_in_any_order(order: tuple[int, ...]) -> None:
    books = dict(zip((A, B, C), three(), strict=True))
    books[A].let_in(D.certificate, "d")
    books[B].let_in(D.certificate, "d also")
    books[C].shut_out(B.id)
    messages = [(key.id, one.message()) for key, one in books.items()]
    for one in books.values():
        for place in order:
            sender, message = messages[place]
            one.merge(message, sender)
    for _ in range(2):
        for sender, message in [(key.id, one.message()) for key, one in books.items()]:
            books[A].merge(message, sender)
            books[C].merge(message, sender)
    assert books[A].message() == books[C].message()
    assert "b" not in names(books[A])


def revenge(of: RosterBook, on: DeviceKey, generation: int) -> None:
    """What a hostile program of a device that was shut out could sign."""
    of._put(of._signed(on.certificate, NAMES[on.id], generation, member=False))


@pytest.mark.parametrize("victim", [A, C])
def test_who_was_shut_out_shuts_nobody_out(victim: DeviceKey) -> None:
    """Not the one that did it, nor another, and not by way of a member that did not know yet."""
    a, b, c = three()
    a.shut_out(B.id)
    revenge(b, victim, 5)
    if victim is A:  # C does not know that B is out, and believes it
        assert c.merge(b.message(), B.id)
        assert "a" not in names(c)
    assert not a.merge(b.message(), B.id)
    a.merge(c.message(), C.id)
    assert a.counts_itself
    assert names(a) == {"a", "c"}


def test_who_knows_takes_nothing_that_it_signs_from_others() -> None:
    a, b, c = three()
    a.shut_out(B.id)
    c.merge(a.message(), A.id)
    revenge(b, A, 5)
    b.let_in(D.certificate, "d")
    relayed = Roster(mesh=a.mesh, entries=[b._entries[A.id], b._entries[D.id]])
    assert not c.merge(relayed, A.id)
    assert names(c) == {"a", "c"}
    assert D.id not in c._entries


def test_no_guest_shuts_a_member_out_by_way_of_another() -> None:
    clock = Clock()
    a = book(A, clock)
    c = join(a, C, clock=clock)
    guest = join(a, B, until=int(clock.now) + 60, clock=clock)
    c.merge(a.message(), A.id)
    revenge(guest, A, 5)
    relayed = Roster(mesh=a.mesh, entries=[guest._entries[A.id]])
    assert not c.merge(relayed, A.id)
    assert not a.merge(relayed, C.id)
    assert names(a) == names(c) == {"a", "b", "c"}


def test_generations_do_not_jump() -> None:
    """Else one signature would be the last word about a device for ever."""
    a, b, _ = three()
    revenge(b, C, limits.ROSTER_GENERATIONS)
    assert not a.merge(b.message(), B.id)
    revenge(b, C, 3)
    assert a.merge(b.message(), B.id)
    assert names(a) == {"a", "b"}
    a.let_in(C.certificate, "c")
    assert names(a) == {"a", "b", "c"}


def test_what_a_device_planted_leaves_room_once_it_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROSTER_ENTRIES", 6)
    a, b, _ = three()
    for _ in range(3):
        b.let_in(DeviceKey.new().certificate, "junk")
    a.merge(b.message(), B.id)
    with pytest.raises(PairingError, match="6 devices"):
        a.let_in(D.certificate, "d")
    a.shut_out(B.id)
    for junk in [key for key, entry in a.members().items() if entry.name == "junk"]:
        a.shut_out(junk)
    assert names(a) == {"a", "c"}


def test_what_was_decided_before_does_not_come_back() -> None:
    """D was shut out, then let in by B, who is out now: an old copy that has D does not count."""
    a, b, c = three()
    a.let_in(D.certificate, "d")
    old = a.message()
    a.shut_out(D.id)
    b.merge(a.message(), A.id)
    b.let_in(D.certificate, "d")
    c.merge(b.message(), B.id)
    c._put(c._signed(B.certificate, "b", c._entries[B.id].generation + 1, member=False))
    assert "d" not in names(c)
    c.merge(old, A.id)
    assert "d" not in names(c)


def test_the_first_member_calls_itself_anew_and_all_follow() -> None:
    a, b, c = three()
    assert a.call_itself("kitchen")
    assert a.own_name == "kitchen"
    assert not a.call_itself("kitchen"), "no news, so no newer entry"
    assert b.merge(a.message(), A.id)
    assert c.merge(b.message(), B.id)
    assert {one.members()[A.id].name for one in (a, b, c)} == {"kitchen"}
    assert not b.call_itself("attic"), "A signed for its name, and none would follow"
    assert b.own_name == "b"
    assert a.members()[B.id].by == A.id


def test_a_device_that_is_out_or_leaves_does_not_call_itself() -> None:
    a, b, _ = three()
    a.say_farewell()
    assert not a.call_itself("kitchen")
    assert a.is_leaving
    b.merge(a.message(), A.id)
    assert "a" not in names(b)


def test_a_membership_for_a_time() -> None:
    clock = Clock()
    a = book(A, clock)
    b = join(a, B, until=int(clock.now) + 60, clock=clock)
    assert names(a) == names(b) == {"a", "b"}
    with pytest.raises(PairingError, match="limited time"):
        b.let_in(C.certificate, "c")
    clock.now += 60
    assert names(a) == {"a"}


def test_a_guest_cannot_make_itself_a_member_for_good() -> None:
    clock = Clock()
    a = book(A, clock)
    b = join(a, B, until=int(clock.now) + 60, clock=clock)
    c = join(a, C, clock=clock)
    b._put(b._signed(B.certificate, "b", 9))  # what a hostile program could sign
    assert not a.merge(b.message(), B.id)  # guests decide nothing
    c.merge(b.message(), B.id)
    a.merge(c.message(), C.id)
    clock.now += 60
    assert names(a) == {"a", "c"}


def test_a_member_cannot_plant_a_device_that_outlives_it() -> None:
    a, b, _ = three()
    d = RosterBook(D, "d", b.message())
    b.let_in(D.certificate, "d")
    a.merge(b.message(), B.id)
    d._put(d._signed(D.certificate, "d", 5))  # D signs for itself, so that it needs B no more
    b._put(d._entries[D.id])
    a.merge(b.message(), B.id)
    assert a._entries[D.id].by == B.id
    a.shut_out(B.id)
    assert "b" not in names(a)
    assert a._entries[D.id].by == A.id  # it was known, so A decided about it


def test_forged_entries() -> None:
    a, b, _ = three()
    good = b.message()
    for change in (
        {"member": False},
        {"name": "x"},
        {"until": 5},
        {"by": A.id},
        {"signature": b"\x30\x00"},
    ):
        forged = [replace(entry, generation=7, **change) for entry in good.entries]
        with pytest.raises(ProtocolError, match="not signed"):
            a.merge(replace(good, entries=forged), B.id)
    assert a.message() == three()[0].message() or names(a) == {"a", "b", "c"}


def test_an_entry_by_nobody() -> None:
    a, b, _ = three()
    b.let_in(D.certificate, "d")
    unknown = [replace(entry, generation=3, by="e" * 64) for entry in b.message().entries]
    with pytest.raises(ProtocolError, match="not signed"):
        a.merge(replace(b.message(), entries=unknown), B.id)


def test_the_roster_of_another_mesh() -> None:
    a, b = book(A), book(B)
    with pytest.raises(ProtocolError, match="another mesh"):
        a.merge(b.message(), B.id)
    with pytest.raises(PairingError, match="signatures do not hold"):
        a.adopt(b.message())
    forged = replace(join(b, A).message(), mesh=bytes(16))
    with pytest.raises(PairingError, match="signatures do not hold"):
        a.adopt(forged)
    assert names(a) == {"a"}


def test_a_certificate_that_is_not_the_devices_own() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stolen = x509.Name(x509.load_der_x509_certificate(A.certificate).subject)
    forged = identity._certificate(key.public_key(), stolen, stolen, key, authority=True)
    leaf = x509.load_pem_x509_certificate(A.issue().certificate_pem)
    for certificate in (forged, leaf):
        der = certificate.public_bytes(Encoding.DER)
        with pytest.raises(ValueError, match="not its device's own"):
            device_certificate(der)
        with pytest.raises(PairingError):
            book(B).let_in(der, "x")


def test_every_damaged_certificate_is_refused() -> None:
    for size in range(0, len(A.certificate), 7):
        with pytest.raises(ValueError, match="certificate"):
            device_certificate(A.certificate[:size])
    for bit in range(0, 8 * len(A.certificate), 11):
        damaged = bytearray(A.certificate)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="certificate"):
            device_certificate(bytes(damaged))


def test_a_full_roster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROSTER_ENTRIES", 2)
    clock = Clock()
    a = book(A, clock)
    a.let_in(B.certificate, "b", int(clock.now) + 5)
    with pytest.raises(PairingError, match="all that it can remember"):
        a.let_in(C.certificate, "c")
    clock.now += 5
    a.let_in(C.certificate, "c")
    assert names(a) == {"a", "c"}


def test_beginning_anew() -> None:
    a, b, _ = three()
    b.begin_anew()
    assert names(b) == {"b"}
    assert b.mesh != a.mesh


# --- leaving --------------------------------------------------------------------------------------


def farewell(of: RosterBook) -> Roster:
    assert of.say_farewell()
    return of.message()


def test_who_leaves_is_out_and_those_that_it_let_in_stay() -> None:
    a, b, c = three()  # B let C in
    said = farewell(b)
    assert b.is_leaving
    assert not b.say_farewell()
    assert names(b) == {"a", "b", "c"}, "until they were told"
    for book_, sender in ((a, B), (c, B)):
        assert book_.merge(said, sender.id)
        assert names(book_) == {"a", "c"}
        assert book_.may_decide(C.id)
        assert b.is_heard_in(book_.message())
    assert not b.is_heard_in(three()[0].message())
    for _ in range(2):
        a.merge(c.message(), C.id)
        c.merge(a.message(), A.id)
    assert a.message() == c.message()
    assert a._entries[C.id].by == A.id, "the word of another counts more than one's own"
    d = join(c, D)
    assert names(d) == {"a", "c", "d"}
    a.merge(c.message(), C.id)
    assert names(a) == {"a", "c", "d"}


def test_the_news_of_who_was_let_in_may_come_with_the_farewell() -> None:
    a, b, c = three()
    b.let_in(D.certificate, "d")  # nobody knows it yet
    said = farewell(b)
    assert c.merge(said, B.id)
    assert a.merge(c.message(), C.id), "from another"
    assert names(a) == names(c) == {"a", "c", "d"}
    assert a._entries[D.id].by == C.id


def test_a_founder_leaves_whom_it_let_in_alone() -> None:
    a = book(A)
    b = join(a, B)
    assert b.merge(farewell(a), A.id)
    assert names(b) == {"b"}
    assert b.alone
    assert b.counts_itself
    c = join(b, C)
    assert names(c) == {"b", "c"}, "B counts without A"


def test_what_who_left_signs_later_counts_nowhere() -> None:
    a, b, c = three()
    a.merge(farewell(b), B.id)
    b._put(b._signed(D.certificate, "d", 1))
    b._put(b._signed(C.certificate, "c", 9, member=False))
    assert not a.merge(b.message(), B.id)
    c.merge(b.message(), A.id)  # by way of a member, with the farewell
    assert names(a) == {"a", "c"}


def test_a_guest_leaves() -> None:
    clock = Clock()
    a = book(A, clock)
    b = join(a, B, until=int(clock.now) + 60, clock=clock)
    b._put(b._signed(D.certificate, "d", 1))
    assert a.merge(farewell(b), B.id)
    assert names(a) == {"a"}, "it left, and its word about others counts for nothing"


def test_a_farewell_does_not_hold_once_the_device_is_paired_again() -> None:
    """Whether who pairs with it has heard it or not; and in whatever order it comes."""
    for heard in (True, False):
        a, b, c = three()
        said = farewell(b)
        c.merge(said, B.id)
        if heard:
            a.merge(said, B.id)
        b = join(a, B)
        for sender in (A, B, C):
            a.merge(said, sender.id)
            b.merge(said, sender.id)
        c.merge(a.message(), A.id)
        c.merge(said, A.id)
        a.merge(c.message(), C.id)
        assert names(a) == names(b) == names(c) == {"a", "b", "c"}
        assert not b.is_leaving


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_copies_become_equal_after_a_farewell(order: tuple[int, ...]) -> None:
    """While others decide about the same devices."""
    books = dict(zip((A, B, C), three(), strict=True))
    said = farewell(books[B])
    books[A].let_in(D.certificate, "d")
    books[A].shut_out(B.id)
    messages = [(B.id, said), *((key.id, books[key].message()) for key in (A, C))]
    for key in (A, C):
        for place in order:
            sender, message = messages[place]
            books[key].merge(message, sender)
    for _ in range(3):
        for one, other in ((A, C), (C, A)):
            books[one].merge(books[other].message(), other.id)
    assert books[A].message() == books[C].message()
    assert names(books[A]) == {"a", "c", "d"}


def test_who_was_shut_out_brings_nobody_back_by_leaving() -> None:
    a, b, c = three()
    b.let_in(D.certificate, "d")
    c.merge(b.message(), B.id)
    a.shut_out(B.id)  # and knows nothing of D
    c.merge(a.message(), A.id)
    assert names(c) == {"a", "c"}
    b._put(b._signed(B.certificate, "b", 9, member=False))
    for sender in (A, B):
        c.merge(b.message(), sender.id)
        c.merge(Roster(mesh=b.mesh, entries=[b._entries[B.id]]), sender.id)
    assert names(c) == {"a", "c"}
    assert c._entries[B.id].by == A.id


def forged_farewell(kind: str) -> tuple[RosterBook, RosterBook, Roster, DeviceKey]:
    """A roster in which C seems to leave, who takes it, and who sends it."""
    clock = Clock()
    a = book(A, clock)
    b = join(a, B, clock=clock)
    c = join(a, C, clock=clock)
    guest = join(a, D, until=int(clock.now) + 60, clock=clock)
    for one in (b, c):
        one.merge(a.message(), A.id)
    signer = {"a guest decides": guest}.get(kind, b)
    no = signer._signed(C.certificate, "c", 5, member=False)
    if kind == "signed by another":
        no = replace(no, by=C.id)
    elif kind == "the farewell of another mesh":
        other = book(C)
        other.let_in(D.certificate, "d")
        no = next(e for e in farewell(other).entries if not e.member)
    elif kind == "of another generation":
        no = replace(next(e for e in farewell(c).entries if not e.member), generation=6)
    elif kind == "the signature of something else":
        no = replace(no, by=C.id, signature=c._entries[C.id].signature)
    elif kind == "without a signature":
        no = replace(no, by=C.id, signature=b"")
    elif kind == "of an unknown mesh":
        return a, b, Roster(mesh=bytes(16), entries=[no]), B
    sender = {"a guest decides": D, "a guest relays": D}.get(kind, B)
    if kind == "a guest relays":
        no = next(e for e in farewell(c).entries if not e.member)
    return a, b, Roster(mesh=a.mesh, entries=[no]), sender


FORGED = {
    "signed by another": "not signed",
    "the farewell of another mesh": "not signed",
    "of another generation": "not signed",
    "the signature of something else": "not signed",
    "without a signature": "not signed",
    "of an unknown mesh": "another mesh",
    "a guest decides": "",
    "a guest relays": "",
}


@pytest.mark.parametrize("kind", FORGED)
def test_nobody_says_farewell_for_another(kind: str) -> None:
    a, _, roster, sender = forged_farewell(kind)
    before = a.message()
    if FORGED[kind]:
        with pytest.raises(ProtocolError, match=FORGED[kind]):
            a.merge(roster, sender.id)
    else:
        assert not a.merge(roster, sender.id)
    assert a.message() == before
    assert "c" in names(a)


def test_who_is_leaving_pairs_with_nobody() -> None:
    a, b, _ = three()
    b.say_farewell()
    with pytest.raises(PairingError, match="leaving"):
        b.let_in(D.certificate, "d")
    with pytest.raises(PairingError, match="leaving"):
        b.adopt(a.message())
    kept = RosterBook(B, "b", b.message())
    assert kept.is_leaving, "over the file"
    kept.begin_anew()
    assert not kept.is_leaving
    assert not kept.say_farewell(), "it is alone: there is nobody to tell"
