"""The command ``unpair``: shuts devices out of the mesh, and lists those that are in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from astra_mesh.cli.console import clean, err, hint, out, print_json, reporting, run_async
from astra_mesh.cli.options import Json
from astra_mesh.naming import SHORT_ID, labelled

if TYPE_CHECKING:
    from astra_mesh.client.farewell import Farewell
    from astra_mesh.client.reach import Running
    from astra_mesh.mesh.roster import RosterBook
    from astra_mesh.mesh.trust import Trust
    from astra_mesh.wire.messages import DeviceId, RosterEntry

EXAMPLE: Final = "Example:  astra-mesh unpair kitchen"


def unpair(
    device: Annotated[
        str | None,
        typer.Argument(
            help="Its name or the first digits of its id, or those of a peer that runs on it now "
            "(see `pair --list`)."
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
        from astra_mesh.mesh.trust import Trust

        if (device is None) is not leave:
            raise InputError("name the device to shut out, or say --leave")
        trust = Trust.open()
        if device is None:
            _leave(trust, as_json)
            return
        _shut_out(trust, device, as_json)
        list_devices(trust, as_json)
        hint("the peers of the mesh part from it within seconds; others when they meet them")


def _shut_out(trust: Trust, device: str, as_json: bool) -> None:
    from astra_mesh.errors import InputError
    from astra_mesh.mesh.pairing_host import check_may_shut_out

    check_may_shut_out(trust.book, trust.device.id)
    found = trust.book.find(device) or _by_peer(trust, device)
    if len(found) != 1:
        raise InputError(_which(device, found))
    key, entry = found[0]

    def decide(book: RosterBook) -> bool:
        check_may_shut_out(book, trust.device.id)
        if not book.is_member(key):
            return False  # somebody else was faster
        book.shut_out(key)
        return True

    trust.change(decide)
    if not as_json:
        out.print(f"Shut out {clean(labelled(entry.name, key))}.", markup=False)


def _by_peer(trust: Trust, text: str) -> list[tuple[DeviceId, RosterEntry]]:
    """The other devices on which peers with this name run now, or an id that begins so."""
    from astra_mesh.errors import InputError

    running = run_async(running_now(trust))
    named = [one for one in running if one.name == text]
    named = named or [one for one in running if text and one.peer.startswith(text.lower())]
    members = trust.members()
    devices = sorted({one.device for one in named} & set(members))
    if devices == [trust.device.id]:
        raise InputError(
            f"the peer {text!a} runs on this device: stop it, or take the device out of its mesh "
            "with --leave"
        )
    return [(key, members[key]) for key in devices]


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


def _which(device: str, found: list[tuple[DeviceId, RosterEntry]]) -> str:
    if found:
        which = ", ".join(labelled(entry.name, key) for key, entry in found)
        return f"{device!a} fits {len(found)} devices: {which}; give the digits of one"
    return (
        f"no other device of this mesh, and no peer that runs now, is called {device!a}; "
        "`astra-mesh pair --list` lists them"
    )


def device_rows(trust: Trust) -> list[dict[str, object]]:
    """The devices of the mesh, for programs."""
    return [
        {
            "id": key,
            "name": entry.name,
            "this": key == trust.device.id,
            "until": entry.until or None,
            "let_in_by": entry.by,
        }
        for key, entry in trust.members().items()
    ]


def list_devices(trust: Trust, as_json: bool, running: Sequence[Running] | None = None) -> None:
    """The devices; with ``running``, also which peers run on each now."""
    peers: dict[str, list[dict[str, str]]] = {}
    for one in running or ():
        peers.setdefault(one.device, []).append({"id": one.peer, "name": one.name})
    rows = device_rows(trust)
    for row in rows if running is not None else ():
        row["peers"] = peers.get(str(row["id"]), [])
    if as_json:
        print_json({"devices": rows})
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


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
