"""Shards, codebooks and an oracle for the engine's tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from astra_mesh.families import Model, ModelInput
from astra_mesh.quant.codebook import BlockBook, Codebook
from astra_mesh.quant.codecs import VectorCodec, make_codec
from astra_mesh.quant.fit import kv_frame
from astra_mesh.wire.messages import ModelId

Bounds = list[tuple[int, int]]


def cut(tokens: int, edges: Sequence[int]) -> Bounds:
    return list(pairwise([0, *edges, tokens]))


def random_bounds(tokens: int, shards: int, seed: int) -> Bounds:
    """Any contiguous shards; empty ones and ones of a single token are common."""
    rng = random.Random(seed)
    return cut(tokens, sorted(rng.randint(0, tokens) for _ in range(shards - 1)))


def random_codec(model: Model, codec: str = "vq", groups: int = 4, stages: int = 2) -> VectorCodec:
    """A codec with random codewords in the right coordinates: bad quality, correct arithmetic."""
    generator = torch.Generator().manual_seed(7)
    d, books = model.spec.hidden_size, []
    first = 1 if codec == "vq" else 0
    for index in range(first, model.spec.num_hidden_layers):
        n = torch.randn(500, d, generator=generator)
        frame = kv_frame(n, model.block(index), groups)
        width = (len(frame.analysis) if codec == "vq" else d) // groups
        shape = (stages, groups, 16, width)
        scale = 0.5 ** torch.arange(stages).view(-1, 1, 1, 1)
        codewords = (torch.randn(shape, generator=generator) * scale).half().float()
        if codec == "vq":
            analysis = frame.analysis.half().float()
            books.append(BlockBook(codewords, frame.center, analysis, frame.synthesis))
        else:
            books.append(BlockBook(codewords))
    book = Codebook(codec, ModelId("a" * 64), d, first, stages, tuple(books))
    made = make_codec(codec, model, book)
    assert isinstance(made, VectorCodec)
    return made


def input_of(model: Model, tokens: int, seed: int = 0) -> ModelInput:
    generator = torch.Generator().manual_seed(seed)
    if model.spec.family == "vit":
        return ModelInput(pixels=torch.randn(3, 12, 20, generator=generator))
    return ModelInput(tokens=torch.randint(model.spec.vocab_size, (tokens,), generator=generator))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - wanted).abs().max() <= tolerance)
