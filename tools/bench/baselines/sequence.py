"""Sequence parallelism with an all-gather before each block: no overlap, K and V of all tokens
projected by every device.

``Voltage`` (Hu and Li, arXiv 2312.02407)   embeddings in fp32, fp16, int8 or int4
``astra`` as published (arXiv 2505.19342)   codes of the embedding; receivers normalize and project
block parallelism                           the gathering of fp32 only before every Nb-th block; in
                                            between a device attends its own tokens only

What is sent is what the codecs of :mod:`astra_mesh.quant` send: for Voltage the *normalized* block
input, as large as the block's output, which saves the receivers the norm. In the last block only
the row that the head reads is computed, as in the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_mesh.engine.attention import attend, merge
from astra_mesh.families import Model, ModelInput
from astra_mesh.quant.codes import Codec
from tools.bench.baselines.run import Run, even, hand_over


@dataclass(frozen=True)
class SequenceParallel:
    """See the module.

    Args:
        codec: what crosses the wire.
        period: blocks from one gathering to the next (Nb).
    """

    codec: Codec
    period: int = 1

    async def __call__(self, run: Run) -> Tensor | None:
        """See :class:`tools.bench.baselines.run.Baseline`."""
        shard = await run.compute(run.timed, "compute_s", self._shard, run)
        for block in range(shard.blocks):
            others: Mapping[int, bytes] = {}
            if block % self.period == 0 and block >= self.codec.first_block and run.members > 1:
                data = await run.compute(run.timed, "encode_s", shard.encode, block)
                others = await run.group.all_gather(run.members, run.tag(), data)
            await run.compute(_step, run, shard, block, others)
        return await hand_over(run, await run.compute(shard.row))

    def _shard(self, run: Run) -> Shard:
        bounds = even(run.model.count_tokens(run.inputs), run.members)
        return Shard(run.model, run.inputs, self.codec, bounds, run.rank, self.period, run.wanted)


def _step(run: Run, shard: Shard, block: int, others: Mapping[int, bytes]) -> None:
    """One turn of the compute thread: what came is decoded, and the block computed."""
    if others:
        run.timed("decode_s", shard.decode, block, others)
    run.timed("compute_s", shard.compute, block)


class Shard:
    """The tokens of one device on their way through the blocks."""

    def __init__(
        self,
        model: Model,
        inputs: ModelInput,
        codec: Codec,
        bounds: Sequence[tuple[int, int]],
        rank: int,
        period: int,
        wanted: int,
    ) -> None:
        self._model, self._inputs, self._codec = model, inputs, codec
        self._bounds, self._rank, self._period = bounds, rank, period
        self._start, self._stop = bounds[rank]
        self._holds_wanted = self._start <= wanted < self._stop
        self._wanted = wanted - self._start
        self.blocks = model.spec.num_hidden_layers
        self._x = model.embed(inputs, self._start, self._stop)  # (T, D)
        self._raw: dict[int, Tensor] = {}  # by rank: keys and values (T, 2 kv_size) of others
        self._sender = codec.sender(codec.stages, None)
        self._receivers = {
            i: codec.receiver(codec.stages, None) for i in range(len(bounds)) if i != rank
        }

    def encode(self, block: int) -> bytes:
        """The own part of the all-gather."""
        arrays = self._sender.encode(block, self._x)
        return b"".join(self._codec.pack(stage, rows) for stage, rows in enumerate(arrays))

    def _useful(self, rank: int, block: int) -> bool:
        """Whether another shard is attended here: never to the right, where causal."""
        if block == self.blocks - 1 and not self._holds_wanted:
            return False
        return rank != self._rank and (rank < self._rank or not self._model.spec.causal)

    def decode(self, block: int, others: Mapping[int, bytes]) -> None:
        """Keys and values of the others' tokens."""
        for rank, data in others.items():
            if self._useful(rank, block):
                start, stop = self._bounds[rank]
                arrays, at = [], 0
                for stage in range(self._codec.stages):
                    size = self._codec.packed_bytes(stage, stop - start)
                    arrays.append(self._codec.unpack(stage, data[at : at + size], stop - start))
                    at += size
                self._raw[rank] = self._receivers[rank].decode(block, arrays)

    def _project_known(self, block: int) -> None:
        """The first block's input is known to all: project it, as if it had come."""
        at = self._model.block(block)
        for rank, (start, stop) in enumerate(self._bounds):
            if self._useful(rank, block):
                n = at.normalize(self._model.embed(self._inputs, start, stop))
                self._raw[rank] = at.project_key_value(n)

    def compute(self, block: int) -> None:
        """The own tokens through one block; only the wanted row through the last one."""
        last = block == self.blocks - 1
        if last and not self._holds_wanted:
            return
        if block % self._period == 0 and block < self._codec.first_block:
            self._project_known(block)
        at, causal = self._model.block(block), self._model.spec.causal
        query, rows = at.query_key_value(at.normalize(self._x), self._start)
        keep = slice(self._wanted, self._wanted + 1) if last else slice(None)
        own = rows[: self._wanted + 1] if last and causal else rows
        query, x = query[:, :, keep], self._x[keep]
        parts = [attend(query, own, causal and not last)]
        if self._raw:
            parts.append(attend(query, self._remote(block)))
        self._x, self._raw = at.mix(x, merge(parts)), {}

    def _remote(self, block: int) -> Tensor:
        """Rows (S, 2, H_kv, E) of all others that matter, in one tensor."""
        at = self._model.block(block)
        return torch.cat(
            [
                at.finish_key_value(raw, self._bounds[rank][0])
                for rank, raw in sorted(self._raw.items())
            ]
        )

    def row(self) -> Tensor | None:
        """The final row (D,) that the head reads, where this shard has it."""
        return self._model.final(self._x)[0] if self._holds_wanted else None
