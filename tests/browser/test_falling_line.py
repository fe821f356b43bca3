"""A line that falls while a browser takes part in a request: it sends fewer bits, and says so."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from astra_mesh.wire.messages import Late, Options, PeerId, Task, Use
from tests.browser.chrome import Tab
from tests.browser.lending import Line, lend, owners, slow_down, slow_line
from tests.browser.pages import shown
from tests.integration.mesh_fixtures import Reply, client_of
from tests.javascript.test_engine import VENDOR
from tests.timings import patient
from tools.lab import rates

FAST_BPS, SLOW_BPS = 200e6, 1e6
SPARE_BYTES = 100_000  # some blocks' codes at the plan's rate, and few of all
FINISHES_S = 20.0
TRIES = 6
SLOWER = 40.0  # than they are peers think that they are: a tab gets most of the tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not VENDOR.exists(), reason="without the browser runtime: make runtime"),
]


def _bits(reply: Reply, phone: PeerId) -> list[int]:
    """That the browser's links fell and rose to, by its own report."""
    mine = next(one for one in reply.done().report.peers if one.peer == phone)
    return [bits for one in mine.rates.values() for bits in one[1::2]]


async def test_a_line_that_falls_in_a_request_lowers_the_rate(
    tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, SLOWER)
    bundle = rates.make_model(tmp_path)
    picture = (tmp_path / rates.PICTURE).read_bytes()
    (tmp_path / rates.PICTURE).unlink()  # what is left is a folder of models
    line = Line(FAST_BPS)
    async with (
        shown(tmp_path, ["alone"]) as on,
        slow_line(on.server.port, line) as url,
    ):
        phone = await lend(tab, on, bundle.name, url=url)
        async with client_of(on.peers[0]) as client:

            async def answer(late: Late, falls: bool) -> Reply:
                """Until the plan gives the tab so many tokens that the line falls: what was learned
                of the answers before may leave it few."""
                options = Options(use=Use.ALL, codec="vq", rate=rates.BITS, late=late)
                for _ in range(TRIES):
                    line.bps, line.spare_bytes = FAST_BPS, math.inf
                    if falls:
                        line.spare_bytes, line.later_bps = SPARE_BYTES, SLOW_BPS
                    request = client.send(
                        Task.CLASSIFY, bundle.name, image=picture, options=options
                    )
                    reply = await client.reply(request)
                    assert phone in owners(reply)
                    if (line.bps == SLOW_BPS) is falls:
                        return reply
                raise AssertionError("the tab had too few tokens each time")

            await answer(Late.WAIT, falls=False)  # the first one loads
            found = await answer(Late.ADAPT, falls=True)
            fell = _bits(found, phone)
            assert fell
            assert min(fell) < rates.BITS
            assert found.done().report.total_s < patient(FINISHES_S)
            assert any(note.startswith("degraded:") for note in found.done().report.notes)
            # What is not asked to adapt keeps the plan's rate; by then the line is known again.
            await answer(Late.WAIT, falls=False)
            assert not _bits(await answer(Late.WAIT, falls=True), phone)
