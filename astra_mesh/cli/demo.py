"""The demonstration: peers on this machine find each other, and answer two real inputs."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
)
from astra_mesh.cli.demo_show import Answered, Comparison, show_comparison, show_cores
from astra_mesh.cli.options import Json
from astra_mesh.cli.signals import ENDING, on_signals
from astra_mesh.errors import AstraMeshError

if TYPE_CHECKING:
    from astra_mesh.cli.demo_inputs import Photo
    from astra_mesh.cli.demo_peers import DemoPeer
    from astra_mesh.client import Mesh
    from astra_mesh.client.inputs import UseName
    from astra_mesh.wire.messages import PeerInfo

EXAMPLE: Final = "Example:  astra-mesh demo --photo cat.jpg"
NAMES: Final = ("left", "middle", "right", "fourth", "fifth", "sixth", "seventh", "eighth")
NEW_TOKENS: Final = 48


@dataclass
class Demo:
    """What was asked for, and what came of it."""

    count: int
    photo: Photo
    prompt: str
    as_json: bool
    met: str = ""
    found: list[Comparison] = field(default_factory=list)


def demo(
    peers: Annotated[int, typer.Option(min=2, max=len(NAMES), help="How many peers.")] = 3,
    photo: Annotated[Path | None, typer.Option(help="A picture of your own.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A text of your own to continue.")] = None,
    keep_logs: Annotated[
        bool, typer.Option("--keep-logs", help="Keep the folder with the peers' logs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start peers on this machine, let them find each other, and ask them a text and a picture."""
    with reporting(as_json):
        from astra_mesh.bundle import find_bundle
        from astra_mesh.cli.demo_inputs import IMAGE_MODEL, PROMPT, TEXT_MODEL, choose_photo

        for name in (TEXT_MODEL, IMAGE_MODEL):
            find_bundle(name)
        asked = Demo(peers, choose_photo(photo), prompt or PROMPT, as_json)
        began = time.monotonic()
        with _folder(keep_logs) as folder:
            run_async(_with_signals(asked, folder))
        if as_json:
            print_json(_document(asked))
        else:
            hint(f"nothing is left running; it took {time.monotonic() - began:.0f} s")
        if len(asked.found) < 2 or any(one.mesh.shards < 2 for one in asked.found):
            raise typer.Exit(FAILED_STATUS)


@contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    """A temporary folder."""
    path = Path(tempfile.mkdtemp(prefix="astra-mesh-demo-"))
    try:
        yield path
    finally:
        if keep:
            hint(f"logs of the peers: {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)


async def _with_signals(asked: Demo, folder: Path) -> None:
    """They end it as Ctrl-C does: nothing is left running."""
    task = asyncio.current_task()
    assert task is not None
    with on_signals(task.cancel, *ENDING):
        await _demonstrate(asked, folder)


async def _demonstrate(asked: Demo, folder: Path) -> None:
    from astra_mesh.cli.demo_peers import demo_peers

    with err.status("starting", spinner="dots") as status:
        async with demo_peers(NAMES[: asked.count], folder, status.update) as room:
            peers, meshes, asked.met = room
            with _explaining(peers):
                infos = await meshes[-1].peers()
                _introduce(asked, peers, infos)
                status.update("every peer loads and measures the two models")
                await _ask_all(meshes[-1], asked, warm_up=True)
                status.update("asking")
                asked.found = await _ask_all(meshes[-1], asked)
            status.update("ending the peers")
    if asked.as_json:
        return
    for one, truth in zip(asked.found, ("", asked.photo.truth), strict=True):
        show_comparison(one, truth)
    if len({info.device.host for info in infos}) == 1:
        show_cores(asked.found, len(infos), infos[0].device.cores)


def _introduce(asked: Demo, peers: list[DemoPeer], infos: list[PeerInfo]) -> None:
    """Who met, and how."""
    if asked.as_json:
        return
    own = {peer.id for peer in peers}
    lines = [f"{len(peers)} peers met ({asked.met}):"]
    lines += [f"  {peer.name:8} {peer.id[:8]}  process {peer.process.pid}" for peer in peers]
    if others := [info.name for info in infos if info.peer not in own]:
        lines.append(f"  also in this network, and taking part: {', '.join(others)}")
    out.print(Text(clean("\n".join(lines))), soft_wrap=True)


async def _ask_all(mesh: Mesh, asked: Demo, warm_up: bool = False) -> list[Comparison]:
    """Both inputs, each asked of the whole mesh and of one device; one token to warm up."""
    from astra_mesh.cli.demo_inputs import IMAGE_MODEL, TEXT_MODEL

    count, photo = 1 if warm_up else NEW_TOKENS, asked.photo
    return [
        Comparison(
            f"{TEXT_MODEL} continues a text",
            await ask_text(mesh, TEXT_MODEL, asked.prompt, "all", count),
            await ask_text(mesh, TEXT_MODEL, asked.prompt, "solo", count),
        ),
        Comparison(
            f"{IMAGE_MODEL} labels {photo.origin}",
            await ask_photo(mesh, IMAGE_MODEL, photo.data, "all"),
            await ask_photo(mesh, IMAGE_MODEL, photo.data, "solo"),
        ),
    ]


async def ask_text(mesh: Mesh, model: str, prompt: str, use: UseName, new_tokens: int) -> Answered:
    """The continuation of a text."""
    async with mesh.generate(model, prompt, max_new_tokens=new_tokens, use=use) as generation:
        tokens = [token async for token in generation]
    assert generation.report is not None
    return Answered(
        generation.text.strip().splitlines(),
        [str(token.id) for token in tokens],
        generation.planned,
        generation.report,
        generation.text,
    )


async def ask_photo(mesh: Mesh, model: str, photo: bytes, use: UseName) -> Answered:
    """The labels of a picture."""
    answer = await mesh.classify(model, photo, top=3, use=use)
    lines = [f"{one.probability:6.1%}  {one.label}" for one in answer.labels]
    best = [answer.labels[0].label]
    return Answered(lines, best, answer.planned, answer.report, answer.labels)


@contextmanager
def _explaining(peers: list[DemoPeer]) -> Iterator[None]:
    """After an error, the end of what each peer logged."""
    try:
        yield
    except AstraMeshError:
        for peer in peers:
            if said := peer.log():
                hint(f"{peer.name} said: {said}")
        raise


def _document(asked: Demo) -> dict[str, Any]:
    return {
        "met": asked.met,
        "answers": [
            {
                "what": one.what,
                "same": one.mesh.units == one.solo.units,
                "mesh": {"answer": one.mesh.value, "report": one.mesh.report},
                "one_device": {"answer": one.solo.value, "report": one.solo.report},
            }
            for one in asked.found
        ],
    }
