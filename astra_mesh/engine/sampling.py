"""Choosing the next token: greedy, or temperature, top-k and top-p with a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from astra_mesh.errors import InputError
from astra_mesh.wire.messages import Sampling


def check_sampling(sampling: Sampling) -> None:
    """InputError for values that make no sense."""
    if sampling.max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, it is {sampling.max_new_tokens}")
    if not 0.0 <= sampling.temperature <= 100.0:
        raise InputError(f"temperature must lie in 0..100, it is {sampling.temperature}")
    if sampling.top_k < 0:
        raise InputError(f"top_k must not be negative, it is {sampling.top_k}")
    if not 0.0 < sampling.top_p <= 1.0:
        raise InputError(f"top_p must lie in (0, 1], it is {sampling.top_p}")


@dataclass(frozen=True)
class Likely:
    """What the model thought of a new token, before temperature, top-k and top-p.

    Attributes:
        logprob: Natural logarithm of its probability.
        best: Ids and log-probabilities of the most probable tokens, these first.
    """

    logprob: float
    best: tuple[tuple[int, float], ...]


def likely(logits: Tensor, token: int, best: int) -> Likely:
    """Of ``token`` among ``logits`` (vocab,), with the ``best`` most probable ones."""
    logprobs = torch.log_softmax(logits.float(), -1)
    top = logprobs.topk(min(best, len(logprobs)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Likely(float(logprobs[token]), tuple(pairs))


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens on one machine."""

    def __init__(self, sampling: Sampling) -> None:
        check_sampling(sampling)
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed & (2**63 - 1))

    def choose(self, logits: Tensor) -> int:
        """Token id for ``logits`` (vocab,)."""
        options = self._sampling
        if options.temperature == 0.0:
            return int(logits.argmax())
        below = logits.float() - logits.max()  # so that a tiny temperature overflows to -inf only
        probabilities = torch.softmax(truncate(below / options.temperature, options), -1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def skip(self, draws: int, vocabulary: int) -> None:
        """Leave out what so many draws would have used of the seed's random numbers."""
        if self._sampling.temperature == 0.0:
            return
        even = torch.full((vocabulary,), 1.0 / vocabulary)
        for _ in range(draws):
            torch.multinomial(even, 1, generator=self._generator)


def truncate(logits: Tensor, options: Sampling) -> Tensor:
    """``logits`` (vocab,) with everything outside top-k and the top-p nucleus at -inf.

    The nucleus is the smallest set of most likely tokens whose probability reaches ``top_p``
    (Holtzman et al., arXiv 1904.09751).
    """
    if 0 < options.top_k < len(logits):
        threshold = logits.topk(options.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if options.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probabilities = torch.softmax(ordered, -1)
        outside = probabilities.cumsum(-1) - probabilities >= options.top_p
        outside[0] = False  # also where float32 makes 0 of a tiny top_p
        logits = logits.masked_fill(outside.scatter(0, order, outside), float("-inf"))
    return logits
