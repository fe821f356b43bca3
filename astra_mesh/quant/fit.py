"""Fitting a codebook to calibration inputs: k-means only, nothing is trained.

``vq``: distances in the K,V metric, a balanced rotation, residual stages. ``astra``: k-means on the
embedding as published (arXiv 2505.19342), one stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_mesh.errors import CalibrationError
from astra_mesh.families.block import Block
from astra_mesh.families.model import Model, ModelInput
from astra_mesh.quant.codebook import BlockBook, Codebook, as_stored
from astra_mesh.quant.kmeans import assign, kmeans
from astra_mesh.wire.messages import ModelId

Progress = Callable[[int, int, str], None]  # done, total, what


@dataclass(frozen=True)
class FitOptions:
    """How a codebook is fitted. Bits per token and block: ``stages * groups * log2(codewords)``."""

    codec: str = "vq"
    groups: int = 4
    stages: int = 4
    codewords: int = 256
    default_stages: int = 0  # 0: all
    iterations: int = 20
    max_tokens: int = 32_768  # calibration tokens per block; bounds memory to 2 x this x D floats
    seed: int = 0

    def check(self, hidden_size: int) -> None:
        """CalibrationError for settings that cannot be."""
        if self.codec not in ("vq", "astra"):
            raise CalibrationError(f"codec {self.codec!r} has no codebook; use vq or astra")
        if not 1 <= self.groups <= hidden_size:
            raise CalibrationError(f"groups must lie in 1..{hidden_size}, it is {self.groups}")
        if self.codec == "astra" and (hidden_size % self.groups or self.stages != 1):
            raise CalibrationError("astra needs one stage and groups that divide the hidden size")
        if not 2 <= self.codewords <= 65536 or not 1 <= self.stages <= 64:
            raise CalibrationError("codewords must lie in 2..65536 and stages in 1..64")
        if not 0 <= self.default_stages <= self.stages:
            raise CalibrationError(f"default_stages must lie in 0..{self.stages}")
        if self.iterations < 1 or self.max_tokens < 1:
            raise CalibrationError("iterations and max_tokens must be at least 1")
        if self.codewords > 256 and self.codec == "vq":
            raise CalibrationError("vq codes are bytes: at most 256 codewords per group")


@torch.inference_mode()
def fit_codebook(
    model: Model,
    model_id: ModelId,
    inputs: Sequence[ModelInput],
    options: FitOptions,
    progress: Progress = lambda done, total, what: None,
) -> Codebook:
    """A codebook for all blocks, from the block inputs that ``inputs`` cause in the full model.

    Deterministic for a seed (and one number of threads). Memory: the hidden states of the
    calibration tokens of one block, twice.

    Raises:
        CalibrationError: too few tokens (ten per codeword are needed), or impossible options.
        InputError: an input that does not fit the model.
    """
    spec = model.spec
    options.check(spec.hidden_size)
    first = 0 if options.codec == "astra" else 1
    if spec.num_hidden_layers <= first:
        raise CalibrationError(
            "a model of one block needs no codebook: all peers know that block's input anyway"
        )
    hidden = _embed(model, inputs, options.max_tokens)
    tokens = sum(len(x) for x in hidden)
    if tokens < 10 * options.codewords:
        raise CalibrationError(
            f"{tokens} calibration tokens are too few for {options.codewords} codewords: give at "
            f"least {10 * options.codewords} tokens (more text or pictures), or fewer codewords"
        )
    generator = torch.Generator().manual_seed(options.seed)
    books = []
    for index in range(spec.num_hidden_layers):
        progress(index, spec.num_hidden_layers, f"block {index}")
        block = model.block(index)
        if index >= first:
            books.append(_fit_block(block, torch.cat(hidden), options, generator))
        hidden = [block(x, spec.causal) for x in hidden]
    progress(spec.num_hidden_layers, spec.num_hidden_layers, "done")
    if not all(bool(book.codewords.isfinite().all()) for book in books):
        raise CalibrationError("the model's embeddings are beyond what a codebook holds (float16)")
    return Codebook(
        codec=options.codec,
        model=model_id,
        hidden_size=spec.hidden_size,
        first_block=first,
        default_stages=options.default_stages or options.stages,
        blocks=tuple(books),
    )


def _embed(model: Model, inputs: Sequence[ModelInput], max_tokens: int) -> list[Tensor]:
    found: list[Tensor] = []
    left = max_tokens
    for one in inputs:
        count = model.count_tokens(one)
        if count > left:
            break
        found.append(model.embed(one, 0, count).float())
        left -= count
    return found


def _fit_block(
    block: Block, x: Tensor, options: FitOptions, generator: torch.Generator
) -> BlockBook:
    if options.codec == "astra":
        y, frame = x, None
    else:
        n = block.normalize(x)
        frame = kv_frame(n, block, options.groups)
        y = (n - frame.center) @ frame.analysis.T
    y = y.view(len(y), options.groups, -1).transpose(0, 1).contiguous()  # (G, N, W)
    stages = []
    for _ in range(options.stages):
        codewords = kmeans(y, options.codewords, options.iterations, generator).half().float()
        stages.append(codewords)
        index = assign(y, codewords)
        y = y - codewords.gather(1, index.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
    codewords = torch.stack(stages)
    if frame is None:
        return as_stored(BlockBook(codewords))
    return as_stored(BlockBook(codewords, frame.center, frame.analysis, frame.synthesis))


@dataclass(frozen=True)
class Frame:
    """The coordinates of one block: see :mod:`astra_mesh.quant.codebook`."""

    center: Tensor  # (D,)
    analysis: Tensor  # (G * W, D)
    synthesis: Tensor  # (D, G * W)


def kv_frame(n: Tensor, block: Block, groups: int) -> Frame:
    """Coordinates for ``n`` (N, D) in which a distance is an error of K and V, balanced groups.

    Raises:
        CalibrationError: all rows are equal.
    """
    center = n.mean(0)
    if (n - center).square().mean() <= 1e-10 * n.square().mean():  # equal but for rounding
        raise CalibrationError("the calibration inputs are all alike; give others")
    metric = _kv_metric(n - center, block)  # (2 kv, D)
    seen = (n - center) @ metric.T
    values, vectors = torch.linalg.eigh((seen.T @ seen / len(n)).double())
    keep = values > 1e-7 * values[-1]
    values, vectors = values[keep].flip(0), vectors[:, keep].flip(1)  # by falling variance
    analysis = vectors.T @ metric.double()  # (R, D)
    synthesis = torch.linalg.pinv(metric.double(), rtol=1e-6) @ vectors  # (D, R)
    order = balance(values, groups)
    width = -(-len(values) // groups)
    padded_analysis = torch.zeros(groups * width, n.shape[1], dtype=torch.float64)
    padded_synthesis = torch.zeros(n.shape[1], groups * width, dtype=torch.float64)
    for group, members in enumerate(order):
        at = slice(group * width, group * width + len(members))
        padded_analysis[at], padded_synthesis[:, at] = analysis[members], synthesis[:, members]
    return Frame(center, padded_analysis.float(), padded_synthesis.float())


def _kv_metric(centered: Tensor, block: Block) -> Tensor:
    """The K,V projection with its keys and its values each scaled to unit energy over the data."""
    weight = block.kv_weight.float()
    keys, values = weight.chunk(2)

    def unit(part: Tensor) -> Tensor:
        energy = (centered @ part.T).square().sum(1).mean()
        return part / energy.sqrt().clamp_min(1e-12)

    return torch.cat([unit(keys), unit(values)])


def balance(values: Tensor, groups: int) -> list[list[int]]:
    """Indices of ``values`` (falling variances) in groups of equal size and close log-product.

    Each next dimension goes to the group with the smallest product so far that still has room
    (eigenvalue allocation of optimized product quantization).
    """
    width = -(-len(values) // groups)
    logs = (values / values[-1].clamp_min(1e-300)).log().tolist()
    totals, members = [0.0] * groups, [list[int]() for _ in range(groups)]
    for index, log in enumerate(logs):
        room = [g for g in range(groups) if len(members[g]) < width]
        group = min(room, key=lambda g: (totals[g], len(members[g])))
        members[group].append(index)
        totals[group] += log
    return members
