"""Commands for when something does not work: ``doctor`` looks, ``diagnostics`` writes it down."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from astra_mesh.cli.console import (
    FAILED_STATUS,
    clean,
    err,
    hint,
    out,
    print_json,
    reporting,
    run_async,
    to_plain,
)
from astra_mesh.cli.options import Json, check_output
from astra_mesh.errors import AstraMeshError, InputError

if TYPE_CHECKING:
    from astra_mesh.client.checks import Finding

DOCTOR_EXAMPLE: Final = "Example:  astra-mesh doctor"
DIAGNOSTICS_EXAMPLE: Final = "Example:  astra-mesh diagnostics problem.zip"
_MARKS: Final = {"fine": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "red")}


def doctor(
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Look into this state folder of peers too.", hidden=True),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine, its network, its keys, and whether paired devices answer."""
    with reporting(as_json):
        found = run_async(_examine(quiet=as_json, state=state_dir))
        if as_json:
            print_json({"checks": found})
        if any(one.level.value == "bad" for one in found):
            raise typer.Exit(FAILED_STATUS)


def diagnostics(
    path: Annotated[
        Path | None, typer.Argument(help="Of the archive. Default: a name with the time, here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an archive that others may see: no names of people and devices, addresses, keys or
    prompts are in it; names of models are.
    """
    with reporting(as_json):
        from astra_mesh.client.diagnostics import write_archive

        path = path or Path(time.strftime("astra-mesh-%Y%m%d-%H%M%S.zip"))
        check_output(path)
        if path.exists():
            raise InputError(f"{path} exists already: name another file, or delete it")
        found = run_async(_examine(quiet=True))
        peers, names = run_async(_mesh())
        try:
            files = write_archive(path, found, peers, names)
        except OSError as error:
            raise AstraMeshError(f"{path} cannot be written: {error.strerror or error}") from None
        if as_json:
            print_json({"path": str(path), "files": files})
            return
        out.print(f"{path}: {', '.join(files)}", markup=False, soft_wrap=True)
        hint("look into it before you pass it on")


async def _examine(quiet: bool, state: Path | None = None) -> list[Finding]:
    from astra_mesh.client.checks import examine

    def tell(finding: Finding) -> None:
        if quiet:
            return
        mark, style = _MARKS[finding.level.value]
        line = Text(mark, style=style).append(f"  {finding.name}: ", style="bold")
        out.print(line.append(clean(finding.text), style="default"), soft_wrap=True)

    with err.status("examining", spinner="dots"):
        return await examine(tell, state)


async def _mesh() -> tuple[Any, list[str]]:
    """What the newest peer of this machine lists, and all names that may be in what is found."""
    from astra_mesh.client import Mesh
    from astra_mesh.mesh.trust import Trust
    from astra_mesh.peer.local import local_peers

    names: list[str] = []
    with suppress(AstraMeshError):  # the findings say why
        trust = await asyncio.to_thread(Trust.open)
        names = [entry.name for entry in trust.members().values()]
    running = await asyncio.to_thread(local_peers)
    names += [peer.name for peer in running]
    listed: Any = None
    for one in running:
        try:
            async with Mesh(one.address) as mesh:
                peers = await mesh.peers()
        except AstraMeshError as error:
            listed = {"error": error.message}
            continue
        listed = to_plain(peers)
        names += [peer.name for peer in peers]
    return listed, names
