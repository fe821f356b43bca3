"""The command ``peer``: runs one."""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from astra_mesh.cli.console import (
    clean,
    drop_output,
    err,
    hint,
    out,
    print_json,
    print_qr,
    reporting,
    run_async,
)
from astra_mesh.cli.lan import api_addresses, check_api, closed_to_others, page_addresses
from astra_mesh.cli.lan import api_config as make_api_config
from astra_mesh.cli.options import STDIN, Json, Typed, check_memory, first_line
from astra_mesh.cli.signals import ENDING, on_signals
from astra_mesh.naming import SHORT_ID

if TYPE_CHECKING:
    from astra_mesh.peer import Peer, PeerConfig
    from astra_mesh.web import ApiConfig
    from astra_mesh.wire.messages import Event

EXAMPLE: Final = "Example:  astra-mesh peer --name kitchen --model tiny-gpt2"


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


def _port(of: str, usual: int) -> Any:
    text = f"{of}; 0: any free one. Default: {usual}, if free."
    return typer.Option(min=0, max=65535, metavar="PORT", help=text)


def peer(
    context: typer.Context,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name shown to people. Default: the host name.")
    ] = "",
    port: Annotated[int | None, _port("Port to listen on", 7475)] = None,
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
        int,
        typer.Option(min=0, metavar="N", help="Threads for computing; 0: the cores it may use."),
    ] = 0,
    dtype: Annotated[
        Dtype,
        typer.Option(
            metavar="FORMAT",
            help="Number format to compute in: fp32, bf16, fp16, int8, or auto, the fastest here "
            "that keeps the answers.",
        ),
    ] = Dtype.AUTO,
    discovery: Annotated[
        bool, typer.Option("--discovery/--no-discovery", help="Find others by mDNS.")
    ] = True,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Offer this model only. May be repeated. Default: all on this device.",
        ),
    ] = None,
    join_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="ASTRA_MESH_JOIN_KEY",
            show_envvar=True,
            help="Join the mesh of the device that made this key (`astra-mesh pair --join-key`). "
            "Others on this machine see it in the list of processes: rather use the variable or "
            "--join-key-file.",
        ),
    ] = None,
    join_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A file that holds such a key, for this user only; -: stdin."
        ),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where this peer keeps its identity.", hidden=True)
    ] = None,
    spot_check: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Compute another peer's part once more in this share of the requests, and leave "
            "out who sent something else: 0.05 is one in 20.",
        ),
    ] = 0.0,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write when each step of each request happened, one JSON file per request.",
        ),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch/--no-fetch",
            help="Get codebooks from other peers for models of this user that have none.",
        ),
    ] = True,
    preload: Annotated[
        bool,
        typer.Option(
            "--preload/--no-preload",
            help="Load models before somebody asks, while there is nothing to do and half of the "
            "free memory stays free.",
        ),
    ] = True,
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory",
            help="Take less memory and more time: codes are decoded without tables, and models "
            "are loaded only when somebody asks.",
        ),
    ] = False,
    pulse: Annotated[
        bool,
        typer.Option(
            "--pulse/--no-pulse",
            help="Look every 20 s how fast this device is now, while there is nothing to do, and "
            "tell the others.",
        ),
    ] = True,
    api: Annotated[
        bool, typer.Option("--api/--no-api", help="Serve the page and the HTTP API.")
    ] = True,
    api_port: Annotated[int | None, _port("Port of the API", 7476)] = None,
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
    log_level: Annotated[
        LogLevel,
        typer.Option(metavar="LEVEL", help="Log to standard error: debug, info, warning or error."),
    ] = LogLevel.WARNING,
    as_json: Json = False,
) -> None:
    """Run a peer until Ctrl-C: it finds the others, and takes its share of every request."""
    with reporting(as_json):
        check_api(context)
        check_memory(context)
        import logging

        from astra_mesh.client.addresses import parse_address
        from astra_mesh.memory import share_one_heap, take_little

        share_one_heap()
        if low_memory:
            take_little()
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
            spot_check=spot_check,
            preload=preload,
            low_memory=low_memory,
            pulse=pulse,
            record=record,
        )
        api_config = make_api_config(api_port, api_token, lan, state_dir) if api else None
        join_key = join_key_of(join_key, join_key_file, stop_with_stdin)
        if join_key:
            from astra_mesh.mesh.codes import read_key

            read_key(join_key)  # a mistyped one is an error at once
        run_async(_serve(config, api_config, join_key, fetch, as_json, stop_with_stdin))


def join_key_of(key: str | None, file: Path | None, stdin_ends: bool) -> str | None:
    """The key that was given, or that a file holds.

    Raises:
        InputError: Both were given, or the file holds none.
    """
    from astra_mesh.errors import InputError

    if file is None:
        return key
    if key:
        raise InputError(
            "a join key was given by --join-key or ASTRA_MESH_JOIN_KEY and by --join-key-file; "
            "one of them is enough"
        )
    if str(file) == STDIN and stdin_ends:
        raise InputError("--join-key-file - does not go with --stop-with-stdin")
    key = first_line(file, "--join-key-file")
    if str(file) != STDIN:
        _warn_of_readers(file)
    return key


