"""The command ``unpair``: shuts devices out of the mesh, and lists those that are in it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from astra_mesh.cli.console import clean, err, hint, out, print_json, reporting, run_async
from astra_mesh.cli.options import Json, device_names
from astra_mesh.naming import SHORT_ID, device_name, labelled

if TYPE_CHECKING:
    from astra_mesh.client.farewell import Farewell
    from astra_mesh.client.reach import Running
    from astra_mesh.mesh.invitations import Invitation
    from astra_mesh.mesh.roster import RosterBook
    from astra_mesh.mesh.trust import Trust
    from astra_mesh.wire.messages import DeviceId

EXAMPLE: Final = "Example:  astra-mesh unpair kitchen"


def unpair(
    device: Annotated[
        str | None,
        typer.Argument(
            help="Its name or the first digits of its id, or those of a peer that runs on it now "
            "(see `pair --list`).",
            autocompletion=device_names,
        ),
    ] = None,
    leave: Annotated[
        bool, typer.Option("--leave", help="Take this device out of its mesh instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Shut a device out of the mesh, on all devices of the mesh."""
    with reporting(as_json):
        from astra_mesh.errors import InputError
        from astra_mesh.mesh.pairing_host import check_may_shut_out
        from astra_mesh.mesh.trust import Trust
        from astra_mesh.peer.local import name_of

        if (device is None) is not leave:
            raise InputError("name the device to shut out, or say --leave")
        trust = Trust.open()
        trust.name = name_of(trust.device.id)
        if device is None:
            _leave(trust, as_json)
            return
        check_may_shut_out(trust.book, trust.device.id)
        running = run_async(running_now(trust))
        _shut_out(trust, device, running, as_json)
        list_devices(trust, as_json, running)
        hint("the peers of the mesh part from it within seconds; others when they meet them")


def _shut_out(trust: Trust, device: str, running: list[Running], as_json: bool) -> None:
    from astra_mesh.errors import InputError
    from astra_mesh.mesh.pairing_host import check_may_shut_out

    found = find_device(trust, device, running)
    if len(found) != 1:
        raise InputError(_which(device, found))
    ((key, name),) = found.items()

    def decide(book: RosterBook) -> bool:
        check_may_shut_out(book, trust.device.id)
        if not book.is_member(key):
            return False  # somebody else was faster
        book.shut_out(key)
        return True

    trust.change(decide)
    if not as_json:
        out.print(f"Shut out {clean(labelled(name, key))}.", markup=False)


def find_device(trust: Trust, text: str, running: Sequence[Running]) -> dict[DeviceId, str]:
    """The devices that a person may mean, with their names: all that the mesh or a peer on them
    calls so, since a name that one chose may be another's, or its digits; else by a part of an id.

    Raises:
        InputError: It is this device.
    """
    from astra_mesh.errors import InputError

    own, digits = trust.device.id, text.lower()
    others = {key: entry for key, entry in trust.members().items() if key != own}
    named = {key for key, entry in others.items() if entry.name == text}
    named |= {one.device for one in running if one.name == text}
    if text and (not named or len(text) >= SHORT_ID):
        named |= {key for key in others if key.startswith(digits)}
    if text and not named:
        named = {one.device for one in running if one.peer.startswith(digits)}
    named = {key for key in others if key == digits} or named  # a whole id leaves no doubt
    if named == {own}:
        raise InputError(
            f"the peer {text!a} runs on this device: stop it, or take the device out of its mesh "
            "with --leave"
        )
    return {key: name for key, name in shown_names(trust, running).items() if key in named}


def shown_names(trust: Trust, running: Sequence[Running]) -> dict[DeviceId, str]:
    """How the devices of the mesh are called."""
    here: dict[DeviceId, list[str]] = {}
    for one in running:
        here.setdefault(one.device, []).append(one.name)
    return {
        key: device_name(entry.name, here.get(key, ())) for key, entry in trust.members().items()
    }


