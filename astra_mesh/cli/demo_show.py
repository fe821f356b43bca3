"""What the demonstration prints for each input: the mesh's answer beside one device's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.text import Text

from astra_mesh.cli.console import clean, out
from astra_mesh.cli.report import report_block, seconds

if TYPE_CHECKING:
    from astra_mesh.wire.messages import Planned, Report


@dataclass(frozen=True)
class Answered:
    """One answer, from the mesh or from one device."""

    lines: list[str]  # the text, or the labels, for people
    units: list[str]  # what is compared: tokens, or the best label
    planned: Planned | None
    report: Report
    value: Any = None  # for JSON

    @property
    def shards(self) -> int:
        """How many peers took part."""
        return len(self.report.plan.shards)


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


def show_comparison(one: Comparison, truth: str) -> None:
    """Both answers, what the mesh's cost, and how alike they are."""
    tokens = f" ({one.mesh.planned.prompt_tokens} tokens)" if one.mesh.planned else ""
    out.print()
    out.print(Text(f"{clean(one.what)}{tokens}", style="bold"), soft_wrap=True)
    _show_lines("the mesh", one.mesh, "green")
    if truth:
        out.print(f"  its class is {truth}", markup=False)
    out.print(Padding(report_block(one.mesh.planned, one.mesh.report), (0, 0, 0, 2)))
    if one.mesh.shards < 2:
        out.print(Text("  only one peer took part; the plan says why", style="bold red"))
    took = seconds(one.solo.report.actual_s)
    out.print(Text(f"  one device: {one.agreement} (took {took})", style="bold"))
    if one.mesh.lines != one.solo.lines:
        _show_lines("", one.solo, "yellow")


def _show_lines(title: str, answered: Answered, style: str) -> None:
    if title:
        out.print(Text(f"  {title}:", style="bold"))
    for line in answered.lines:
        out.print(Text(f"    {clean(line)}", style=style), soft_wrap=True)


def show_cores(found: Sequence[Comparison], count: int, cores: float) -> None:
    """The mesh cannot win here, and why."""
    pairs = ", ".join(
        f"{seconds(one.mesh.report.actual_s)} beside {seconds(one.solo.report.actual_s)}"
        for one in found
    )
    out.print()
    out.print(
        Text(
            f"All {count} peers share the {cores:g} cores of this one machine, so the mesh "
            f"cannot be faster than one device here ({pairs}): on devices of their own, each peer "
            "would have its cores for itself.",
            style="italic",
        )
    )
