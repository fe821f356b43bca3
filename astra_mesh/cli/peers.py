"""Commands about peers: ``peer`` runs one, ``peers`` lists those that are here."""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from astra_mesh.cli.ask import ALONE, opened
from astra_mesh.cli.console import clean, err, hint, out, print_json, reporting, run_async
from astra_mesh.cli.lan import api_config as make_api_config
from astra_mesh.cli.lan import page_addresses
from astra_mesh.cli.options import Connect, Json, Typed

if TYPE_CHECKING:
    from astra_mesh.peer import Peer, PeerConfig
    from astra_mesh.web import ApiConfig
    from astra_mesh.wire.messages import Event, PeerInfo

PEER_EXAMPLE: Final = "Example:  astra-mesh peer --name kitchen --model tiny-gpt2"
PEERS_EXAMPLE: Final = "Example:  astra-mesh peers --json"
SHORT_ID: Final = 8  # hex digits


class LogLevel(enum.Enum):
    """How much is logged to standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Dtype(enum.Enum):
    """Number formats that a peer can compute in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


# --- peer -----------------------------------------------------------------------------------------


def peer(
    name: Annotated[str, typer.Option(help="Name shown to people. Default: the host name.")] = "",
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port to listen on; 0: any free one. Default: 7475, if free."
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Listen on this address only.")
    ] = None,
    peer: Typed = None,
    peers_at: Annotated[
        list[str] | None,
        typer.Option(
            "--peers-at",
            metavar="NAME:PORT",
            help="A name with an address for each peer, as a cluster's headless service has it. "
            "May be repeated.",
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads for computing; 0: the cores it may use.")
    ] = 0,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Number format to compute in. auto: the fastest here that keeps the answers."
        ),
    ] = Dtype.AUTO,
    discovery: Annotated[
        bool, typer.Option("--discovery/--no-discovery", help="Find others by mDNS.")
    ] = True,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Offer this model only. May be repeated. Default: all on this device."),
    ] = None,
    join_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="ASTRA_MESH_JOIN_KEY",
            show_envvar=True,
            help="Join the mesh of the device that made this key (`astra-mesh pair --join-key`).",
        ),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where this peer keeps its identity.", hidden=True)
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write when each step of each request happened, one JSON file per request.",
        ),
    ] = None,
    api: Annotated[
        bool, typer.Option("--api/--no-api", help="Serve the page and the HTTP API.")
    ] = True,
    api_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port of the API; 0: any free one. Default: 7476, if free."
        ),
    ] = None,
    api_token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            envvar="ASTRA_MESH_API_TOKEN",
            show_envvar=True,
            help="Who shows it may use the API from other machines. Default: none may.",
        ),
    ] = None,
    lan: Annotated[
        bool,
        typer.Option(
            "--lan",
            help="Let phones and other devices of the network open the page and use the API: "
            "prints an address that holds the token, which is made once and kept.",
        ),
    ] = False,
    stop_with_stdin: Annotated[
        bool, typer.Option(help="End when standard input is closed.", hidden=True)
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Log to standard error.")] = LogLevel.WARNING,
    as_json: Json = False,
) -> None:
    """Run a peer until Ctrl-C: it finds the others, and takes its share of every request."""
    with reporting(as_json):
        import logging

        from astra_mesh.client.addresses import parse_address

        logging.basicConfig(
            level=log_level.value.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        )
        typed = tuple(parse_address(text) for text in peer or ())
        names = tuple(parse_address(text) for text in peers_at or ())
        with err.status("starting", spinner="dots"):
            from astra_mesh.peer import PeerConfig
        config = PeerConfig(
            name=name,
            port=port,
            listen=listen,
            peers=typed,
            names=names,
            threads=threads,
            precision=dtype.value,
            discovery=discovery,
            state_dir=state_dir,
            models=tuple(model) if model else None,
            record=record,
        )
        api_config = make_api_config(api_port, api_token, lan, state_dir) if api else None
        if join_key:
            from astra_mesh.mesh.codes import read_secret

            read_secret(join_key)  # a mistyped one is an error at once
        run_async(_serve(config, api_config, join_key, as_json, stop_with_stdin))


async def _serve(
    config: PeerConfig,
    api: ApiConfig | None,
    join_key: str | None,
    as_json: bool,
    stop_with_stdin: bool,
) -> None:
    """One peer until SIGINT or SIGTERM (or the end of stdin); then it says goodbye."""
    from astra_mesh.peer import Peer

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if stop_with_stdin:
        loop.add_reader(sys.stdin.fileno(), _read_stdin, stop)
    try:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(
                Peer(config, on_event=lambda event: show_event(event, as_json))
            )
            url = await _serve_api(stack, running, api)
            _introduce(running, url, api, as_json)
            async with _joining(running, join_key):
                await stop.wait()
            hint("leaving")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _serve_api(stack: AsyncExitStack, peer: Peer, config: ApiConfig | None) -> str | None:
    """The address of the API, which ends with ``stack``; None without one."""
    if config is None:
        return None
    from astra_mesh.web import serving

    return (await stack.enter_async_context(serving(peer, config))).url


