"""The command ``pair``: lets devices into a mesh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from astra_mesh.cli.console import clean, err, hint, out, print_json, print_qr, reporting, run_async
from astra_mesh.cli.options import STDIN, Json, first_line
from astra_mesh.cli.signals import ENDING, on_signals
from astra_mesh.cli.unpair import list_devices, running_now
from astra_mesh.naming import labelled

if TYPE_CHECKING:
    from astra_mesh.client.pairing_post import Post
    from astra_mesh.mesh.invitations import Invitation, Invitations
    from astra_mesh.mesh.trust import Trust

PAIR_EXAMPLE: Final = "Example:  astra-mesh pair   ·   on the other:  astra-mesh pair K7QM-2XR8"
_LOOK_S: Final = 0.2  # between two looks whether somebody came
_VALID: Final = "24h"  # a join key
_OF_KEYS: Final = {"--uses", "--valid"}
_WORK: Final = {"CODE", "--at", "--join-key", "--for"} | _OF_KEYS
_STRANGE: Final = {"--list": _WORK | {"--close"}, "--close": _WORK, "CODE": {"--join-key"}}
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def pair(
    code: Annotated[
        str | None,
        typer.Argument(
            help="The code or join key that the other device showed; -: the first line of stdin, "
            "where no list of processes shows it. Default: show one here."
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT", help="Where the other device is, where multicast is dropped."
        ),
    ] = None,
    join_key: Annotated[
        bool,
        typer.Option(
            "--join-key",
            help="Make a long key for a board without a keyboard instead of a code.",
        ),
    ] = False,
    uses: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, show_default="1", help="How many devices may use the key (--join-key)."
        ),
    ] = None,
    valid: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", show_default=_VALID, help="How long the key holds (--join-key)."
        ),
    ] = None,
    member_for: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="TIME", help="Let it in for so long only: a guest's phone, say 12h."
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="List the devices of this mesh, and what is open.")
    ] = False,
    close: Annotated[
        bool, typer.Option("--close", help="Close all windows and join keys.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pair two devices: show a code here, or use the one that the other device shows."""
    with reporting(as_json):
        from astra_mesh.errors import InputError
        from astra_mesh.mesh.invitations import Invitations
        from astra_mesh.mesh.trust import Trust
        from astra_mesh.peer.local import name_of

        member_s = 0 if member_for is None else _seconds("--for", member_for)
        valid_s = _seconds("--valid", _VALID if valid is None else valid)
        given = {
            "CODE": code,
            "--at": at,
            "--join-key": join_key,
            "--uses": uses,
            "--valid": valid,
            "--for": member_for,
            "--list": show,
            "--close": close,
        }
        _check_together({name for name, value in given.items() if value or value == ""})
        trust = Trust.open()
        trust.name = name_of(trust.device.id)
        if show:
            ways_in = Invitations(trust.folder).still_open()
            list_devices(trust, as_json, run_async(running_now(trust)), ways_in)
        elif close:
            invitations = Invitations(trust.folder)
            damaged = invitations.replace_damaged()
            _say_closed(invitations.close(), damaged, as_json)
        elif code is not None and member_s:
            raise InputError(
                "--for goes with showing a code, not with using one: on the device that lets the "
                "other one in, astra-mesh pair --for TIME"
            )
        elif code is not None:
            trust.settle()
            code = first_line(Path(code), "CODE") if code == STDIN else code
            run_async(_join(trust, code, at or [], as_json))
        elif at:
            raise InputError(
                "--at says where the device is that showed a code: astra-mesh pair CODE --at "
                "HOST:PORT"
            )
        elif join_key:
            _make_key(trust, uses or 1, valid_s, member_s, as_json)
        else:
            trust.settle()
            run_async(_show_code(trust, member_s, as_json))


def _say_closed(closed: list[Invitation], damaged: bool, as_json: bool) -> None:
    keys = sum(bool(one.id) for one in closed)
    window = keys < len(closed)
    if as_json:
        about = {"window": window, "join_keys": keys, "damaged": damaged}
        print_json({"type": "closed", **about})
        return
    if damaged:
        out.print("nothing is open: the list of what was is damaged, and an empty one is there now")
        return
    what = ["the window"] * window + ([f"{keys} join key{'s' * (keys > 1)}"] if keys else [])
    out.print(f"closed {' and '.join(what)}" if what else "nothing was open")


def _paired(name: str, device: str) -> dict[str, object]:
    return {"type": "paired", "name": name, "id": device}


def _check_together(given: set[str]) -> None:
    """Nothing that was typed is silently left out.

    Raises:
        InputError: Something does not go with the rest.
    """
    from astra_mesh.errors import InputError

    for one, strange in _STRANGE.items():
        if one in given and (more := sorted(given & strange)):
            raise InputError(f"{one} does not go with {' and '.join(more)}; say one of them")
    if "--join-key" not in given and (more := sorted(given & _OF_KEYS)):
        raise InputError(
            f"{' and '.join(more)} only for join keys: astra-mesh pair --join-key {more[0]} ..."
        )


# --- the side that uses a code --------------------------------------------------------------------


