"""Comparing a plan's output with the single device's, added up over samples.

Keys of the metrics (all but the first three compare with the single device on the same inputs):

``nats_per_token``, ``perplexity``   generate: of the data's next tokens
``accuracy``                         classify: where the data say the class
``nats_increase``, ``accuracy_change``  the difference to the single device
``kl``                               generate, classify: KL(single || plan), nats per token or item
``agreement``                        generate, classify: share with the same most likely answer
``cosine``, ``cosine_min``           embed: mean and smallest cosine of the vectors
``loss_error``                       standard error of the loss (astra_mesh.bundle.quality); missing
                                     with fewer than ``INPUTS`` inputs that tell of it
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.engine.reference import hidden_rows, pooled
from astra_mesh.engine.shard import ShardRun
from astra_mesh.families import Model
from astra_mesh.families.spec import Pooling
from astra_mesh.quality.sample import Sample

EXP_MAX = 700.0  # exp() of more is no float
INPUTS = 2  # that a standard error needs at least


class Meter(ABC):
    """Adds up one codec's results; the same class measures the single device itself."""

    pooling: Pooling

    def __init__(self, model: Model) -> None:
        self.model = model

    @abstractmethod
    def output(self, runs: list[ShardRun]) -> Tensor:
        """What is compared, of finished runs."""

    @abstractmethod
    def add(self, found: Tensor, truth: Tensor, sample: Sample) -> None:
        """Count one sample: a plan's output and the single device's."""

    @abstractmethod
    def baseline(self) -> dict[str, float]:
        """What does not compare with the single device."""

    @abstractmethod
    def metrics(self, baseline: dict[str, float]) -> dict[str, float]:
        """All means, given the single device's own."""


class _Divergence:
    """KL and agreement of logits over items."""

    def __init__(self) -> None:
        self.kl, self.same, self.items = 0.0, 0, 0

    def add(self, found: Tensor, truth: Tensor) -> None:
        """Count rows of logits (N, classes)."""
        kl = F.kl_div(
            found.log_softmax(-1), truth.log_softmax(-1), reduction="sum", log_target=True
        )
        self.kl += float(kl)
        self.same += int((found.argmax(-1) == truth.argmax(-1)).sum())
        self.items += len(found)

    def means(self) -> dict[str, float]:
        """Per item; rounding can make the KL of equal logits a little negative."""
        return {"kl": max(0.0, self.kl / self.items), "agreement": self.same / self.items}


class GenerateMeter(Meter):
    """Next-token logits at every position."""

    pooling: Pooling = "all"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._divergence = _Divergence()
        self._nats, self._predicted = 0.0, 0
        self._more: list[tuple[float, int]] = []  # nats more than the single device, tokens

    def output(self, runs: list[ShardRun]) -> Tensor:
        """(T, vocab) float32."""
        return self.model.logits(hidden_rows(runs)).float()

    def add(self, found: Tensor, truth: Tensor, sample: Sample) -> None:
        """See :class:`Meter`."""
        self._divergence.add(found, truth)
        assert sample.input.tokens is not None
        wanted = sample.input.tokens[1:]
        nats = float(F.cross_entropy(found[:-1], wanted, reduction="sum"))
        alone = float(F.cross_entropy(truth[:-1], wanted, reduction="sum"))
        self._more.append((nats - alone, len(wanted)))
        self._nats += nats
        self._predicted += len(wanted)

    def baseline(self) -> dict[str, float]:
        """See :class:`Meter`."""
        nats = self._nats / max(1, self._predicted)
        return {"nats_per_token": nats, "perplexity": math.exp(min(nats, EXP_MAX))}

    def metrics(self, baseline: dict[str, float]) -> dict[str, float]:
        """See :class:`Meter`."""
        own = self.baseline()
        own["nats_increase"] = own["nats_per_token"] - baseline["nats_per_token"]
        if len(self._more) >= INPUTS:
            grown = math.exp(min(own["nats_increase"], 25.0))
            own["loss_error"] = _ratio_error(self._more) * grown
        return own | self._divergence.means()


class ClassifyMeter(Meter):
    """Class logits."""

    pooling: Pooling = "class"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._divergence = _Divergence()
        self._right, self._labelled = 0, 0
        self._lost: list[float] = []  # of each labelled input: 1 if it became wrong, -1 if right
        self._other: list[float] = []  # of each input: 1 where the most likely class is another

    def output(self, runs: list[ShardRun]) -> Tensor:
        """(classes,) float32."""
        return self.model.classify(pooled(runs)).float()

    def add(self, found: Tensor, truth: Tensor, sample: Sample) -> None:
        """See :class:`Meter`."""
        self._divergence.add(found[None], truth[None])
        best, alone = int(found.argmax()), int(truth.argmax())
        self._other.append(float(best != alone))
        if sample.label is not None:
            self._right += best == sample.label
            self._lost.append(float(alone == sample.label) - float(best == sample.label))
            self._labelled += 1

    def baseline(self) -> dict[str, float]:
        """See :class:`Meter`."""
        return {"accuracy": self._right / self._labelled} if self._labelled else {}

    def metrics(self, baseline: dict[str, float]) -> dict[str, float]:
        """See :class:`Meter`."""
        own = self.baseline()
        if own:
            own["accuracy_change"] = own["accuracy"] - baseline["accuracy"]
        told = self._lost if "accuracy" in own else self._other
        if len(told) >= INPUTS:
            # No answer changed among n inputs: the true share may still be about 1/n.
            own["loss_error"] = max(_mean_error(told), 1 / len(told))
        return own | self._divergence.means()


class EmbedMeter(Meter):
    """Sentence vectors."""

    pooling: Pooling = "mean"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._cosines: list[float] = []

    def output(self, runs: list[ShardRun]) -> Tensor:
        """(D,) float32."""
        return pooled(runs).float()

    def add(self, found: Tensor, truth: Tensor, sample: Sample) -> None:
        """See :class:`Meter`."""
        self._cosines.append(float(torch.cosine_similarity(found, truth, dim=0)))

    def baseline(self) -> dict[str, float]:
        """See :class:`Meter`."""
        return {}

    def metrics(self, baseline: dict[str, float]) -> dict[str, float]:
        """See :class:`Meter`."""
        mean = math.fsum(self._cosines) / len(self._cosines)
        own = {"cosine": mean, "cosine_min": min(self._cosines)}
        if len(self._cosines) >= INPUTS:
            own["loss_error"] = _mean_error(self._cosines)
        return own


def _mean_error(values: list[float]) -> float:
    """Standard error of a mean of ``INPUTS`` or more values."""
    return _ratio_error([(value, 1) for value in values])


def _ratio_error(pairs: list[tuple[float, int]]) -> float:
    """Standard error of ``sum of values / sum of weights`` over independent (value, weight)."""
    count, total = len(pairs), sum(weight for _, weight in pairs)
    if total == 0:
        return 0.0
    ratio = math.fsum(value for value, _ in pairs) / total
    squares = math.fsum((value - ratio * weight) ** 2 for value, weight in pairs)
    return math.sqrt(squares * count / (count - 1)) / total


def make_meter(task: str, model: Model) -> Meter:
    """The meter of a task that the model does."""
    meters: dict[str, Callable[[Model], Meter]] = {
        "generate": GenerateMeter,
        "classify": ClassifyMeter,
        "embed": EmbedMeter,
    }
    return meters[task](model)