def _warn_of_readers(file: Path) -> None:
    """It is no file of this program's own, so its mode is left as it is. A group may be meant."""
    import logging

    with suppress(OSError):
        mode = file.stat().st_mode
        if os.name == "posix" and stat.S_ISREG(mode) and mode & stat.S_IROTH:
            logging.getLogger(__name__).warning(
                "other users can read the join key in %s (mode %04o): `chmod 600` it",
                file,
                stat.S_IMODE(mode),
            )


async def _serve(
    config: PeerConfig,
    api: ApiConfig | None,
    join_key: str | None,
    fetch: bool,
    as_json: bool,
    stop_with_stdin: bool,
) -> None:
    """One peer until a signal ends it (or the end of stdin); then it says goodbye."""
    from astra_mesh.memory import settle
    from astra_mesh.peer import Peer

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def tell(event: Event) -> None:
        if not (join_key and _is_of_whom_it_joins(running, event)):
            _tell(event, as_json)

    if stop_with_stdin:
        loop.add_reader(sys.stdin.fileno(), _read_stdin, stop)
    with on_signals(stop.set, signal.SIGINT, *ENDING):
        async with AsyncExitStack() as stack:
            running = Peer(config, on_event=tell)
            await stack.enter_async_context(running)
            url = await _serve_api(stack, running, api)
            _introduce(running, url, api, as_json)
            settle()
            async with _joining(running, join_key), _fetching(running if fetch else None):
                await stop.wait()
            hint("leaving")


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
    from astra_mesh.client.pairing_search import join_by_key
    from astra_mesh.mesh.connect import show_address

    at = [show_address(address) for address in peer.config.peers]
    async with _meanwhile(join_by_key(peer.trust, key, at, peer.config.names)):
        yield


@asynccontextmanager
async def _fetching(peer: Peer | None) -> AsyncIterator[None]:
    """Meanwhile get codebooks that models of this peer lack."""
    if peer is None:
        yield
        return
    from astra_mesh.client.keeping import keep_codebooks

    async with _meanwhile(keep_codebooks(peer)):
        yield


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """It ends with the ``async with``."""
    task = asyncio.create_task(work)
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
    from astra_mesh.mesh.connect import show_address
    from astra_mesh.peer.places import own_hosts
    from astra_mesh.wire.messages import names_of

    listen = peer.config.listen or ""
    addresses = [show_address((host, peer.port)) for host in own_hosts(listen)]
    models = [name for offer in peer.models.offers() for name in names_of(offer)]
    apis, pages = [], []
    if config is not None and api is not None:
        apis, pages = api_addresses(peer, config, api), page_addresses(peer, config, api)
    if as_json:
        about = {"name": peer.name, "id": peer.id, "port": peer.port, "addresses": addresses}
        print_json(
            {
                "type": "started",
                "pid": os.getpid(),
                **about,
                "models": models,
                "api": api,
                "apis": apis,
                "pages": pages,
            }
        )
        return
    title = Text(clean(peer.name), style="bold").append(f"  {peer.id[:SHORT_ID]}", style="dim")
    out.print(title)
    out.print(f"  at      {', '.join(addresses)}", markup=False, soft_wrap=True)
    out.print(_beside("  models  ", ", ".join(models) or "none"))
    if apis:
        out.print(f"  API     {', '.join(apis)}", markup=False, soft_wrap=True)
    for page in pages:
        out.print(f"  page    {page}", markup=False, soft_wrap=True)
    if pages and config is not None and config.token is not None and out.is_terminal:
        out.print("  scanned by a phone, this opens the page:", style="dim")
        print_qr(pages[0])
    if config is not None and (why := closed_to_others(peer, config)):
        hint(why)
    out.print("  Ctrl-C ends it.", style="dim")


def _is_of_whom_it_joins(peer: Peer, event: Event) -> bool:
    """Whether somebody near is a stranger only because this peer, which has a join key, has not
    joined yet. Whoever still is one afterwards is told then.
    """
    trust = peer.trust
    return event.kind == "unpaired-found" and trust is not None and trust.book.alone


def _tell(event: Event, as_json: bool) -> None:
    """Show an event; a peer whose output nobody reads any more goes on without a word."""
    try:
        show_event(event, as_json)
    except BrokenPipeError:
        drop_output()


def _beside(label: str, text: str) -> Table:
    """A long text in as many lines as it needs, beside its label."""
    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(label, Text(clean(text)))
    return grid


def show_event(event: Event, as_json: bool) -> None:
    """One line for something that happened."""
    if event.kind == "request-news":
        return  # for who looks on: the end says it again
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
    text = event.text
    if event.about is not None and event.about.outcome:
        from astra_mesh.cli.report import request_line

        text = "; ".join([request_line(event.about), *event.about.notes])
    if text:
        line.append(f"  {clean(text)}", style="dim")
    out.print(line, soft_wrap=True)