async def _join(trust: Trust, code: str, at: list[str], as_json: bool) -> None:
    from astra_mesh.client.pairing_search import pair_nearby
    from astra_mesh.mesh.codes import read_secret
    from astra_mesh.mesh.connect import show_address

    secret = read_secret(code)
    with err.status("looking for the other device", spinner="dots"):
        paired = await pair_nearby(trust, secret, at)
    if as_json:
        print_json(_paired(paired.name, paired.device) | {"members": paired.members})
        return
    out.print(f"Paired with {clean(labelled(paired.name, paired.device))}.", markup=False)
    out.print(f"  mesh    {clean(', '.join(paired.members))}", markup=False, soft_wrap=True)
    if at or secret.addresses:
        hint(f"peers of this device dial {show_address(paired.address)} from now on")


# --- the side that shows one ----------------------------------------------------------------------


def _make_key(trust: Trust, uses: int, valid_s: int, member_s: int, as_json: bool) -> None:
    from astra_mesh.mesh.codes import new_key, read_secret
    from astra_mesh.mesh.invitations import Invitations
    from astra_mesh.mesh.pairing_host import check_may_let_in

    check_may_let_in(trust)
    key = new_key()
    Invitations(trust.folder).open_key(read_secret(key), valid_s, uses, member_s)
    if as_json:
        print_json({"type": "join-key", "key": key, "uses": uses, "valid_s": valid_s})
        return
    out.print(key, markup=False)
    hint(f"on the board: ASTRA_MESH_JOIN_KEY={key} astra-mesh peer")
    hint("a peer must run on this device for it: astra-mesh peer")


async def _show_code(trust: Trust, member_s: int, as_json: bool) -> None:
    from contextlib import AsyncExitStack

    from astra_mesh.client.pairing_post import pairing_post
    from astra_mesh.mesh.codes import new_code, read_secret
    from astra_mesh.mesh.invitations import Invitations
    from astra_mesh.mesh.pairing_host import check_may_let_in

    check_may_let_in(trust)
    invitations = Invitations(trust.folder)
    code = new_code()
    async with AsyncExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        own_post = await stack.enter_async_context(AsyncExitStack())
        post = await pairing_post(own_post, trust)
        args = (read_secret(code), member_s, post.port)
        own = await asyncio.to_thread(invitations.open_window, *args)
        try:
            _print_code(code, post, as_json)
            await _wait(invitations, own, as_json, own_post.aclose)
        finally:
            await asyncio.to_thread(invitations.close_own, own)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """They end the current task as Ctrl-C does: its window is closed."""
    task = asyncio.current_task()
    assert task is not None
    with on_signals(task.cancel, *ENDING):
        yield


def _print_code(code: str, post: Post, as_json: bool) -> None:
    from astra_mesh import limits
    from astra_mesh.mesh.codes import as_uri

    uri = as_uri(code, post.far)
    if as_json:
        about = {"code": code, "uri": uri, "addresses": post.near, "note": post.note}
        print_json({"type": "code", **about, "valid_s": limits.PAIR_CODE_S})
        return
    if not post.note:  # else nobody who scans it gets here
        print_qr(uri)
    out.print(Text(f"  {code}", style="bold"))
    out.print(f"  on the other device:  astra-mesh pair {code}", style="dim")
    if post.far:
        out.print(f"  if it finds nobody:   astra-mesh pair {code} --at {post.far[0]}", style="dim")
    out.print(f"  valid for {limits.PAIR_CODE_S / 60:g} minutes; Ctrl-C closes it", style="dim")
    if post.note:
        hint(f"but {post.note}")


async def _wait(
    invitations: Invitations,
    own: Invitation,
    as_json: bool,
    give_up_port: Callable[[], Awaitable[None]],
) -> None:
    """Until somebody came in, or the window is closed. A peer that starts meanwhile gets the port,
    at which the other device may look for this one from now on, and answers there.

    Raises:
        PairingError: It closed.
    """
    from astra_mesh.errors import PairingError

    while True:
        window: Invitation | None = await asyncio.to_thread(invitations.window)
        if window is not None and window.password != own.password:
            raise PairingError(
                "another window was opened on this device (`astra-mesh pair` or its page), so "
                "this code holds no more; use the code that is shown there"
            )
        if window is not None and window.came:
            name, device = window.came[0], next(iter(window.devices), "")
            if as_json:
                print_json(_paired(name, device))
            else:
                out.print(f"Paired with {clean(labelled(name, device))}.", markup=False)
            await asyncio.sleep(1.0)  # the last messages of the exchange
            return
        if window is None and time.time() < own.until:
            raise PairingError("the window was closed, so the code holds no more")
        if window is None:
            raise PairingError(
                "its time was over before a device was paired, so the code holds no more; try again"
            )
        if window.refused:
            raise PairingError(window.refused)
        if window.guessed_out:
            raise PairingError(
                "three wrong codes were given, so the window is closed. Somebody mistyped, or "
                "guesses; try again for a new code"
            )
        if invitations.is_to_give_up_port(window):
            await give_up_port()
        await asyncio.sleep(_LOOK_S)


def _seconds(option: str, text: str) -> int:
    """``90s``, ``15m``, ``12h``, ``7d``.

    Raises:
        InputError: It is none of these, or no time at all.
    """
    from astra_mesh.errors import InputError

    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and len(number) < 6 and unit in _UNITS):
        raise InputError(f"{option} {text[:20]!a} is no time: use 90s, 15m, 12h or 7d")
    if not int(number):
        raise InputError(f"{option} {text[:20]!a} is over at once: use 90s, 15m, 12h or 7d")
    return int(number) * _UNITS[unit]
