"""Open pairing windows and join keys of a device, kept in its trust folder.

``astra-mesh pair`` writes them, a running peer answers to them: a wrong try is counted before it is
known to be wrong, so that many at once are no way around the limit. All calls block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from astra_mesh import limits
from astra_mesh.errors import IdentityError, PairingError
from astra_mesh.mesh.codes import Secret
from astra_mesh.mesh.files import alone, replace_file
from astra_mesh.mesh.programs import Program
from astra_mesh.wire.messages import DeviceId

FILE_NAME: Final = "invitations"
_LOCK_FILE: Final = "invitations.lock"
_FILE_BYTES: Final = 256 * limits.KIB
_DAMAGED: Final = (
    "it is damaged; `astra-mesh pair --close` begins an empty one, and what was open is to be "
    "opened anew"
)


class _DamagedError(Exception):
    """The file holds no invitations."""


class Invitation(msgspec.Struct):
    """One window or join key."""

    id: bytes  # of a join key; empty: the window with a code
    password: bytes
    until: float  # seconds since 1970
    uses: int  # how many devices may still come in by it; one that is coming in has its use already
    tries: int  # how many wrong ones may still come
    member_s: int = 0  # who comes in by it is a member for so long; 0: for good
    came: list[str] = []  # names of devices that came in by it
    devices: list[str] = []  # their ids
    refused: str = ""  # why a window is over though nobody came: a sentence for who opened it
    judging: int = 0  # how many tries are not known to be wrong or right yet
    coming: float = 0.0  # a device is coming in by it: kept until then, though its time be over
    opener: Program | None = None  # which shows the code of a window: it is over with that
    port: int = 0  # at which the opener answers to pairings itself; 0: a peer does
    wanted: bool = False  # a peer that starts waits for that port, and answers there then

    @property
    def guessed_out(self) -> bool:
        """Whether all tries were wrong. The last one may be right while it is being judged."""
        return self.tries < 1 and self.judging < 1

    def is_kept(self, now: float) -> bool:
        """Whether it is open, or somebody still has to learn how it ended."""
        if self.coming > now:
            return True
        unseen = self.opener is not None and not self.guessed_out and self.opener.is_gone
        return self.until > now and not unseen


class Invitations:
    """The invitations in one folder."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock

    def open_window(self, secret: Secret, member_s: int = 0, port: int = 0) -> Invitation:
        """Take one device in by a code, from now on and while this program runs; an older window
        is closed by it. ``port``: at which this program answers itself, as no peer does.
        """
        until = self._clock() + limits.PAIR_CODE_S
        with self._all() as found:
            opened = Invitation(b"", secret.password, until, 1, limits.PAIR_TRIES, member_s)
            opened.opener, opened.port = Program.own(), port
            found[b""] = opened
        return opened

    def open_key(self, secret: Secret, valid_s: float, uses: int = 1, member_s: int = 0) -> None:
        """Take devices in by a join key. Of those that are used up the oldest make room.

        Raises:
            PairingError: There are too many by which somebody can come in.
        """
        with self._all() as found:
            keys = [one for one in found.values() if one.id]
            over = [one for one in keys if not self._counts(one)]
            if len(keys) - len(over) >= limits.JOIN_KEYS:
                raise PairingError(
                    f"{limits.JOIN_KEYS} join keys are open already; `astra-mesh pair --close` "
                    "closes them"
                )
            for one in over[: max(0, len(keys) + 1 - limits.JOIN_KEYS)]:
                del found[one.id]
            until = self._clock() + valid_s
            tries = limits.ROSTER_ENTRIES  # nobody guesses 128 bits: broken connections count too
            found[secret.id] = Invitation(secret.id, secret.password, until, uses, tries, member_s)

    def close_own(self, invitation: Invitation) -> None:
        """Close it, but none that was opened in its place. One that three wrong codes closed is
        remembered for as long as it would have been open, to say so.
        """
        with self._all() as found:
            kept = _kept(found, invitation)
            if kept is not None and not kept.guessed_out:
                del found[invitation.id]

    def close(self, *ids: bytes) -> list[Invitation]:
        """Close these, or all; those of them by which somebody could still come in."""
        with self._all() as found:
            gone = [found.pop(name) for name in ids or list(found) if name in found]
        return [one for one in gone if self._lets_in(one)]

    def still_open(self) -> list[Invitation]:
        """All by which somebody can come in now."""
        with self._all() as found:
            return [one for one in found.values() if self._lets_in(one)]

    def replace_damaged(self) -> bool:
        """If what is kept cannot be read, go on with nothing open; whether that was so."""
        with self._alone() as path:
            try:
                _decode(_read(path))
            except _DamagedError:
                replace_file(path, msgspec.msgpack.encode([]))
                return True
        return False

    def _counts(self, key: Invitation) -> bool:
        """Whether somebody can come in by a join key, or just does so and may give its use back."""
        return self._lets_in(key) or key.coming > self._clock()

    def _lets_in(self, invitation: Invitation) -> bool:
        return invitation.uses > 0 and invitation.tries > 0 and not self.is_over(invitation)

    def window(self, name: bytes = b"") -> Invitation | None:
        """How one stands; None if it is over and nobody came."""
        with self._all() as found:
            return found.get(name)

    def is_over(self, invitation: Invitation) -> bool:
        """Whether its time is."""
        return invitation.until <= self._clock()

    def want_port(self, port: int) -> bool:
        """A peer that starts wants a port that is taken; whether who opened a window answers there,
        and so gives it up.
        """
        with self._all() as found:
            window = found.get(b"")
            if window is None or not port or window.port != port:
                return False
            window.wanted = True
            return True

    def is_to_give_up_port(self, window: Invitation) -> bool:
        """Whether a peer waits for the port of who opened a window, and nobody comes in there."""
        return window.wanted and not window.judging and window.coming <= self._clock()

    def try_one(self, name: bytes) -> Invitation | None:
        """Somebody wants to come in by it, and counts as wrong until :meth:`was_right`."""
        with self._all() as found:
            invitation = found.get(name)
            if invitation is None or invitation.tries < 1 or invitation.uses < 1:
                return None
            if self.is_over(invitation):
                return None
            invitation.tries -= 1
            invitation.judging += 1
            return invitation

    def judged(self, invitation: Invitation) -> None:
        """A try is over, whatever came of it."""
        with self._all() as found:
            kept = _kept(found, invitation)
            if kept is not None:
                kept.judging = max(0, kept.judging - 1)

    def was_last(self, invitation: Invitation) -> bool:
        """Whether a wrong try, which is not :meth:`judged` yet, closed a window."""
        with self._all() as found:
            kept = _kept(found, invitation)
            return kept is not None and not kept.id and kept.tries < 1 and kept.judging <= 1

    def was_right(self, invitation: Invitation) -> None:
        """Whoever tried it proved that it knows the secret: that was no guess, whatever follows."""
        with self._all() as found:
            kept = _kept(found, invitation)
            if kept is not None:
                kept.tries += 1

    def enter(self, invitation: Invitation) -> bool:
        """A device that knows the secret comes in; whether there is still room for it.

        It is coming in from now on: :meth:`came_in` or :meth:`give_back` ends that.
        """
        with self._all() as found:
            kept = _kept(found, invitation)
            if kept is None or kept.uses < 1 or self.is_over(kept):
                return False
            kept.uses -= 1
            kept.coming = self._clock() + limits.PAIR_EXCHANGE_S
            return True

    def came_in(self, invitation: Invitation, called: str, device: DeviceId) -> None:
        """Both sides kept the membership of a device."""
        with self._all() as found:
            kept = _kept(found, invitation)
            if kept is not None:
                kept.came.append(called)
                kept.devices.append(device)

    def give_back(self, invitation: Invitation) -> None:
        """A device did not come in after all, so another one may."""
        with self._all() as found:
            kept = _kept(found, invitation)
            if kept is not None:
                kept.uses, kept.coming = kept.uses + 1, 0.0

    def refuse(self, invitation: Invitation, why: str) -> None:
        """Nobody can come in by it as things are. A window is over by it, a join key stays."""
        with self._all() as found:
            kept = _kept(found, invitation)
            if kept is not None and not kept.id:
                kept.uses, kept.refused = 0, why

    @contextmanager
    def _all(self) -> Iterator[dict[bytes, Invitation]]:
        """What is open, to look at and to change."""
        with self._alone() as path:
            before, now = _read(path), self._clock()
            found = {one.id: one for one in _decode(before) if one.is_kept(now)}
            yield found
            after = msgspec.msgpack.encode(list(found.values())) if before or found else before
            if after != before:
                replace_file(path, after)

    @contextmanager
    def _alone(self) -> Iterator[Path]:
        """The file, while no other program uses it."""
        path = self._folder / FILE_NAME
        try:
            with alone(self._folder / _LOCK_FILE):
                yield path
        except (OSError, _DamagedError) as exc:
            why = (exc.strerror or exc) if isinstance(exc, OSError) else _DAMAGED
            raise IdentityError(f"{path}, which holds open pairings: {why}") from exc


_Many = list[Invitation]


def _kept(found: Mapping[bytes, Invitation], invitation: Invitation) -> Invitation | None:
    """The same as it stands now; None if it is over, or another one is in its place."""
    kept = found.get(invitation.id)
    return kept if kept is not None and kept.password == invitation.password else None


def _decode(data: bytes) -> _Many:
    try:
        return msgspec.msgpack.decode(data, type=_Many) if data else []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise _DamagedError from exc


def _read(path: Path) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(_FILE_BYTES)
