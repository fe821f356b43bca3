"""What fine-tuning minimises: one batch under a random plan, against data and the full model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_mesh.families.model import Model, ModelInput
from astra_mesh.quant.mixed import Shares, arrange, mixed_block, pooled_class, pooled_mean, shares
from astra_mesh.tune.options import TuneOptions
from astra_mesh.tune.quantizer import Coding, TunedBook


@dataclass(frozen=True)
class Batch:
    """Sequences of one length; exactly what the family reads is set."""

    tokens: Tensor | None = None  # (B, T) int64
    token_types: Tensor | None = None  # (B, T) int64
    pixels: Tensor | None = None  # (B, C, H, W) float32
    labels: Tensor | None = None  # (B,) int64, -1 where unknown

    def __len__(self) -> int:
        given = self.pixels if self.tokens is None else self.tokens
        assert given is not None
        return len(given)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved = (None if one is None else one.to(device) for one in vars(self).values())
        return Batch(*moved)


def draw_shares(
    tokens: int, batch: int, options: TuneOptions, generator: torch.Generator, has_class: bool
) -> Shares:
    """Shards for a batch: their number for all, uneven boundaries for each sequence."""
    pick = int(torch.randint(len(options.peers), (), generator=generator))
    peers = min(options.peers[pick], tokens)
    if options.uneven:
        places = torch.rand(batch, tokens - 1, generator=generator).argsort(1)[:, : peers - 1] + 1
        bounds = places.sort(1).values
    else:
        edges = [tokens * i // peers for i in range(1, peers)]
        bounds = torch.tensor(edges, dtype=torch.int64).expand(batch, -1)
    return shares(bounds, tokens, distributed=options.distributed and has_class)


class Objective(nn.Module):
    """The model and its codebook as one module, so that data-parallel training can wrap it."""

    def __init__(
        self, model: Model, book: TunedBook, teacher: Model | None, task: str, options: TuneOptions
    ) -> None:
        super().__init__()
        self.model, self.book = model, book
        self._teacher = [teacher]  # in a list: no part of this module
        self.task, self.options = task, options

    def forward(
        self, batch: Batch, held: Shares, stages: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The loss, and its parts (3,): data, distillation, reconstruction.

        The commitment loss has the reconstruction's value; only their gradients differ.
        """
        hidden, coding = self.hidden(batch, held, stages, generator)
        output = self.answers(self.model, hidden, held)
        data = self.data_loss(output, batch)
        distill = self.distill_loss(output, batch)
        commitment, error = coding.penalties()
        share = self.options.distill if data is not None else 1.0
        total = share * distill
        if data is not None:
            total = total + (1 - share) * data
        total = total + self.options.commitment * commitment + self.options.reconstruction * error
        zero = total.new_zeros(())
        parts = [zero if data is None else data, distill, error]
        return total, torch.stack([part.detach().to(total) for part in parts])

    def hidden(
        self, batch: Batch, held: Shares, stages: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Coding]:
        """Final rows (T', B, D) under a plan."""
        model, book = self.model, self.book
        coding = Coding(book, stages, model, held, generator)
        x = arrange(embed(model, batch), held)
        mask = held.masks(model.spec.causal).to(x.device)
        first = book.codebook.first_block
        astra = book.codebook.codec == "astra"
        for index in range(model.spec.num_hidden_layers):
            block = model.block(index)
            rebuilt: Tensor | None = None
            if index < first:
                coding.first(block.normalize(x))
            elif astra:
                rebuilt = block.normalize(coding(index, x))
            else:
                rebuilt = coding(index, block.normalize(x))
            x = mixed_block(block, x, mask, rebuilt)
        return model.final(x), coding

    def answers(self, model: Model, hidden: Tensor, held: Shares) -> Tensor:
        """Logits (B, classes) or (T, B, vocab), or sentence vectors (B, D)."""
        if self.task == "classify":
            return model.classify(pooled_class(hidden, held)).float()
        if self.task == "generate":
            return model.logits(hidden).float()
        return F.normalize(pooled_mean(hidden, held).float(), dim=-1)

    def data_loss(self, output: Tensor, batch: Batch) -> Tensor | None:
        """Cross-entropy with what the data say; None where they say nothing."""
        if self.task == "generate":
            assert batch.tokens is not None
            wanted = batch.tokens.T[1:]
            return F.cross_entropy(output[:-1].flatten(0, 1), wanted.flatten())
        if self.task == "classify" and batch.labels is not None and bool((batch.labels >= 0).any()):
            return F.cross_entropy(output, batch.labels, ignore_index=-1)
        return None

    def distill_loss(self, output: Tensor, batch: Batch) -> Tensor:
        """KL from the teacher's answers per item, or squared distance of sentence vectors."""
        (teacher,) = self._teacher
        if teacher is None:
            return output.new_zeros(())
        with torch.no_grad():
            wanted = self.answers(teacher, *alone(teacher, batch))
        if self.task == "embed":
            return 2 - 2 * (output * wanted).sum(-1).mean()
        found = output.flatten(0, -2).log_softmax(-1)
        return F.kl_div(
            found, wanted.flatten(0, -2).log_softmax(-1), reduction="batchmean", log_target=True
        )


def embed(model: Model, batch: Batch) -> Tensor:
    """Input of the first block (B, T, D), differentiable."""

    def one(index: int) -> ModelInput:
        parts = (batch.tokens, batch.token_types, batch.pixels)
        return ModelInput(*(None if part is None else part[index] for part in parts))

    first = one(0)
    tokens = model.count_tokens(first)
    return torch.stack([model.embed(one(i), 0, tokens) for i in range(len(batch))])


def alone(model: Model, batch: Batch) -> tuple[Tensor, Shares]:
    """Final rows (T, B, D) on a single device."""
    x = embed(model, batch)
    held = Shares(torch.zeros(x.shape[:2], dtype=torch.int64))
    mask = held.masks(model.spec.causal)[..., : x.shape[1]].to(x.device)
    x = x.transpose(0, 1)
    for index in range(model.spec.num_hidden_layers):
        x = mixed_block(model.block(index), x, mask, x[:0])
    return model.final(x), held
