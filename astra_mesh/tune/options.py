"""How a model is fine-tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from astra_mesh.errors import InputError

Trained = Literal["all", "lora", "codebook"]
Covariance = Literal["diagonal", "full"]


@dataclass(frozen=True)
class TuneOptions:
    """Defaults suit small models; see docs/fidelity.md for what was measured."""

    steps: int = 400
    batch: int = 32  # sequences of one process
    learning_rate: float = 3e-5  # of the weights
    codebook_rate: float = 1e-4  # of codewords and centers; predictions: a tenth
    decay: float = 0.01
    warmup: float = 0.05  # of the steps
    trained: Trained = "all"
    lora_rank: int = 8
    noise: float = 0.3  # lambda of the noise-augmented quantization; 0: none
    covariance: Covariance = "diagonal"  # of the noise
    commitment: float = 5e-4
    reconstruction: float = 0.1  # weight of the codebook's own error
    distill: float = 0.9  # share of the full-precision model's answers in the loss; 0: data only
    peers: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # drawn for each batch
    uneven: bool = True  # boundaries drawn at random, else even
    distributed: bool = True  # class token on every peer, where there is one
    precision: Literal["fp32", "bf16"] = "fp32"
    check: int = 50  # steps between evaluations and checkpoints
    patience: int = 5  # evaluations without improvement before it stops; 0: never
    held_out: int = 64  # sequences for the evaluations
    seed: int = 0

    def check_values(self) -> None:
        """InputError for settings that cannot be."""
        if min(self.steps, self.batch, self.check, self.held_out, self.lora_rank) < 1:
            raise InputError("steps, batch, check, held_out and lora_rank must be at least 1")
        if not self.peers or not all(1 <= count <= 64 for count in self.peers):
            raise InputError("peers must lie in 1..64")
        if not 0 <= self.distill <= 1:
            raise InputError(f"distill must lie in 0..1, it is {self.distill}")
        for name in ("noise", "commitment", "reconstruction", "decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"{name} must be a finite number of at least 0, it is {value}")
        if not 0 < self.learning_rate < 1 or not 0 < self.codebook_rate < 1:
            raise InputError("learning rates must lie between 0 and 1")
