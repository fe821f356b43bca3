"""The demonstration: peers on this machine find each other, and answer two real inputs."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.padding import Padding
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
from astra_mesh.cli.options import Json
from astra_mesh.cli.report import report_block, seconds

if TYPE_CHECKING:
    from astra_mesh.cli.demo_inputs import Photo
    from astra_mesh.client import Mesh
    from astra_mesh.client.inputs import UseName
    from astra_mesh.wire.messages import Planned, Report

EXAMPLE: Final = "Example:  astra-mesh demo --photo cat.jpg"
NAMES: Final = ("left", "middle", "right", "fourth", "fifth", "sixth", "seventh", "eighth")
NEW_TOKENS: Final = 48


@dataclass(frozen=True)
class Answered:
    """One answer, from the mesh or from one device."""

    lines: list[str]  # the text, or the labels, for people
    units: list[str]  # what is compared: tokens, or the best label
    planned: Planned | None
    report: Report
    value: Any = None  # for JSON


@dataclass
class Comparison:
    """The answer of the mesh and that of one device to the same input."""

    what: str
    mesh: Answered
    solo: Answered

    @property
    def agreement(self) -> str:
        """How alike the two answers are, in words."""
        pairs = zip(self.mesh.units, self.solo.units, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        longest = max(len(self.mesh.units), len(self.solo.units))
        if same is None and len(self.mesh.units) == len(self.solo.units):
            return "the same label" if longest == 1 else f"the same text, all {longest} tokens"
        if longest == 1:
            return f"another label: {self.solo.units[0]}"
        return f"the first {same or 0} of {longest} tokens are the same; then it goes on as below"


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
    keep_logs: Annotated[bool, typer.Option(help="Keep the folder with the peers' logs.")] = False,
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
        if len(asked.found) < 2:
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
    """SIGTERM ends it as Ctrl-C does: nothing is left running."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await _demonstrate(asked, folder)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def _demonstrate(asked: Demo, folder: Path) -> None:
    from astra_mesh.cli.demo_inputs import IMAGE_MODEL, TEXT_MODEL
    from astra_mesh.cli.demo_peers import demo_peers

    with ExitStack() as stack:
        status = stack.enter_context(err.status("starting", spinner="dots"))
        async with demo_peers(NAMES[: asked.count], folder, status.update) as room:
            peers, meshes, asked.met = room
            _say(asked, f"{len(peers)} peers met ({asked.met}):")
            for peer in peers:
                _say(asked, f"  {peer.name:8} {peer.id[:8]}  process {peer.process.pid}")
            mesh = meshes[-1]
            infos = await mesh.peers()
            own = {peer.id for peer in peers}
            if others := [info.name for info in infos if info.peer not in own]:
                _say(asked, f"  also in this network, and taking part: {', '.join(others)}")
            status.update("every peer loads and measures the two models")
            await ask_text(mesh, TEXT_MODEL, asked.prompt, "all", new_tokens=1)
            await ask_photo(mesh, IMAGE_MODEL, asked.photo.data, "all")
            status.update("asking")
            text = Comparison(
                f"{TEXT_MODEL} continues a text",
                await ask_text(mesh, TEXT_MODEL, asked.prompt, "all"),
                await ask_text(mesh, TEXT_MODEL, asked.prompt, "solo"),
            )
            photo = Comparison(
                f"{IMAGE_MODEL} labels {asked.photo.origin}",
                await ask_photo(mesh, IMAGE_MODEL, asked.photo.data, "all"),
                await ask_photo(mesh, IMAGE_MODEL, asked.photo.data, "solo"),
            )
            status.update("ending the peers")
        status.stop()
    for one in (text, photo):
        asked.found.append(one)
        if not asked.as_json:
            _show(one, asked.photo.truth if one is photo else "")
    if not asked.as_json and len({info.device.host for info in infos}) == 1:
        _show_cores(asked, infos[0].device.cores)


async def ask_text(
    mesh: Mesh, model: str, prompt: str, use: UseName, new_tokens: int = NEW_TOKENS
) -> Answered:
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


# --- for people -----------------------------------------------------------------------------------


def _say(asked: Demo, line: str) -> None:
    if not asked.as_json:
        out.print(Text(clean(line)), soft_wrap=True)


def _show(one: Comparison, truth: str) -> None:
    tokens = f" ({one.mesh.planned.prompt_tokens} tokens)" if one.mesh.planned else ""
    out.print()
    out.print(Text(f"{clean(one.what)}{tokens}", style="bold"), soft_wrap=True)
    _show_lines("the mesh", one.mesh, "green")
    if truth:
        out.print(f"  its class is {truth}", markup=False)
    out.print(Padding(report_block(one.mesh.planned, one.mesh.report), (0, 0, 0, 2)))
    took = seconds(one.solo.report.actual_s)
    out.print(Text(f"  one device: {one.agreement} (took {took})", style="bold"))
    if one.mesh.lines != one.solo.lines:
        _show_lines("", one.solo, "yellow")


def _show_lines(title: str, answered: Answered, style: str) -> None:
    if title:
        out.print(Text(f"  {title}:", style="bold"))
    for line in answered.lines:
        out.print(Text(f"    {clean(line)}", style=style), soft_wrap=True)


def _show_cores(asked: Demo, cores: float) -> None:
    """The mesh cannot win here, and why."""
    pairs = ", ".join(
        f"{seconds(one.mesh.report.actual_s)} beside {seconds(one.solo.report.actual_s)}"
        for one in asked.found
    )
    out.print()
    out.print(
        Text(
            f"All {asked.count} peers share the {cores:g} cores of this one machine, so the mesh "
            f"cannot be faster than one device here ({pairs}): on devices of their own, each peer "
            "would have its cores for itself.",
            style="italic",
        )
    )


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
