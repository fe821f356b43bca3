"""One peer's part of one prefill: synchronous steps that the pipeline and the reference drive.

Attention parts are merged in token order, whatever order they arrived in, so that the same plan
gives the same bits: a code that flips at a near tie would change later blocks visibly. Where a
model is not causal and tokens are few, all of them are attended in one go, when all are there: that
is less work than what waiting for the last part could hide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from astra_mesh.engine.attention import Part, attend, merge
from astra_mesh.families.model import Model, ModelInput
from astra_mesh.plan.layout import Layout
from astra_mesh.quant.codes import CodeArray, Codec, Receiver, Sender

# Up to so many tokens they are attended in one go. One thread, two Xeon cores: 49 of 196 tokens
# 0.50 instead of 0.82 ms with their merge, 32 of 256 0.71 instead of 1.22, 256 of 1,024 no less.
TOGETHER: Final = 512

Coded = Mapping[int, Sequence[CodeArray]]  # by receiver: one array per stage
Stages = Mapping[int, int]  # by receiver


class ShardRun:
    """State of one shard. Per block call, in this order:

    ``encode`` (codes to send), ``attend_local``, ``attend_remote`` once for each of
    ``layout.sources``, ``finish``. With ``spare``, the number of new tokens that come after,
    ``rows[block]`` keeps the keys and values (stop + spare, 2, H_kv, E) of all tokens that this
    shard has seen, in token order: decoding continues from them. Without, nothing is kept, which
    spares shards that do not answer the copies, and the memory, of all keys and values.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        shard: int,
        codec: Codec,
        inputs: ModelInput,
        spare: int = 0,
    ) -> None:
        self.model, self.layout, self.shard, self.codec = model, layout, shard, codec
        self.inputs = inputs
        self.start, self.stop = layout.bounds[shard]
        self._copied = int(layout.copies_class(shard))
        self._spare = spare if model.spec.causal else 0
        self.rows: list[Tensor] = []
        self.x = self._embed()  # (rows, D), input of the block that comes next
        self._n = self._query = self.x
        self._keys: Tensor | None = None
        self._parts: dict[int, Part] = {}
        self._together = not layout.causal and layout.tokens <= TOGETHER
        self._held: dict[int, Tensor] = {}  # by shard: keys and values that wait for the others'
        self._known: dict[int, Tensor] = {}  # by shard: n of the first block, if it is known
        # By receiver; who got the same codes so far has the same one.
        self._senders: dict[int, Sender] = {}
        self._receivers: dict[int, Receiver] = {}  # by shard

    def _embed(self) -> Tensor:
        x = self.model.embed(self.inputs, self.start, self.stop)
        if self._copied:
            x = torch.cat([self.model.embed(self.inputs, 0, 1), x])
        return x

    def encode(self, block: int, stages: Stages | None = None) -> Coded:
        """Codes of the own tokens for ``block``; ``stages`` of each receiver, by default those of
        the layout. Those who got the same so far, and take the same now, share them.
        """
        wanted: dict[Sender, dict[int, list[int]]] = {}
        for receiver in self.layout.receivers(self.shard, block):
            count = (stages or {}).get(receiver) or self.layout.stages[self.shard, receiver]
            alike = wanted.setdefault(self._sender(receiver), {})
            alike.setdefault(count, []).append(receiver)
        found: dict[int, Sequence[CodeArray]] = {}
        for sender, groups in wanted.items():
            ends = [sender, *(sender.fork() for _ in range(len(groups) - 1))]
            for end, (count, receivers) in zip(ends, sorted(groups.items()), strict=True):
                codes = end.encode(block, self.coded, stages=count)
                found |= dict.fromkeys(receivers, codes)
                self._senders |= dict.fromkeys(receivers, end)
        return found

    def _sender(self, receiver: int) -> Sender:
        """What codes for a receiver come from; at first one for all."""
        if not self._senders:
            first = self.codec.sender(self.codec.stages, self.known)
            others = [i for i in range(len(self.layout.bounds)) if i != self.shard]
            self._senders = dict.fromkeys(others, first)
        return self._senders[receiver]

    @property
    def coded(self) -> Tensor:
        """The rows (T, D) whose codes are sent: input of the block that comes next."""
        return self.x[self._unsent() :]

    @property
    def known(self) -> Tensor | None:
        """Their n (T, D) in the first block, once it was attended; None where it is coded too."""
        return self._known.get(self.shard)

    def _unsent(self) -> int:
        """Rows in front of the own tokens that are not sent."""
        return self.layout.local_rows(self.shard) - len(self.layout.sent(self.shard))

    def attend_local(self, block: int) -> None:
        """Exact Q, K, V of the own tokens, and attention among them."""
        at, wanted = self.model.block(block), self._wanted(block)
        self._parts, self._held, self._n = {}, {}, at.normalize(self.x)
        if block < self.layout.first_block:
            self._known[self.shard] = self._n[self._unsent() :]
        if not wanted:
            return
        query, rows = at.query_key_value(self._n, self.start)
        self._store(block, self.start, rows)
        self._query = query[:, :, wanted.start : wanted.stop]
        whole = len(wanted) == len(rows)
        self._take(block, self.shard, rows, self.layout.causal and whole)
        if block < self.layout.first_block:
            self._attend_known(block)

    def _attend_known(self, block: int) -> None:
        """The first block's input is known to every peer: attend the others exactly."""
        for source in self.layout.sources(self.shard, block):
            sent = self.layout.sent(source)
            at = self.model.block(block)
            n = at.normalize(self.model.embed(self.inputs, sent.start, sent.stop))
            self._known[source] = n
            self._attend(block, source, at.key_value(n, sent.start))

    def attend_remote(self, block: int, source: int, codes: Sequence[CodeArray]) -> None:
        """Attend the tokens of shard ``source``, given its codes; none: a prediction stands in."""
        if source not in self._receivers:
            stages, known = self.layout.stages[source, self.shard], self._known.get(source)
            self._receivers[source] = self.codec.receiver(stages, known)
        receiver = self._receivers[source]
        raw = receiver.decode(block, codes) if codes else receiver.stand_in(block)
        start = self.layout.sent(source).start
        self._attend(block, source, self.model.block(block).finish_key_value(raw, start))

    def _attend(self, block: int, source: int, rows: Tensor) -> None:
        self._store(block, self.layout.sent(source).start, rows)
        self._take(block, source, rows)

    def _take(self, block: int, shard: int, rows: Tensor, causal: bool = False) -> None:
        """Attend the rows of one shard, or of all once they are there."""
        if not self._together:
            self._parts[shard] = attend(self._query, rows, causal)
            return
        self._held[shard] = rows
        if len(self._held) > len(self.layout.sources(self.shard, block)):
            held = [self._held[i] for i in sorted(self._held)]
            self._held = {}
            joined = torch.cat(held) if len(held) > 1 else held[0]
            self._parts[self.shard] = attend(self._query, joined)

    def finish(self, block: int) -> None:
        """Merge the parts and compute the block's output, the next block's input."""
        wanted = self._wanted(block)
        if not wanted:
            self.x = self.x[:0]
            return
        parts = [self._parts[i] for i in sorted(self._parts)]
        x = self.x[wanted.start : wanted.stop]
        self.x = self.model.block(block).mix(x, merge(parts))
        self._parts = {}

    def _wanted(self, block: int) -> range:
        if block == self.layout.blocks - 1:
            return self.layout.wanted(self.shard)
        return range(len(self.x))

    def _store(self, block: int, start: int, rows: Tensor) -> None:
        """Keep rows for decoding, in a buffer with room for the new tokens."""
        if not self._spare:
            return
        if block == len(self.rows):
            self.rows.append(rows.new_empty(self.stop + self._spare, *rows.shape[1:]))
        self.rows[block][start : start + len(rows)] = rows

    def pooled(self) -> tuple[Tensor, float]:
        """This shard's share of the pooled output: sum of final rows (D,) float32, and its weight.

        ``last`` and ``class`` share one row; a copied class token counts as one token of a mean.
        """
        rows = self.layout.wanted(self.shard)
        if not rows:
            return torch.zeros(self.model.spec.hidden_size), 0.0
        hidden = self.model.final(self.x).float()
        weights = torch.ones(len(rows))
        if self.layout.distributed and self.layout.pooling == "mean":
            holders = sum(self.layout.holds(i) for i in range(len(self.layout.bounds)))
            weights[0] = 1.0 / holders
        return weights @ hidden, float(weights.sum())
