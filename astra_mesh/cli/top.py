"""``top``: the mesh as it changes, peers with their links, and what happened last."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from astra_mesh.cli.connecting import LOOKING, opened
from astra_mesh.cli.console import clean, out, print_json, reporting, run_async
from astra_mesh.cli.options import Connect, Json, Typed

if TYPE_CHECKING:
    from astra_mesh.client import Mesh
    from astra_mesh.wire.messages import Event, PeerInfo, RequestNews

EXAMPLE: Final = "Examples:  astra-mesh top   ·   astra-mesh top --json -n 1"
_EVENTS: Final = 12  # lines of what happened last
_REQUESTS: Final = 8  # of the last requests


def top(
    interval: Annotated[
        float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    count: Annotated[
        int, typer.Option("--count", "-n", min=0, help="End after so many looks; 0: at Ctrl-C.")
    ] = 0,
    connect: Connect = None,
    peer: Typed = None,
    as_json: Json = False,
) -> None:
    """Watch the mesh: peers, links, and requests of the peer that is asked."""
    with reporting(as_json):
        run_async(_watch(interval, count, connect, peer, as_json))


async def _watch(
    interval: float, count: int, connect: str | None, typed: list[str] | None, as_json: bool
) -> None:
    happened = Happened()
    with _screen(happened, as_json) as show:
        async with opened(connect, typed, silent=True) as mesh, asyncio.TaskGroup() as group:
            listening = group.create_task(_listen(mesh, happened, as_json))
            try:
                await _repeat(mesh, interval, count, show)
            finally:
                listening.cancel()


class Happened:
    """What came since the first look: the last events, and how the last requests stand.

    Attributes:
        events: Those that are about no request, each with its time.
        requests: By their key, the oldest first, each with the time of its last news.
    """

    def __init__(self) -> None:
        self.events: deque[tuple[float, Event]] = deque(maxlen=_EVENTS)
        self.requests: OrderedDict[int, tuple[float, RequestNews]] = OrderedDict()

    def take(self, event: Event) -> None:
        """It came now. Of the requests those that run are kept rather than those that are over."""
        if event.about is None:
            self.events.append((time.time(), event))
            return
        self.requests[event.about.key] = (time.time(), event.about)
        while len(self.requests) > _REQUESTS:
            over = (key for key, (_, about) in self.requests.items() if about.outcome)
            del self.requests[next(over, next(iter(self.requests)))]


@contextmanager
def _screen(happened: Happened, as_json: bool) -> Iterator[Callable[[list[PeerInfo]], None]]:
    """Where peers are shown. The first frame is there before anything is looked for."""
    if as_json:
        yield lambda found: print_json({"peers": found})
        return
    with Live(Text(f"{LOOKING} …", style="dim"), console=out, auto_refresh=False) as live:
        yield lambda found: live.update(picture(found, happened), refresh=True)


async def _listen(mesh: Mesh, happened: Happened, as_json: bool) -> None:
    async for event in mesh.events():
        happened.take(event)
        if as_json:
            print_json({"event": event})


async def _repeat(
    mesh: Mesh, interval: float, count: int, show: Callable[[list[PeerInfo]], None]
) -> None:
    looked = 0
    while True:
        show(await mesh.peers())
        looked += 1
        if looked == count:
            return
        await asyncio.sleep(interval)


def picture(found: list[PeerInfo], happened: Happened) -> Group:
    """One screen."""
    from astra_mesh.cli.peers import link_lines, model_table, peer_table

    parts: list[RenderableType] = [peer_table(found, out.width), Text(), *link_lines(found)]
    if any(one.models for one in found):
        parts.append(model_table(found))
    if happened.requests:
        parts += [Text(), Text("requests", style="bold"), _requests(happened)]
    if happened.events:
        parts += [Text(), Text("what happened", style="bold")]
    for at, event in happened.events:
        line = Text(f"{_clock(at)}  ", style="dim")
        line.append(event.kind.replace("-", " "), style="cyan")
        parts.append(line.append(f"  {clean(event.name)} {clean(event.text)}", style="default"))
    return Group(*parts)


def _requests(happened: Happened) -> Table:
    """One row for each, when it began and how it stands, and one for each note."""
    from astra_mesh.cli.report import request_line

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for at, about in happened.requests.values():
        later_s = 0.0 if about.outcome else time.time() - at
        running = "" if about.outcome else "cyan"
        table.add_row(_clock(at - about.took_s), Text(request_line(about, later_s), style=running))
        for note in about.notes:
            table.add_row("", Text(f"note: {clean(note)}", style="dim"))
    return table


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
