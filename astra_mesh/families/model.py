"""A loaded model: embedding, blocks, final norm and heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from astra_mesh.errors import EmptyPromptError, InputError, PromptTooLongError, WrongTaskError
from astra_mesh.families.block import Block, Norm
from astra_mesh.families.spec import ModelSpec


@dataclass(frozen=True)
class ModelInput:
    """What one request reads; exactly what the family wants is set.

    ``tokens`` (T,) int64, ``token_types`` (T,) int64, ``pixels`` (C, H, W) float32.
    """

    tokens: Tensor | None = None
    token_types: Tensor | None = None
    pixels: Tensor | None = None


class Model(nn.Module):
    """Base of the families. Inference only: float parameters, one sequence at a time."""

    def __init__(self, spec: ModelSpec, blocks: list[Block]) -> None:
        super().__init__()
        self.spec = spec
        self.block_list = nn.ModuleList(blocks)
        self.labels: dict[int, str] = {}
        self.image_shape: tuple[int, int, int] | None = None  # C, H, W, where it reads images

    def block(self, index: int) -> Block:
        """Block ``index``."""
        block = self.block_list[index]
        assert isinstance(block, Block)
        return block

    @abstractmethod
    def count_tokens(self, inputs: ModelInput) -> int:
        """T, class token included; InputError where the input does not fit the model."""

    @abstractmethod
    def embed(self, inputs: ModelInput, start: int, stop: int) -> Tensor:
        """Input of the first block for positions ``start`` to ``stop``: (stop - start, D)."""

    @abstractmethod
    def final(self, x: Tensor) -> Tensor:
        """Output of the last block (T, D) to the hidden rows (T, D) that the heads read."""

    @property
    def final_norm(self) -> Norm | None:
        """All that :meth:`final` does; None where it does nothing."""
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (T, vocab) of final hidden rows (T, D)."""
        raise WrongTaskError(f"a {self.spec.family} model does not generate text")

    def classify(self, pooled: Tensor) -> Tensor:
        """Class logits (classes,) of the pooled class token (D,)."""
        raise WrongTaskError(f"this {self.spec.family} model does not classify")

    def require(self, task: str) -> None:
        """WrongTaskError unless the model does ``task``."""
        require(self.spec.family, self.spec.tasks, task)


def require(family: str, tasks: Collection[str], task: str, others: Sequence[str] = ()) -> None:
    """WrongTaskError unless ``task`` is one of those that a model does; it names ``others``."""
    if task not in tasks:
        able = ", ".join(tasks) or "nothing"
        raise WrongTaskError(
            f"this {family} model cannot {task}; it can {able}: choose another model"
            f"{such_as(others)}"
        )


def such_as(names: Sequence[str]) -> str:
    """The end of a sentence that asks for another one."""
    return f", such as {', '.join(names)}" if names else ""


def check_tokens(spec: ModelSpec, inputs: ModelInput) -> int:
    """T of a text input; EmptyPromptError, PromptTooLongError, InputError."""
    if inputs.tokens is None:
        raise InputError(f"a {spec.family} model reads text; give a text, not an image")
    count = int(inputs.tokens.shape[0])
    low, high = (int(inputs.tokens.min()), int(inputs.tokens.max())) if count else (0, 0)
    check_ids(spec, count, low, high)
    return count


def check_ids(spec: ModelSpec, count: int, low: int, high: int) -> None:
    """Judges so many token ids of this range; errors as :func:`check_tokens`."""
    if count == 0:
        raise EmptyPromptError("the input is empty; give at least one token of text")
    if count > spec.max_tokens:
        raise PromptTooLongError(
            f"the input has {count} tokens, the model's context holds {spec.max_tokens}; shorten it"
        )
    if low < 0 or high >= spec.vocab_size:
        raise InputError(
            f"token ids must lie in 0..{spec.vocab_size - 1}, the input has {low}..{high}; "
            "was it made by another model's tokenizer?"
        )


def labels_of(values: object, count: int) -> dict[int, str]:
    """``id2label`` of a config as int to name; classes without a name get ``LABEL_i``."""
    found: dict[int, str] = {i: f"LABEL_{i}" for i in range(count)}
    if isinstance(values, dict):
        for key, name in values.items():
            if str(key).isdigit() and int(key) < count:
                found[int(key)] = str(name)
    return found


def load_dtype(model: Model, dtype: torch.dtype) -> Model:
    """The model in evaluation mode, its parameters in ``dtype`` and without gradients."""
    return model.to(dtype).eval().requires_grad_(False)
