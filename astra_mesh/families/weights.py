"""Reading and writing a checkpoint's tensors with errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from astra_mesh.errors import BadBundleError


class Export:
    """Collects a model's tensors under the names of a checkpoint; the inverse of :class:`Weights`.

    Norms whose affine part is folded into the next layer are written as weight one and bias zero,
    so that the checkpoint means the same to everybody who reads the format.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor | None) -> None:
        """One tensor; None is left out."""
        if tensor is not None:
            self.tensors[name] = tensor.detach().cpu().contiguous().clone()

    def dense(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        """A linear layer."""
        self.put(f"{name}.weight", weight)
        self.put(f"{name}.bias", bias)

    def split(
        self, names: Sequence[str], sizes: Sequence[int], weight: Tensor, bias: Tensor | None
    ) -> None:
        """Stacked linear layers, each under its own name."""
        biases = [None] * len(names) if bias is None else list(bias.split(list(sizes)))
        for name, part, shift in zip(names, weight.split(list(sizes)), biases, strict=True):
            self.dense(name, part, shift)

    def unit_norm(self, name: str, size: int, *, bias: bool) -> None:
        """A norm whose affine part lies in the next layer."""
        self.put(f"{name}.weight", torch.ones(size))
        if bias:
            self.put(f"{name}.bias", torch.zeros(size))


class Weights:
    """A checkpoint's tensors, as float32, each checked for its shape."""

    def __init__(self, tensors: Mapping[str, Tensor], prefixes: Sequence[str] = ("",)) -> None:
        self._tensors = tensors
        self._prefixes = prefixes

    def _find(self, name: str) -> Tensor | None:
        for prefix in self._prefixes:
            if prefix + name in self._tensors:
                return self._tensors[prefix + name]
        return None

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return self._find(name) is not None

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor, float32; BadBundleError if it is missing or of another shape."""
        tensor = self._find(name)
        if tensor is None:
            raise BadBundleError(
                f"the weights lack {name}; is this the checkpoint that config.json describes?"
            )
        if tuple(tensor.shape) != shape:
            raise BadBundleError(
                f"{name} has shape {tuple(tensor.shape)} where config.json implies {shape}"
            )
        return tensor.float()

    def maybe(self, name: str, *shape: int) -> Tensor | None:
        """As :meth:`take`, None if absent."""
        return self.take(name, *shape) if self.has(name) else None

    def stacked(
        self, names: Sequence[str], inner: int, outers: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Linear layers over the same input as one: weight (sum of outers, inner) and bias.

        Either all of them have a bias or none.
        """
        weights = [self.take(f"{n}.weight", o, inner) for n, o in zip(names, outers, strict=True)]
        biases = None
        if any(self.has(f"{name}.bias") for name in names):
            biases = [self.take(f"{n}.bias", o) for n, o in zip(names, outers, strict=True)]
        return torch.cat(weights), None if biases is None else torch.cat(biases)

    def rows(self, name: str) -> int:
        """The first dimension of a matrix whose size the config does not state."""
        tensor = self._find(name)
        if tensor is None or tensor.dim() != 2:
            raise BadBundleError(
                f"the weights lack {name}: this is a bare encoder; use a checkpoint that was "
                "trained for the task"
            )
        return int(tensor.shape[0])
