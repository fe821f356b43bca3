"""Decoding new tokens on the answering peer, from the keys and values that its prefill left."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from astra_mesh.engine.attention import attend, merge
from astra_mesh.engine.sampling import Likely, Sampler, likely
from astra_mesh.engine.shard import ShardRun
from astra_mesh.families.model import ModelInput
from astra_mesh.wire.messages import Sampling


class Decoder:
    """One token after the other; :meth:`step` returns None when the text has ended.

    :func:`step_all` does a step of several at once.

    Args:
        run: a finished causal shard run that holds the last token, with ``spare`` of at least
            ``sampling.max_new_tokens``; for a single token it may be 0.
        stop_ids: tokens that end the text (they are not returned).
        best: note of each new token how probable it was, and so many of the most probable ones,
            in ``likely``; None notes nothing.
    """

    def __init__(
        self,
        run: ShardRun,
        sampling: Sampling,
        stop_ids: Collection[int] = (),
        best: int | None = None,
    ) -> None:
        self.model, self._rows = run.model, run.rows
        self._sampler, self._stop_ids = Sampler(sampling), frozenset(stop_ids)
        self._left, self._best = sampling.max_new_tokens, best
        self.likely: Likely | None = None  # of the last token
        self.position = run.stop  # of the token that comes next
        if sampling.max_new_tokens > 1 and not run.rows:
            raise ValueError("the run kept no keys and values to decode from")
        self._room = len(run.rows[0]) if run.rows else 0  # tokens whose keys and values fit
        self._tokens = torch.zeros(self._room, dtype=torch.int64)  # only new ones are read
        self.finish = ""  # "length", "eos" or "context" once it has ended
        self.logits: Tensor = self.model.logits(self.model.final(run.x[-1:]))[0]  # (vocab,)

    def skip(self, tokens: int) -> None:
        """So many tokens were drawn elsewhere: go on as if they had been drawn here."""
        self._sampler.skip(tokens, len(self.logits))

    def step(self) -> int | None:
        """The next token id, or None at the end (then ``finish`` says why)."""
        return step_all([self])[0]

    def _choose(self) -> int | None:
        """The next token; it has to go through the model unless that was the end."""
        if self.finish:
            return None
        token = self._sampler.choose(self.logits)
        if token in self._stop_ids:
            self.finish = "eos"
            return None
        if self._best is not None:
            self.likely = likely(self.logits, token, self._best)
        self._left -= 1
        if self._left == 0:
            self.finish = "length"
        elif self.position >= min(self.model.spec.max_tokens, self._room):
            self.finish = "context"
        return token

    def _embed(self, token: int) -> Tensor:
        """(1, D)."""
        at = self.position
        self._tokens[at] = token
        return self.model.embed(ModelInput(tokens=self._tokens), at, at + 1)

    def _attend(self, block: int, query: Tensor, row: Tensor) -> Tensor:
        """The heads (1, q_size) of the new token, whose keys and values are kept."""
        rows, at = self._rows[block], self.position
        rows[at : at + 1] = row
        return merge([attend(query, rows[: at + 1])])

    def _advance(self, logits: Tensor) -> None:
        self.position += 1
        self.logits = logits


@torch.inference_mode()
def step_all(decoders: Sequence[Decoder]) -> list[int | None]:
    """One step of several texts of one model: their rows share each product, and so the reading of
    each weight, which is what a step costs. Rounding may differ from steps that are taken alone.
    """
    tokens = [one._choose() for one in decoders]
    going = [
        (one, token)
        for one, token in zip(decoders, tokens, strict=True)
        if token is not None and not one.finish
    ]
    if going:
        _forward([one for one, _ in going], [token for _, token in going])
    return tokens


def _forward(decoders: Sequence[Decoder], tokens: Sequence[int]) -> None:
    model = decoders[0].model
    places = [one.position for one in decoders]
    x = torch.cat([one._embed(token) for one, token in zip(decoders, tokens, strict=True)])
    for index in range(model.spec.num_hidden_layers):
        block = model.block(index)
        each = block.query_key_value_each(block.normalize(x), places)
        heads = [one._attend(index, *pair) for one, pair in zip(decoders, each, strict=True)]
        x = block.mix(x, torch.cat(heads) if len(heads) > 1 else heads[0])
    for one, logits in zip(decoders, model.logits(model.final(x)), strict=True):
        one._advance(logits)
