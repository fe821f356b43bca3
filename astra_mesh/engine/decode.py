"""Decoding new tokens on the answering peer, from the keys and values that its prefill left."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from astra_mesh.engine.attention import attend, merge
from astra_mesh.engine.sampling import Sampler
from astra_mesh.engine.shard import ShardRun
from astra_mesh.families.model import ModelInput
from astra_mesh.wire.messages import Sampling


class Decoder:
    """One token after the other; :meth:`step` returns None when the text has ended.

    Args:
        run: a finished causal shard run that holds the last token and has ``spare`` rows.
        stop_ids: tokens that end the text (they are not returned).
    """

    def __init__(self, run: ShardRun, sampling: Sampling, stop_ids: Collection[int] = ()) -> None:
        self.model, self._rows = run.model, run.rows
        self._sampler, self._stop_ids = Sampler(sampling), frozenset(stop_ids)
        self._left = sampling.max_new_tokens
        self.position = run.stop  # of the token that comes next
        self._tokens = torch.zeros(len(run.rows[0]), dtype=torch.int64)  # only new ones are read
        self.finish = ""  # "length", "eos" or "context" once it has ended
        self.logits: Tensor = self.model.logits(self.model.final(run.x[-1:]))[0]  # (vocab,)

    @torch.inference_mode()
    def step(self) -> int | None:
        """The next token id, or None at the end (then ``finish`` says why)."""
        if self.finish:
            return None
        token = self._sampler.choose(self.logits)
        if token in self._stop_ids:
            self.finish = "eos"
            return None
        self._left -= 1
        if self._left == 0:
            self.finish = "length"
        elif self.position >= min(self.model.spec.max_tokens, len(self._rows[0])):
            self.finish = "context"
        else:
            self._forward(token)
        return token

    def _forward(self, token: int) -> None:
        at = self.position
        self._tokens[at] = token
        x = self.model.embed(ModelInput(tokens=self._tokens), at, at + 1)
        for index, rows in enumerate(self._rows):
            block = self.model.block(index)
            query, row = block.query_key_value(block.normalize(x), at)
            rows[at : at + 1] = row
            x = block.mix(x, merge([attend(query, rows[: at + 1])]))
        self.position += 1
        self.logits = self.model.logits(self.model.final(x))[0]
