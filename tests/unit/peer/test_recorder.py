"""The files that a peer writes about its requests."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from astra_mesh.engine.timeline import Mark, Timeline
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.recorder import Recorder
from astra_mesh.wire.messages import RequestId
from tests.unit.peer.fakes import A, exchange_of, layout_for, small_model
from tests.unit.peer.test_exchange import THREE, codes

NUMBER = RequestId(0x2A)


@pytest.fixture
def exchange() -> MeshExchange:
    model = small_model("gpt2")
    return exchange_of(model, layout_for(model, THREE, "generate"), 2)


async def test_one_file_for_each_request(tmp_path: Path, exchange: MeshExchange) -> None:
    recorder = Recorder(tmp_path / "new", A, "attic")
    exchange.timeline = Timeline()
    exchange.take(exchange.peers[0], codes(0, 10))
    await recorder.write(NUMBER, exchange)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["000000000000002a.json"]
    document = json.loads((tmp_path / "new/000000000000002a.json").read_text())
    assert document["request"] == "000000000000002a"
    assert (document["peer"], document["name"]) == (A, "attic")
    assert (document["shard"], document["answering"]) == (2, True)
    assert document["bounds"] == [list(bound) for bound in THREE]
    assert document["peers"] == exchange.peers
    (block,) = document["blocks"]
    assert list(block["parts"]) == ["0"]


async def test_only_whole_parts_have_arrived(exchange: MeshExchange) -> None:
    exchange.timeline = Timeline()
    exchange.take(exchange.peers[0], codes(0, 4))
    assert exchange.timeline.moments == []
    exchange.take(exchange.peers[0], codes(4, 6))
    (moment,) = exchange.timeline.moments
    assert (moment.mark, moment.block, moment.part) == (Mark.ARRIVED, 1, 0)


async def test_without_a_timeline_nothing_is_written(
    exchange: MeshExchange, tmp_path: Path
) -> None:
    await Recorder(tmp_path, A, "attic").write(NUMBER, exchange)
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_cannot_be_made_is_only_logged(
    exchange: MeshExchange, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder(tmp_path / "file" / "folder", A, "attic")
    exchange.timeline = Timeline()
    with caplog.at_level(logging.WARNING):
        await recorder.write(NUMBER, exchange)
    assert "not recorded" in caplog.text
