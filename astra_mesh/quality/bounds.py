"""The computed bound on the attention's error beside the errors that occurred, block by block.

See :mod:`astra_mesh.quant.bound` for the bound itself. Blocks get the inputs that they have in the
plan, so that each row says what the codes of this one block add.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from astra_mesh.families import Model, ModelInput
from astra_mesh.quant.bound import AttentionBound, BlockStatistics
from astra_mesh.quant.codes import Codec
from astra_mesh.quant.fit import Progress
from astra_mesh.quant.mixed import Shares, arrange, even_bounds, mixed_block, shares
from astra_mesh.quant.vector import VectorCodec


@dataclass(frozen=True)
class BoundSettings:
    """The plans that the bound is computed for: even shards."""

    peers: int = 4
    distributed: bool = False  # a class token on every peer


@dataclass(frozen=True)
class BoundRow:
    """One block at one rate; both figures are root mean squares over queries, relative to that of
    the block's exact attention output."""

    codec: str
    codebook: str  # file name
    stages: int
    bits_per_token: int
    peers: int
    block: int
    bound: float  # no more than this, by the derivation
    error: float  # that occurred


def attention_bounds(
    model: Model,
    inputs: Sequence[ModelInput],
    codes: Sequence[tuple[Codec, str, int]],
    settings: BoundSettings,
    progress: Progress = lambda done, total, what: None,
) -> list[BoundRow]:
    """One row for each coded block of each (codec, file, number of stages)."""
    blocks = range(model.spec.num_hidden_layers)
    bounds = [AttentionBound(model.block(index)) for index in blocks]
    found: list[BoundRow] = []
    for index, (codec, file, stages) in enumerate(codes):
        progress(index, len(codes), "bounding the attention's error")
        assert isinstance(codec, VectorCodec)
        runs = [_Run(model, bounds, codec, stages, settings).blocks(one) for one in inputs]
        for block in blocks[codec.first_block :]:
            merged = reduce(BlockStatistics.merge, (run[block] for run in runs))
            bits = codec.rate(stages)
            row = (codec.name, file, stages, bits, settings.peers, block)
            found.append(BoundRow(*row, merged.relative_bound, _relative_error(merged)))
    return found


def _relative_error(found: BlockStatistics) -> float:
    return math.sqrt(found.error_energy / found.output_energy) if found.output_energy else 0.0


@dataclass(frozen=True)
class _Run:
    model: Model
    bounds: Sequence[AttentionBound]
    codec: VectorCodec
    stages: int
    settings: BoundSettings

    @torch.no_grad()
    def blocks(self, inputs: ModelInput) -> dict[int, BlockStatistics]:
        """The coded blocks of one sequence."""
        model, codec = self.model, self.codec
        held, x = self._start(inputs)
        mask, known = held.masks(model.spec.causal), None
        sender = receiver = None
        found = {}
        for index in range(model.spec.num_hidden_layers):
            block = model.block(index)
            if index < codec.first_block:
                known = block.normalize(x)[held.copies :, 0]
                x = mixed_block(block, x, mask, None)
                continue
            if sender is None or receiver is None:
                sender = codec.sender(self.stages, known)
                receiver = codec.receiver(self.stages, known)
            codes = sender.encode(index, x[held.copies :, 0])
            rebuilt = self._rebuilt(index, x, held, receiver.rebuild(index, codes))
            found[index] = self.bounds[index].collect(x, rebuilt, mask)
            x = mixed_block(block, x, mask, rebuilt)
        return found

    def _start(self, inputs: ModelInput) -> tuple[Shares, Tensor]:
        """Who owns what, and rows (T', 1, D)."""
        model, count = self.model, self.model.count_tokens(inputs)
        peers = min(self.settings.peers, count)
        distributed = self.settings.distributed and model.spec.has_class_token
        held = shares(even_bounds(count, peers, 1), count, distributed=distributed)
        return held, arrange(model.embed(inputs, 0, count).float().unsqueeze(0), held)

    def _rebuilt(self, index: int, x: Tensor, held: Shares, coded: Tensor) -> Tensor:
        """N as the others hold it, (T', 1, D); class token copies are never sent."""
        block = self.model.block(index)
        n = block.normalize(x)
        rows = block.normalize(coded) if self.codec.name == "astra" else coded
        return torch.cat([n[: held.copies], rows.unsqueeze(1)])
