"""The command ``peers``: lists those that are here."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from astra_mesh.cli.connecting import alone, opened
from astra_mesh.cli.console import clean, hint, out, print_json, reporting, run_async
from astra_mesh.cli.formats import formats_line, offered
from astra_mesh.cli.options import Connect, Json, Typed
from astra_mesh.naming import SHORT_ID, Names, listed

if TYPE_CHECKING:
    from astra_mesh.wire.messages import ModelId, PeerInfo

EXAMPLE: Final = "Example:  astra-mesh peers --json"
_PASSING: Final = (
    "no peer runs on this machine: {} is this command's own, which looked for the others and is "
    'gone now; "astra-mesh peer" starts one that stays'
)
_LINKS: Final = 20  # lines
_HOLDERS: Final = 3  # of a model that are named
_NAME_WIDTH, _PLACE_WIDTH = 14, 21  # names and addresses up to so long stay in one line
_WIDE: Final = 100  # columns of a terminal that shows systems, too


def peers(connect: Connect = None, peer: Typed = None, as_json: Json = False) -> None:
    """Who is here, with what, and how fast the links are."""
    with reporting(as_json):
        run_async(_list(connect, peer, as_json))


async def _list(connect: str | None, typed: list[str] | None, as_json: bool) -> None:
    async with opened(connect, typed) as mesh:
        found = await mesh.peers()
        hints = [await alone(mesh)] if len(found) == 1 else []
        if mesh.embedded:
            hints.append(_PASSING.format(clean(mesh.peer.name)))
    if as_json:
        print_json({"peers": found})
    else:
        out.print(peer_table(found, out.width))
        out.print()
        for line in link_lines(found):
            out.print(line, soft_wrap=True)
        if any(one.models for one in found):
            out.print(model_table(found))
    for one in hints:
        hint(one)


def peer_table(found: list[PeerInfo], width: int) -> Table:
    """One row for each peer, for a terminal of so many columns."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    names = [clean(one.name + (" (asked)" if one.self else "")) for one in found]
    places = [clean(_place(one, found)) for one in found]
    wide = width >= _WIDE
    table.add_column("name", overflow="fold", no_wrap=_widest(names) <= _NAME_WIDTH)
    table.add_column("id", no_wrap=True)
    table.add_column("address", overflow="fold", no_wrap=_widest(places) <= _PLACE_WIDTH)
    if wide:
        table.add_column("system", overflow="fold")
    for column in ("cores", "round trip", "Mbit/s to", "from"):
        table.add_column(column, justify="right", no_wrap=True)
    for one, name, place in zip(found, names, places, strict=True):
        texts = (
            name,
            one.peer[:SHORT_ID],
            place,
            *([one.device.system] if wide else []),
            f"{one.device.cores:g}",
            "" if one.round_trip_s is None else f"{one.round_trip_s * 1000:.1f} ms",
            _mbits(one.send_bps),
            _mbits(one.receive_bps),
        )
        table.add_row(*(Text(clean(text)) for text in texts))
    return table


def _widest(texts: list[str]) -> int:
    return max(map(len, texts), default=0)


def _place(one: PeerInfo, found: list[PeerInfo]) -> str:
    """Where a peer is: its address, or the peer that a browser tab comes through."""
    if not one.via:
        return one.address
    names = {peer.peer: peer.name for peer in found}
    return f"tab of {names.get(one.via, one.via[:SHORT_ID])}"


def link_lines(found: list[PeerInfo]) -> list[Text]:
    """One line for each link between two others, as these tell of it."""
    names = Names({one.peer: one.name for one in found})
    told = {(one.peer, link.peer): link for one in found for link in one.links}
    others = [one.peer for one in found if not one.self]
    lines = []
    for one, other in itertools.combinations(others, 2):
        there, back = told.get((one, other)), told.get((other, one))
        trips = [link.round_trip_s for link in (there, back) if link and link.round_trip_s]
        if there is None and back is None:
            continue
        about = [
            f"{min(trips) * 1000:.1f} ms" if trips else "",
            f"{_mbits(there.send_bps)} Mbit/s there" if there and there.send_bps else "",
            f"{_mbits(back.send_bps)} Mbit/s back" if back and back.send_bps else "",
        ]
        figures = ", ".join(filter(None, about)) or "not measured yet"
        lines.append(Text(f"{clean(names(one))} - {clean(names(other))}  {figures}", style="dim"))
    if len(lines) > _LINKS:
        lines[_LINKS:] = [Text(f"and {len(lines) - _LINKS} more links: --json", style="dim")]
    return lines


def model_table(found: list[PeerInfo]) -> Table:
    """One row for each model with all its names: what it does, and who holds it; and what those
    that have it loaded compute it in, where that is not fp32.
    """
    from astra_mesh.client.answers import models_of

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("model", "does", "on"):
        table.add_column(column, overflow="fold")
    names: dict[ModelId, list[str]] = {}
    for model in models_of(found):
        names.setdefault(model.id, []).append(model.name)
    formats = {key: formats_line(list(offered(found, key).values())) for key in names}
    if any(formats.values()):
        table.add_column("computed in", overflow="fold")
    for key, called in names.items():
        having = [(one.name, model) for one in found for model in one.models if model.id == key]
        everyone = len(having) == len(found) > 1
        holders = "every peer" if everyone else listed([name for name, _ in having], _HOLDERS)
        tasks = ", ".join(task.value for task in having[0][1].tasks)
        texts = [", ".join(called), tasks, holders]
        if any(formats.values()):
            texts.append(formats[key])
        table.add_row(*(Text(clean(text)) for text in texts))
    return table


def _mbits(bps: float | None) -> str:
    if bps is not None and bps >= 1e10:  # within one machine: as fast as memory
        return ">10000"
    return "" if bps is None else f"{bps / 1e6:.3g}" if bps < 1e9 else f"{bps / 1e6:.0f}"