@asynccontextmanager
async def _joining(peer: Peer, key: str | None) -> AsyncIterator[None]:
    """Meanwhile, with a join key: look for the mesh that it belongs to."""
    if not key or peer.trust is None:
        yield
        return
    from astra_mesh.client.addresses import show_address
    from astra_mesh.client.pairing_search import join_by_key

    at = [show_address(address) for address in peer.config.peers]
    task = asyncio.create_task(join_by_key(peer.trust, key, at), name="joining")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _read_stdin(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def _introduce(peer: Peer, api: str | None, config: ApiConfig | None, as_json: bool) -> None:
    """The first lines: who this is, where, with what."""
    from astra_mesh.client.addresses import show_address
    from astra_mesh.mesh.interfaces import own_addresses

    hosts = [peer.config.listen] if peer.config.listen else [str(ip) for ip in own_addresses()]
    addresses = [show_address((host, peer.port)) for host in hosts]
    models = [offer.name for offer in peer.models.offers()]
    pages = page_addresses(peer, config, api) if config is not None and api is not None else []
    if as_json:
        about = {"name": peer.name, "id": peer.id, "port": peer.port, "addresses": addresses}
        print_json({"type": "started", **about, "models": models, "api": api, "pages": pages})
        return
    title = Text(clean(peer.name), style="bold").append(f"  {peer.id[:SHORT_ID]}", style="dim")
    out.print(title)
    out.print(f"  at      {', '.join(addresses)}", markup=False, soft_wrap=True)
    out.print(f"  models  {', '.join(models) or 'none'}", markup=False, soft_wrap=True)
    if api is not None:
        out.print(f"  API     {api}", markup=False, soft_wrap=True)
    for page in pages:
        out.print(f"  page    {page}", markup=False, soft_wrap=True)
    out.print("  Ctrl-C ends it.", style="dim")


def show_event(event: Event, as_json: bool) -> None:
    """One line for something that happened."""
    if as_json:
        print_json({"type": "event", "event": event})
        return
    if event.kind == "unpaired-found":
        hint(f"{clean(event.name)} is near and not paired with this device: astra-mesh pair")
        return
    style = {"peer-joined": "green", "peer-left": "yellow"}.get(event.kind, "cyan")
    line = Text(event.kind.replace("-", " "), style=style)
    if event.name:
        line.append(f"  {clean(event.name)} {event.peer[:SHORT_ID]}", style="default")
    if event.text:
        line.append(f"  {clean(event.text)}", style="dim")
    out.print(line, soft_wrap=True)


# --- peers ----------------------------------------------------------------------------------------


def peers(connect: Connect = None, peer: Typed = None, as_json: Json = False) -> None:
    """Who is here, with what, and how fast the links are."""
    with reporting(as_json):
        run_async(_list(connect, peer, as_json))


async def _list(connect: str | None, typed: list[str] | None, as_json: bool) -> None:
    async with opened(connect, typed) as mesh:
        found = await mesh.peers()
    if as_json:
        print_json({"peers": found})
    else:
        out.print(peer_table(found))
        out.print()
        for line in model_lines(found):
            out.print(line, soft_wrap=True)
    if len(found) == 1:
        hint(ALONE)


def peer_table(found: list[PeerInfo]) -> Table:
    """One row for each peer."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("name", overflow="fold")
    for column in ("id", "address", "system"):
        table.add_column(column, no_wrap=True)
    for column in ("cores", "round trip", "Mbit/s to", "from"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        texts = (
            one.name + (" (asked)" if one.self else ""),
            one.peer[:SHORT_ID],
            _place(one, found),
            one.device.system,
            f"{one.device.cores:g}",
            "" if one.round_trip_s is None else f"{one.round_trip_s * 1000:.1f} ms",
            _mbits(one.send_bps),
            _mbits(one.receive_bps),
        )
        table.add_row(*(Text(clean(text)) for text in texts))
    return table


def _place(one: PeerInfo, found: list[PeerInfo]) -> str:
    """Where a peer is: its address, or the peer that a browser tab comes through."""
    if not one.via:
        return one.address
    names = {peer.peer: peer.name for peer in found}
    return f"tab of {names.get(one.via, one.via[:SHORT_ID])}"


def model_lines(found: list[PeerInfo]) -> list[Text]:
    """One line for each model: what it does, and who holds it."""
    from astra_mesh.client.answers import models_of

    lines = []
    for model in models_of(found):
        everyone = len(model.peers) == len(found)
        holders = "every peer" if everyone and len(found) > 1 else ", ".join(model.peers)
        tasks = "/".join(task.value for task in model.tasks)
        lines.append(Text(f"{clean(model.name)}  ({tasks})  on {clean(holders)}"))
    return lines


def _mbits(bps: float | None) -> str:
    return "" if bps is None else f"{bps / 1e6:.3g}" if bps < 1e9 else f"{bps / 1e6:.0f}"
