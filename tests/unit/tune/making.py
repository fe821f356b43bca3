"""Batches for random models, and codebooks that know them by heart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from astra_mesh.families import Model, ModelInput
from astra_mesh.quant.codebook import BlockBook, Codebook
from astra_mesh.tune.objective import Batch, embed
from astra_mesh.wire.messages import ModelId

TOKENS = 16  # of the toy vit; the others may have any number


def batch_of(
    model: Model, size: int = 3, tokens: int = TOKENS, seed: int = 0, labels: Sequence[int] = ()
) -> Batch:
    """Random sequences, labelled 0, 1, 0, ... or as given."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.tensor(labels or [index % 2 for index in range(size)])
    if model.spec.vocab_size == 0:
        return Batch(pixels=torch.randn(size, 3, 12, 20, generator=generator), labels=known)
    ids = torch.randint(model.spec.vocab_size, (size, tokens), generator=generator)
    return Batch(tokens=ids, labels=known)


def inputs_of(batch: Batch) -> list[ModelInput]:
    """The sequences one by one."""
    parts = (batch.tokens, batch.token_types, batch.pixels)
    return [
        ModelInput(*(None if part is None else part[i] for part in parts))
        for i in range(len(batch))
    ]


def memorizing_book(model: Model, batch: Batch, codec: str = "vq") -> Codebook:
    """A codebook with a codeword for every row of a batch, as one device computes it."""
    size, x = model.spec.hidden_size, embed(model, batch).detach()
    rows: list[Tensor] = []
    for index in range(model.spec.num_hidden_layers):
        block = model.block(index)
        coded = x if codec == "astra" else block.normalize(x)
        rows.append(coded.flatten(0, 1))
        x = torch.stack([block(one, model.spec.causal) for one in x]).detach()
    first = int(codec == "vq")
    books = tuple(_known_by_heart(one, codec) for one in rows[first:])
    count = len(rows[0])
    return Codebook(codec, ModelId("a" * 64), size, first, 0, (1,), count, 1, {1: books})


def _known_by_heart(rows: Tensor, codec: str) -> BlockBook:
    if codec == "astra":
        return BlockBook((rows[None],))
    size = rows.shape[1]
    center, same = rows.mean(0), torch.eye(size)
    return BlockBook(((rows - center)[None],), (torch.arange(size),), center, same, same)
