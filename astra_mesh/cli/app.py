"""All commands put together. Heavy imports happen inside the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from astra_mesh._version import __version__
from astra_mesh.cli import (
    ask,
    demo,
    doctor,
    evaluate,
    learn,
    models,
    pair,
    peer,
    peers,
    service,
    top,
    unpair,
)
from astra_mesh.cli.wording import Commands

app = typer.Typer(
    name="astra-mesh",
    cls=Commands,
    help="One transformer inference, spread over the devices in the room.",
    epilog="Start with:  astra-mesh demo   ·   on each device:  astra-mesh peer",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"astra-mesh {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """One transformer inference, spread over the devices in the room."""


MESH, MODELS = "The mesh", "Models"
app.command("peer", rich_help_panel=MESH, epilog=peer.EXAMPLE)(peer.peer)
app.command("peers", rich_help_panel=MESH, epilog=peers.EXAMPLE)(peers.peers)
app.command("top", rich_help_panel=MESH, epilog=top.EXAMPLE)(top.top)
app.command("pair", rich_help_panel=MESH, epilog=pair.PAIR_EXAMPLE)(pair.pair)
app.command("unpair", rich_help_panel=MESH, epilog=unpair.EXAMPLE)(unpair.unpair)
app.command("demo", rich_help_panel=MESH, epilog=demo.EXAMPLE)(demo.demo)
app.command("doctor", rich_help_panel=MESH, epilog=doctor.DOCTOR_EXAMPLE)(doctor.doctor)
app.command("diagnostics", rich_help_panel=MESH, epilog=doctor.DIAGNOSTICS_EXAMPLE)(
    doctor.diagnostics
)
app.command("run", rich_help_panel="Asking", epilog=ask.RUN_EXAMPLE)(ask.run)
app.command("classify", rich_help_panel="Asking", epilog=ask.CLASSIFY_EXAMPLE)(ask.classify)
app.command("embed", rich_help_panel="Asking", epilog=ask.EMBED_EXAMPLE)(ask.embed)
app.add_typer(service.app, name="service", rich_help_panel=MESH)
app.add_typer(models.app, name="models", rich_help_panel=MODELS)
app.command("fit", rich_help_panel=MODELS, epilog=learn.FIT_EXAMPLE)(learn.fit)
app.command("eval", rich_help_panel=MODELS, epilog=evaluate.EXAMPLE)(evaluate.evaluate)
