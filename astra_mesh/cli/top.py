"""``top``: the mesh as it changes, peers with their links, and what happened last."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from astra_mesh.cli.connecting import LOOKING, opened
from astra_mesh.cli.console import clean, out, print_json, reporting, run_async
from astra_mesh.cli.options import Connect, Json, Typed

if TYPE_CHECKING:
    from astra_mesh.client import Mesh
    from astra_mesh.wire.messages import Event, PeerInfo

EXAMPLE: Final = "Examples:  astra-mesh top   ·   astra-mesh top --json -n 1"
_EVENTS: Final = 12  # lines of what happened last


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
    events: deque[tuple[float, Event]] = deque(maxlen=_EVENTS)
    with _screen(events, as_json) as show:
        async with opened(connect, typed, silent=True) as mesh, asyncio.TaskGroup() as group:
            listening = group.create_task(_listen(mesh, events, as_json))
            try:
                await _repeat(mesh, interval, count, show)
            finally:
                listening.cancel()


@contextmanager
def _screen(
    events: deque[tuple[float, Event]], as_json: bool
) -> Iterator[Callable[[list[PeerInfo]], None]]:
    """Where peers are shown. The first frame is there before anything is looked for."""
    if as_json:
        yield lambda found: print_json({"peers": found})
        return
    with Live(Text(f"{LOOKING} …", style="dim"), console=out, auto_refresh=False) as live:
        yield lambda found: live.update(picture(found, events), refresh=True)


async def _listen(mesh: Mesh, events: deque[tuple[float, Event]], as_json: bool) -> None:
    async for event in mesh.events():
        events.append((time.time(), event))
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


def picture(found: list[PeerInfo], events: deque[tuple[float, Event]]) -> Group:
    """One screen."""
    from astra_mesh.cli.peers import link_lines, model_lines, peer_table

    parts: list[RenderableType] = [peer_table(found, out.width), Text(), *link_lines(found)]
    parts += model_lines(found)
    if events:
        parts += [Text(), Text("what happened", style="bold")]
    for at, event in events:
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        line = Text(f"{clock}  ", style="dim").append(event.kind.replace("-", " "), style="cyan")
        parts.append(line.append(f"  {clean(event.name)} {clean(event.text)}", style="default"))
    return Group(*parts)
