"""What Python's shards compute for a plan, written for JavaScript to repeat."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_mesh.browser.files import make_files
from astra_mesh.engine.shard import Coded, ShardRun
from astra_mesh.families import Model, ModelInput
from astra_mesh.plan.layout import Layout
from astra_mesh.quant.codecs import PlainCodec, VectorCodec
from astra_mesh.wire.messages import CodebookId

Packed = dict[int, list[bytes]]  # by receiver
Rates = dict[tuple[int, int, int], int]  # stages by block, sender and receiver


@dataclass
class Case:
    """A plan, and what it gives. ``missing``: (block, source) whose codes do not come; ``rates``:
    where they are not the plan's."""

    model: Model
    folder: Path
    layout: Layout
    codec: VectorCodec | PlainCodec
    inputs: ModelInput
    missing: Sequence[tuple[int, int]] = ()
    rates: Rates = field(default_factory=dict)
    sent: list[list[Packed]] = field(default_factory=list)  # by block and shard
    pooled: list[tuple[Tensor, float]] = field(default_factory=list)

    @torch.inference_mode()
    def run(self) -> None:
        """As :func:`astra_mesh.engine.reference.run_plan`, noting what is sent."""
        layout = self.layout
        runs = [
            ShardRun(self.model, layout, shard, self.codec, self.inputs)
            for shard in range(len(layout.bounds))
        ]
        for block in range(layout.blocks):
            coded = [run.encode(block, self._stages(block, run.shard)) for run in runs]
            self.sent.append([self._packed(one) for one in coded])
            for run in runs:
                run.attend_local(block)
                for source in layout.sources(run.shard, block):
                    if block >= layout.first_block:
                        lost = (block, source) in self.missing
                        run.attend_remote(block, source, () if lost else coded[source][run.shard])
            for run in runs:
                run.finish(block)
        self.pooled = [run.pooled() for run in runs]

    def _stages(self, block: int, shard: int) -> dict[int, int]:
        return {
            receiver: stages
            for (at, sender, receiver), stages in self.rates.items()
            if (at, sender) == (block, shard)
        }

    def _packed(self, coded: Coded) -> Packed:
        return {
            receiver: [self.codec.pack(stage, codes) for stage, codes in enumerate(arrays)]
            for receiver, arrays in coded.items()
        }

    def described(self) -> dict[str, Any]:
        """For ``run_shards.mjs``."""
        layout = self.layout
        book = self.codec.codebook.id if isinstance(self.codec, VectorCodec) else ""
        with torch.inference_mode():
            embedded = self.model.embed(self.inputs, 0, layout.tokens)
        return {
            "folder": str(self.folder),
            "layout": {
                "bounds": layout.bounds,
                "blocks": layout.blocks,
                "causal": layout.causal,
                "classToken": layout.class_token,
                "pooling": layout.pooling,
                "firstBlock": layout.first_block,
                "stages": [[i, j, count] for (i, j), count in layout.stages.items()],
            },
            "codec": self.codec.name,
            "codebook": book,
            "embedded": embedded.flatten().tolist(),
            "missing": list(self.missing),
            "rates": [[*where, stages] for where, stages in self.rates.items()],
            "codes": [
                [
                    {
                        s: [base64.b64encode(one).decode() for one in part]
                        for s, part in each.items()
                    }
                    for each in block
                ]
                for block in self.sent
            ],
        }


def write_model(
    model: Model,
    codecs: Sequence[VectorCodec],
    folder: Path,
    first_rates: Mapping[CodebookId, int] | None = None,
) -> None:
    """A model's files and manifest."""
    folder.mkdir()
    books = {CodebookId(one.codebook.id): one.codebook for one in codecs}
    files = make_files(folder.name, "a" * 64, model, books, folder, first_rates)
    (folder / "manifest.json").write_text(json.dumps(files.manifest))
