"""What number formats cost, in words: of an answer, and of the models that are here."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from astra_mesh.cli import ask
from astra_mesh.cli.formats import Format, formats_line
from astra_mesh.cli.peers import model_table
from astra_mesh.cli.report import report_lines
from astra_mesh.errors import PeerLostError
from astra_mesh.naming import Names
from astra_mesh.wire.messages import PeerInfo, Report, Task
from tests.unit.cli.stub import ME, OTHER, StubMesh, plan, report

NAMES = Names({ME: "a", OTHER: "b"})


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ([Format("a", "fp32"), Format("b", "fp32")], ""),
        ([], ""),
        ([Format("a", "int8", 0.00114)], "int8 (KL 0.0011 from fp32)"),
        ([Format("a", "int8", 0.002), Format("b", "int8", 0.35)], "int8 (KL 0.35 from fp32)"),
        ([Format("a", "bf16", 3e-6)], "bf16 (KL below 0.0001 from fp32)"),
        ([Format("a", "int8", 0.0004, "1 - cosine")], "int8 (1 - cosine 0.0004 from fp32)"),
        ([Format("a", "int8", 1e6)], "int8 (KL 1e+06 from fp32)"),
        ([Format("a", "int8")], "int8"),
        (
            [Format("b", "int8", 0.0011), Format("a", "fp32")],
            "int8 (KL 0.0011 from fp32) on b, fp32 on a",
        ),
        (
            [Format("b", "int8", 0.1), Format("a", "fp32"), Format("c", "int8", 0.2)],
            "int8 (KL 0.2 from fp32) on b and c, fp32 on a",
        ),
        ([Format("a", "in\x1bt8", 0.1)], "in t8 (KL 0.1 from fp32)"),
    ],
)
def test_a_figure_is_told_where_there_is_one(found: list[Format], line: str) -> None:
    assert formats_line(found) == line


def here(precision: str = "int8", divergence: float = 0.0011, **change: Any) -> list[PeerInfo]:
    """Both peers, with a model of one text answer or another."""
    found = asyncio.run(StubMesh().peers())
    told = {"precision": precision, "divergence": divergence, "loaded": True} | change
    model = plan([ME]).model
    return [
        replace(one, models=[replace(offer, id=model, **told) for offer in one.models])
        for one in found
    ]


def in_format(*precisions: str) -> Report:
    made = report([OTHER, ME], 0)
    peers = [replace(one, precision=p) for one, p in zip(made.peers, precisions, strict=True)]
    return replace(made, peers=peers)


def computed(made: Report, found: list[PeerInfo]) -> list[str]:
    return [line for line in report_lines(None, made, NAMES, found) if "computed" in line]


def test_a_report_says_what_the_peers_offers_say() -> None:
    made = in_format("int8", "int8")
    assert computed(made, here()) == ["computed in int8 (KL 0.0011 from fp32)"]
    assert computed(made, []) == ["computed in int8"]
    assert computed(made, here("bf16")) == ["computed in int8"]  # it was loaded anew since
    assert computed(made, here(tasks=[Task.EMBED])) == [
        "computed in int8 (1 - cosine 0.0011 from fp32)"
    ]
    mixed = in_format("fp32", "int8")
    assert computed(mixed, here()) == [
        "computed in fp32 on b, int8 (KL 0.0011 from fp32) on a",
    ]
    other_model = [replace(one, models=[]) for one in here()]
    assert computed(made, other_model) == ["computed in int8"]


def shown(found: list[PeerInfo]) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(model_table(found))
    return text.getvalue()


def test_the_table_of_models_says_it_of_those_that_are_loaded() -> None:
    assert "int8 (KL 0.0011 from fp32)" in shown(here())
    assert "computed in" in shown(here())
    for found in (here("fp32", 0.0), here(loaded=False)):
        assert "computed in" not in shown(found)
        assert "int8" not in shown(found)
    one, other = here()
    two = [one, replace(other, models=here("fp32", 0.0)[1].models)]
    assert f"int8 (KL 0.0011 from fp32) on {one.name}, fp32 on {other.name}" in shown(two)


def explained(monkeypatch: pytest.MonkeyPatch, mesh: Any) -> str:
    text = io.StringIO()
    monkeypatch.setattr(ask, "err", Console(file=text, width=200))
    asyncio.run(ask._explain(mesh, None, in_format("int8", "int8"), {"use": "solo"}, False))  # type: ignore[typeddict-item]
    return text.getvalue()


def test_run_asks_the_peers_and_does_without_those_that_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mesh(StubMesh):
        async def peers(self) -> list[PeerInfo]:
            return found

    class Gone(StubMesh):
        async def peers(self) -> list[PeerInfo]:
            raise PeerLostError("gone")

    found = here()
    assert "computed in int8 (KL 0.0011 from fp32)\n" in explained(monkeypatch, Mesh())
    assert "computed in int8\n" in explained(monkeypatch, Gone())