def _leave(trust: Trust, as_json: bool) -> None:
    from astra_mesh.client.farewell_words import NO_MESH, what_remains

    if trust.change(_begin_anew_alone):  # at once: there is nobody to look for
        if as_json:
            print_json({"devices": device_rows(trust), "told": [], "untold": [], "ended": []})
            return
        list_devices(trust, as_json)
        hint(NO_MESH)
        return
    farewell = run_async(_say_farewell(trust))
    if as_json:
        told = {"told": list(farewell.told), "untold": list(farewell.untold)}
        print_json({"devices": device_rows(trust), **told, "ended": list(farewell.ended)})
        return
    list_devices(trust, as_json)
    for sentence in what_remains(farewell, trust.device.id):
        hint(clean(sentence))


def _begin_anew_alone(book: RosterBook) -> bool:
    """Of those who are out nothing is remembered any more either."""
    if book.alone and not book.is_leaving:
        book.begin_anew()
        return True
    return False


async def _say_farewell(trust: Trust) -> Farewell:
    from astra_mesh.client.farewell import leave

    with err.status("telling the others", spinner="dots"):
        return await leave(trust)


async def running_now(trust: Trust) -> list[Running]:
    """The peers that are in the mesh now, with a line while they are asked."""
    from astra_mesh.client.reach import who_runs

    with err.status("asking the peers", spinner="dots"):
        return await who_runs(trust)


def _which(device: str, found: Mapping[DeviceId, str]) -> str:
    if found:
        which = ", ".join(labelled(name, key) for key, name in found.items())
        return f"{device!a} fits {len(found)} devices: {which}; give the digits of one"
    return (
        f"no other device of this mesh, and no peer that runs now, is called {device!a}; "
        "`astra-mesh pair --list` lists them"
    )


def device_rows(trust: Trust, running: Sequence[Running] = ()) -> list[dict[str, object]]:
    """The devices of the mesh, for programs."""
    names = shown_names(trust, running)
    return [
        {
            "id": key,
            "name": names[key],
            "this": key == trust.device.id,
            "until": entry.until or None,
            "let_in_by": entry.by,
        }
        for key, entry in trust.members().items()
    ]


def list_devices(
    trust: Trust,
    as_json: bool,
    running: Sequence[Running] | None = None,
    invitations: Sequence[Invitation] | None = None,
) -> None:
    """The devices; with ``running``, also which peers run on each now, and with ``invitations`` by
    what others can still come in."""
    peers: dict[str, list[dict[str, str]]] = {}
    for one in running or ():
        peers.setdefault(one.device, []).append({"id": one.peer, "name": one.name})
    rows = device_rows(trust, running or ())
    for row in rows if running is not None else ():
        row["peers"] = peers.get(str(row["id"]), [])
    if as_json:
        ways = {} if invitations is None else {"open": [_way_in(one) for one in invitations]}
        print_json({"devices": rows} | ways)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("device", "id", "until"):
        table.add_column(column, no_wrap=True)
    if peers:
        table.add_column("peers now", overflow="fold")
    for row in rows:
        mark = " (this one)" if row["this"] else ""
        name, until = Text(clean(str(row["name"])) + mark), row["until"]
        texts = [str(row["id"])[:SHORT_ID], _moment(int(str(until))) if until else ""]
        if peers:
            here = peers.get(str(row["id"]), [])
            texts.append(clean(", ".join(labelled(one["name"], one["id"]) for one in here)))
        table.add_row(name, *(Text(text) for text in texts))
    out.print(table)
    for way in invitations or ():
        more = f" for {way.uses} devices" if way.uses > 1 else ""
        what = f"a join key{more}" if way.id else "a code"
        hint(f"open until {_moment(way.until)}: {what}; `astra-mesh pair --close` closes it")


def _way_in(invitation: Invitation) -> dict[str, object]:
    """For programs; neither code nor key can be told from it."""
    return {
        "type": "join-key" if invitation.id else "code",
        "until": int(invitation.until),
        "uses": invitation.uses,
        "member_s": invitation.member_s or None,
    }


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
