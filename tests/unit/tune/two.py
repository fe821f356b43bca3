"""Fine-tunes as one of several processes: what ``torchrun -m`` runs in test_torchrun.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from astra_mesh.bundle import open_bundle
from astra_mesh.quality import FitOptions
from astra_mesh.quality.finetuning import finetune
from astra_mesh.quant.fit import Progress
from astra_mesh.tune.options import TuneOptions

FIT = FitOptions(codewords=16, rates=(4, 8), default_rate=8, iterations=2, max_tokens=2000)
STEPS = 6


def run(
    bundle: Path,
    data: Path,
    output: Path,
    batch: int,
    work: Path | None = None,
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Without what is drawn for each sequence or scaled by the batch: the mean of two half
    batches' gradients is then the gradient of the whole."""
    options = TuneOptions(
        steps=STEPS,
        batch=batch,
        learning_rate=1e-3,
        noise=0.0,
        commitment=0.0,
        reconstruction=0.0,
        uneven=False,
        check=3,
        held_out=6,
    )
    torch.set_num_threads(1)
    finetune(open_bundle(bundle), data, FIT, options, output, progress, work=work)


if __name__ == "__main__":
    model, texts, new = map(Path, sys.argv[1:4])
    if "apart" in sys.argv:  # as on machines that share no folder
        new = new / os.environ["RANK"] / "new"
    run(model, texts, new, int(sys.argv[4]), new.with_name("work"))
