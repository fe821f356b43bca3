"""Open windows and join keys."""

import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from astra_mesh import limits
from astra_mesh.errors import IdentityError, PairingError
from astra_mesh.mesh.codes import new_code, new_key, read_secret
from astra_mesh.mesh.invitations import FILE_NAME, Invitations
from astra_mesh.mesh.programs import Program
from astra_mesh.wire.messages import DeviceId

DEVICE = DeviceId("d" * 64)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_without_a_window_nobody_comes_in(tmp_path: Path) -> None:
    assert Invitations(tmp_path).try_one(b"") is None


def test_one_window_takes_one_device(tmp_path: Path) -> None:
    invitations, secret = Invitations(tmp_path), read_secret(new_code())
    invitations.open_window(secret)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    found = invitations.try_one(b"")
    assert found is not None
    assert found.password == secret.password
    assert invitations.enter(found)
    assert invitations.try_one(b"") is None
    assert not invitations.enter(found)
    window = invitations.window()
    assert window is not None
    assert not window.came, "it is coming in, no more"
    invitations.came_in(found, "phone", DEVICE)
    window = invitations.window()
    assert window is not None
    assert (window.came, window.devices) == (["phone"], [DEVICE])


def test_who_did_not_come_in_after_all_leaves_room_for_another(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    opened = invitations.open_window(read_secret(new_code()))
    assert invitations.try_one(b"") is not None
    invitations.was_right(opened)
    assert invitations.enter(opened)
    invitations.give_back(opened)
    window = invitations.window()
    assert window is not None
    assert (window.uses, window.tries, window.came) == (1, limits.PAIR_TRIES, [])


def test_a_newer_window_has_nothing_to_do_with_an_older_one(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    older = invitations.open_window(read_secret(new_code()))
    newer = invitations.open_window(read_secret(new_code()))
    assert not invitations.enter(older)
    invitations.came_in(older, "phone", DEVICE)
    invitations.give_back(older)
    invitations.refuse(older, "no")
    invitations.close_own(older)
    assert invitations.window() == newer
    invitations.close_own(newer)
    assert invitations.window() is None


def test_a_refused_window_is_over_and_a_key_is_not(tmp_path: Path) -> None:
    invitations, key = Invitations(tmp_path), read_secret(new_key())
    opened = invitations.open_window(read_secret(new_code()))
    invitations.open_key(key, 60)
    invitations.refuse(opened, "no")
    window, by_key = invitations.window(), invitations.window(key.id)
    assert window is not None
    assert by_key is not None
    assert window.refused == "no"
    assert invitations.try_one(b"") is None
    invitations.refuse(by_key, "no")
    assert invitations.try_one(key.id) is not None


def test_three_wrong_tries_close_it(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    invitations.open_window(read_secret(new_code()))
    assert [invitations.try_one(b"") is not None for _ in range(5)] == [True] * 3 + [False] * 2


def test_a_right_try_that_comes_to_nothing_counts_for_none(tmp_path: Path) -> None:
    """And gives a guesser nothing: as many wrong ones close the window as before."""
    invitations = Invitations(tmp_path)
    opened = invitations.open_window(read_secret(new_code()))
    for _ in range(2 * limits.PAIR_TRIES):
        assert invitations.try_one(b"") is not None
        invitations.was_right(opened)
        invitations.judged(opened)
    for _ in range(limits.PAIR_TRIES):
        assert invitations.try_one(b"") is not None
        invitations.judged(opened)
    assert invitations.try_one(b"") is None
    window = invitations.window()
    assert window is not None
    assert window.guessed_out


def test_what_was_right_in_an_older_window_gives_a_newer_one_no_try(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    older = invitations.open_window(read_secret(new_code()))
    assert invitations.try_one(b"") is not None
    newer = invitations.open_window(read_secret(new_code()))
    invitations.was_right(older)
    assert invitations.window() == newer


def test_many_tries_at_once_are_no_way_around(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    invitations.open_window(read_secret(new_code()))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: Invitations(tmp_path).try_one(b""), range(64)))
    assert sum(one is not None for one in found) == limits.PAIR_TRIES


def test_a_window_closes_after_two_minutes(tmp_path: Path) -> None:
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    invitations.open_window(read_secret(new_code()))
    clock.now += limits.PAIR_CODE_S - 1
    assert invitations.window()
    clock.now += 1
    assert invitations.window() is None
    assert invitations.try_one(b"") is None


def test_who_is_late_with_the_right_code_is_out(tmp_path: Path) -> None:
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    opened = invitations.open_window(read_secret(new_code()))
    assert invitations.try_one(b"") is not None
    clock.now += limits.PAIR_CODE_S
    assert invitations.is_over(opened)
    assert not invitations.enter(opened)


def test_a_window_that_ends_while_a_device_comes_in_still_tells_of_it(tmp_path: Path) -> None:
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    opened = invitations.open_window(read_secret(new_code()))
    clock.now += limits.PAIR_CODE_S - 1
    assert invitations.try_one(b"") is not None
    assert invitations.enter(opened)
    clock.now += 2
    assert invitations.window() is not None
    assert invitations.try_one(b"") is None
    invitations.came_in(opened, "phone", DEVICE)
    window = invitations.window()
    assert window is not None
    assert window.came == ["phone"]
    clock.now += limits.PAIR_EXCHANGE_S
    assert invitations.window() is None


def test_a_window_that_ends_while_a_device_does_not_come_in_is_over(tmp_path: Path) -> None:
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    opened = invitations.open_window(read_secret(new_code()))
    clock.now += limits.PAIR_CODE_S - 1
    assert invitations.try_one(b"") is not None
    assert invitations.enter(opened)
    clock.now += 2
    invitations.give_back(opened)
    assert invitations.window() is None


def test_the_last_try_may_be_right(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    opened = invitations.open_window(read_secret(new_code()))
    for _ in range(limits.PAIR_TRIES - 1):
        assert invitations.try_one(b"") is not None
        invitations.judged(opened)
    last = invitations.try_one(b"")
    assert last is not None
    assert last.tries == 0
    assert not last.guessed_out
    invitations.judged(opened)
    window = invitations.window()
    assert window is not None
    assert window.guessed_out


def test_a_key_is_used_once_unless_told_otherwise(tmp_path: Path) -> None:
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    once, twice = read_secret(new_key()), read_secret(new_key())
    invitations.open_key(once, 60)
    invitations.open_key(twice, 60, uses=2, member_s=5)
    for _ in range(2):
        found = invitations.try_one(twice.id)
        assert found is not None
        assert found.member_s == 5
        assert invitations.enter(found)
        invitations.came_in(found, "board", DEVICE)
    assert invitations.try_one(twice.id) is None
    assert invitations.try_one(once.id) is not None
    clock.now += 60
    assert invitations.try_one(once.id) is None


def test_closing(tmp_path: Path) -> None:
    invitations, key = Invitations(tmp_path), read_secret(new_key())
    invitations.open_window(read_secret(new_code()))
    invitations.open_key(key, 60)
    invitations.close(b"")
    assert invitations.try_one(b"") is None
    assert invitations.try_one(key.id)
    invitations.close()
    assert invitations.try_one(key.id) is None


def test_the_port_of_a_window_is_given_up_between_two_tries(tmp_path: Path) -> None:
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    assert not invitations.want_port(7475), "nobody is there"
    invitations.open_window(read_secret(new_code()))
    assert not invitations.want_port(7475), "a peer answers"
    assert not invitations.want_port(0)
    invitations.open_window(read_secret(new_code()), port=7475)
    assert not invitations.want_port(7476)

    def given_up() -> bool:
        window = invitations.window()
        assert window is not None
        return invitations.is_to_give_up_port(window)

    assert not given_up(), "nobody wants it"
    assert invitations.want_port(7475)
    assert given_up()
    tried = invitations.try_one(b"")
    assert tried is not None
    assert not given_up(), "somebody may know the code"
    assert invitations.enter(tried)
    invitations.judged(tried)
    assert not given_up(), "a device comes in"
    invitations.give_back(tried)
    assert given_up()


def test_keys_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOIN_KEYS", 2)
    invitations = Invitations(tmp_path)
    for _ in range(2):
        invitations.open_key(read_secret(new_key()), 60)
    with pytest.raises(PairingError, match="--close"):
        invitations.open_key(read_secret(new_key()), 60)


def test_keys_that_are_used_up_count_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And make room, the oldest first; one by which a device comes in may be free again."""
    monkeypatch.setattr(limits, "JOIN_KEYS", 2)
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    keys = [read_secret(new_key()) for _ in range(5)]
    for key in keys:
        invitations.open_key(key, 600)
        coming = invitations.try_one(key.id)
        assert coming is not None
        assert invitations.enter(coming)
        clock.now += limits.PAIR_EXCHANGE_S
    assert [key for key in keys if invitations.window(key.id)] == keys[-2:]
    invitations.open_window(read_secret(new_code()))
    for _ in range(2):
        invitations.open_key(key := read_secret(new_key()), 600)
        coming = invitations.try_one(key.id)
        assert coming is not None
        assert invitations.enter(coming)
    with pytest.raises(PairingError, match="--close"):
        invitations.open_key(read_secret(new_key()), 600)
    assert invitations.window(key.id), "a device is coming in by it"
    assert invitations.window(), "a window is no key"


@pytest.mark.parametrize("content", [b"\x91\x93", b"garbage\n", b"\x91\x81\xa1\xff\x00"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    invitations = Invitations(tmp_path)
    with pytest.raises(IdentityError, match="it is damaged; `astra-mesh pair --close`"):
        invitations.window()
    assert invitations.replace_damaged()
    assert invitations.still_open() == []
    assert not invitations.replace_damaged()


def test_a_window_that_was_guessed_out_says_so_for_its_time(tmp_path: Path) -> None:
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    own = invitations.open_window(read_secret(new_code()))
    for number in range(limits.PAIR_TRIES):
        tried = invitations.try_one(b"")
        assert tried is not None
        assert invitations.was_last(tried) is (number == limits.PAIR_TRIES - 1)
        invitations.judged(tried)
    invitations.close_own(own)  # the program that showed the code has ended
    window = invitations.window()
    assert window is not None
    assert window.guessed_out
    clock.now += limits.PAIR_CODE_S
    assert invitations.window() is None


def test_the_last_of_three_at_once_is_the_last_that_is_judged(tmp_path: Path) -> None:
    invitations = Invitations(tmp_path)
    invitations.open_window(read_secret(new_code()))
    tries = [invitations.try_one(b"") for _ in range(limits.PAIR_TRIES)]
    said = []
    for tried in tries:
        assert tried is not None
        said.append(invitations.was_last(tried))
        invitations.judged(tried)
    assert said == [False, False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells enough of programs")
@pytest.mark.parametrize(
    "other",
    [{"pid": 2**22 + 1}, {"started": 1}],  # no such process; another one has its number
    ids=["it ended", "its number was given anew"],
)
def test_a_window_is_over_with_the_program_that_shows_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, int]
) -> None:
    own = Program.own()
    assert own is not None
    invitations, key = Invitations(tmp_path), read_secret(new_key())
    monkeypatch.setattr(Program, "own", lambda: msgspec.structs.replace(own, **other))
    opened = invitations.open_window(read_secret(new_code()))
    invitations.open_key(key, 60)
    assert invitations.try_one(b"") is None
    assert not invitations.enter(opened)
    assert invitations.window() is None
    assert invitations.try_one(key.id) is not None, "a key needs no program"


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells enough of programs")
def test_a_program_in_another_container_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Program, "own", lambda: Program(2**22 + 1, 1, "pid:[1]"))
    invitations = Invitations(tmp_path)
    invitations.open_window(read_secret(new_code()))
    assert invitations.try_one(b"") is not None


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells enough of programs")
def test_a_program_of_another_user_that_is_hidden_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitations = Invitations(tmp_path)
    invitations.open_window(read_secret(new_code()))
    monkeypatch.setattr("astra_mesh.mesh.programs._started", lambda _: None)
    assert invitations.try_one(b"") is not None


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells enough of programs")
def test_who_is_coming_in_as_the_program_ends_comes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitations = Invitations(tmp_path)
    opened = invitations.open_window(read_secret(new_code()))
    assert invitations.enter(opened)
    monkeypatch.setattr(Program, "is_gone", property(lambda _: True))
    invitations.came_in(opened, "phone", DEVICE)
    window = invitations.window()
    assert window is not None
    assert window.came == ["phone"]


def test_what_is_open_is_told_until_it_is_not(tmp_path: Path) -> None:
    clock = Clock()
    invitations = Invitations(tmp_path, clock)
    key = read_secret(new_key())
    invitations.open_key(key, 3600, uses=1)
    invitations.open_window(read_secret(new_code()))
    assert {bool(one.id) for one in invitations.still_open()} == {True, False}
    clock.now += limits.PAIR_CODE_S + 1
    assert [one.id for one in invitations.still_open()] == [key.id]
    found = invitations.try_one(key.id)
    assert found is not None
    assert invitations.enter(found)
    assert invitations.still_open() == [], "its one use is taken"
