"""Shards, codebooks, models and what codes stand for, for the engine's and the codecs' tests."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.families.block import Block
from astra_mesh.quant.codebook import UNLIMITED, BlockBook, Codebook, as_stored, sources
from astra_mesh.quant.codecs import CodeArray, VectorCodec
from astra_mesh.quant.frame import kv_metric, make_frame
from astra_mesh.wire.messages import ModelId
from tests.unit.families.making import BLOCKS, CONFIGS, make_tensors

Bounds = list[tuple[int, int]]
HISTORIES = (0, 1, 2, UNLIMITED)
CODEWORDS = 16


def cut(tokens: int, edges: Sequence[int]) -> Bounds:
    return list(pairwise([0, *edges, tokens]))


def random_bounds(tokens: int, shards: int, seed: int) -> Bounds:
    """Any contiguous shards; empty ones and ones of a single token are common."""
    rng = random.Random(seed)
    return cut(tokens, sorted(rng.randint(0, tokens) for _ in range(shards - 1)))


def deep_model(kind: str, times: int = 2, dtype: torch.dtype = torch.float32) -> Model:
    """As ``make_model``, with ``times`` as many blocks: a short history then forgets some."""
    tensors: dict[str, Tensor] = {}
    for turn in range(times):

        def later(match: re.Match[str], add: int = turn * BLOCKS) -> str:
            return f"{match[1]}{int(match[2]) + add}."

        found = make_tensors(kind, turn)
        tensors |= {
            re.sub(r"(\.(?:h|layers?)\.)(\d+)\.", later, name): one for name, one in found.items()
        }
    many = {"num_hidden_layers": times * BLOCKS, "n_layer": times * BLOCKS}
    return build_model(CONFIGS[kind] | many, tensors, dtype)


def groups_of(groups: int, stages: int) -> tuple[int, ...]:
    """Of each stage: they differ, and some do not divide the coordinates."""
    return tuple(groups + (0, 1, -1)[stage % 3] for stage in range(stages))


def random_book(
    model: Model,
    codec: str = "vq",
    groups: int = 4,
    stages: int = 2,
    history: int = 0,
    code_first: bool = False,
) -> Codebook:
    """Random codewords in the right coordinates, random predictions: bad quality, but valid."""
    generator = torch.Generator().manual_seed(7)
    size, first = model.spec.hidden_size, int(codec == "vq" and not code_first)
    blocks = range(first, model.spec.num_hidden_layers)
    counts: tuple[int, ...] = (groups,)
    if codec == "astra":
        words = [_words((groups, CODEWORDS, size // groups), generator) for _ in blocks]
        levels = {1: tuple(as_stored(BlockBook((one,))) for one in words)}
    else:
        counts = groups_of(groups, stages)
        levels = {
            count: tuple(
                _random_block(model.block(index), index, counts[:count], history, generator)
                for index in blocks
            )
            for count in (range(1, stages + 1) if history else [stages])
        }
    return Codebook(
        codec, ModelId("a" * 64), size, first, history, counts, CODEWORDS, len(counts), levels
    )


def _words(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _random_block(
    block: Block, index: int, groups: Sequence[int], history: int, generator: torch.Generator
) -> BlockBook:
    size = block.spec.hidden_size
    n = torch.randn(500, size, generator=generator)
    frame = make_frame(n, kv_metric(n - n.mean(0), block))
    spread = torch.cat([frame.variances.sqrt().float(), torch.zeros(1)])
    codewords, orders = [], []
    for stage, count in enumerate(groups):
        orders.append(random_order(len(frame.analysis), count, generator))
        words = _words((count, CODEWORDS, len(orders[-1]) // count), generator)
        codewords.append(words * spread[orders[-1]].view(count, 1, -1) * 0.6**stage)
    past = len(sources(history, index)) if history else 0
    predict = _words((past, size, size), generator) * 0.6 / size**0.5 if past else None
    center = 0.2 * torch.randn(size, generator=generator)
    found = BlockBook(
        tuple(codewords), tuple(orders), center, frame.analysis, frame.synthesis, predict
    )
    return as_stored(found)


def random_order(coordinates: int, groups: int, generator: torch.Generator) -> Tensor:
    """All coordinates in groups of one width, in any order, padding anywhere between them."""
    width = -(-coordinates // groups)
    order = torch.full((groups * width,), coordinates, dtype=torch.int64)
    places = torch.randperm(len(order), generator=generator)[:coordinates]
    order[places] = torch.randperm(coordinates, generator=generator)
    return order


def random_codec(
    model: Model,
    codec: str = "vq",
    groups: int = 4,
    stages: int = 2,
    history: int = 0,
    code_first: bool = False,
) -> VectorCodec:
    """The codec of a :func:`random_book`, exact."""
    return VectorCodec(model, random_book(model, codec, groups, stages, history, code_first))


class Rebuilt:
    """What others hold at one number of stages, by the formulas of quant/codebook.py.

    ``known`` (T, D) is n of the first block.
    """

    def __init__(self, codebook: Codebook, stages: int, known: Tensor) -> None:
        self.codebook, self.stages = codebook, stages
        self.q, self.n = {0: known}, {0: known}

    def predicted(self, index: int) -> Tensor:
        """p (T, D) or (D,)."""
        book, history = self.codebook.book(index, self.stages), self.codebook.history
        assert book.center is not None
        if history == UNLIMITED:
            assert book.predict is not None
            return book.center + self.n[index - 1] @ book.predict[0]
        p = book.center
        for back in range(1, min(history, index) + 1):
            assert book.predict is not None
            p = p + self.q[index - back] @ book.predict[back - 1]
        if index > history > 0:
            assert book.predict is not None
            p = p + self.q[0] @ book.predict[history]
        return p

    def take(self, index: int, codes: Sequence[CodeArray]) -> Tensor:
        """n^ (T, D) once the codes of a block are here, or the embedding for ``astra``."""
        tokens = range(len(codes[0]))
        q = torch.stack([self._sum(index, [part[t] for part in codes]) for t in tokens])
        if self.codebook.codec == "astra":
            return q
        self.q[index], self.n[index] = q, self.predicted(index) + q
        return self.n[index]

    def _sum(self, index: int, codes: Sequence[CodeArray]) -> Tensor:
        """What the codes of one token add."""
        book = self.codebook.book(index, self.stages)
        if book.synthesis is None:
            return torch.cat([book.codewords[0][g, int(c)] for g, c in enumerate(codes[0])])
        y = torch.zeros(book.synthesis.shape[1] + 1)  # the last takes the padding
        for words, order, chosen in zip(book.codewords, book.orders, codes, strict=True):
            picked = [words[group, int(code)] for group, code in enumerate(chosen)]
            y.index_add_(0, order, torch.cat(picked))
        return book.synthesis @ y[:-1]


def input_of(model: Model, tokens: int, seed: int = 0) -> ModelInput:
    generator = torch.Generator().manual_seed(seed)
    if model.spec.family == "vit":
        return ModelInput(pixels=torch.randn(3, 12, 20, generator=generator))
    return ModelInput(tokens=torch.randint(model.spec.vocab_size, (tokens,), generator=generator))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - wanted).abs().max() <= tolerance)
