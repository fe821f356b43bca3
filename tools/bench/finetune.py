"""Fine-tune the shipped models: ours, the published form and what is left out in turn.

    python -m tools.bench.finetune build/finetuned            # hours on two cores
    python -m tools.bench.fidelity --only finetuned --finetuned build/finetuned

All variants of a model get the same steps, batches, data and distillation. Those of the published
form learn faster (it needs it: at the rates of ours it gained less). A variant whose folder is
there is left out, an interrupted one goes on.

Progress is measured on pictures of the test set, since the models have seen all that train, and
the result on others of it (:data:`MEASURE`).
"""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from astra_mesh.bundle import open_bundle
from astra_mesh.quality import FitOptions
from astra_mesh.quality.finetuning import finetune
from astra_mesh.quality.pictures import interleaved
from astra_mesh.tune.options import TuneOptions
from tools.bench.fidelity import ASTRA_CODEWORDS, copied, say
from tools.lab import options
from tools.models.common import REPO_ROOT, default_data_root

HOLD_OUT, MEASURE = 1_000, 2_000  # pictures of the test set, one after the other; there are more
STEPS = 250
OURS = FitOptions(rates=(16, 32, 64), default_rate=64)
VIT = TuneOptions(steps=STEPS, batch=32, check=125, patience=0, held_out=HOLD_OUT, distributed=True)
GPT2 = TuneOptions(steps=STEPS, batch=8, check=125, patience=0, held_out=40)


@dataclass(frozen=True)
class Variant:
    """One run."""

    model: str
    fit: FitOptions
    tune: TuneOptions


def published(groups: int) -> FitOptions:
    """The codec of the paper."""
    return FitOptions(codec="astra", history=0, rates=(), groups=groups, codewords=ASTRA_CODEWORDS)


def variants() -> dict[str, Variant]:
    """By the name of its folder."""
    found = {}
    for kind, model, tune in (("gpt", "tiny-gpt2", GPT2), ("vit", "vit-tiny", VIT)):
        faster = replace(tune, learning_rate=1e-4, codebook_rate=5e-4)
        found[f"{kind}-ours"] = Variant(model, OURS, tune)
        found[f"{kind}-nonoise"] = Variant(model, OURS, replace(tune, noise=0.0))
        for groups in (1, 16, 32):
            found[f"{kind}-astra{groups}"] = Variant(model, published(groups), faster)
    found["vit-long"] = Variant("vit-tiny", OURS, replace(VIT, steps=2000, check=250))
    found["vit-single"] = Variant("vit-tiny", OURS, replace(VIT, distributed=False))
    quiet = replace(found["vit-astra1"].tune, noise=0.0)
    found["vit-astra1nonoise"] = Variant("vit-tiny", published(1), quiet)
    return found


def pictures(data: Path, work: Path) -> tuple[Path, Path]:
    """Two archives of test pictures: to measure progress on, and all others, for the result."""
    hold_out, measure = work / "hold-out.zip", work / "measure.zip"
    if measure.exists():
        return hold_out, measure
    with zipfile.ZipFile(data / "datasets/cifar10_test_jpeg.zip") as box:
        names = interleaved([n for n in box.namelist() if n.lower().endswith((".jpg", ".png"))])
        parts = names[:HOLD_OUT], names[HOLD_OUT:]
        for path, part in zip((hold_out, measure), parts, strict=True):
            with zipfile.ZipFile(path, "w") as out:
                for name in part:
                    out.writestr(name, box.read(name))
    return hold_out, measure


def texts(data: Path, work: Path) -> tuple[Path, Path]:
    """The plays: what trains, and the last tenth."""
    play = (data / "datasets/tinyshakespeare/input.txt").read_text(encoding="utf-8")
    train, valid = work / "train.txt", work / "valid.txt"
    cut = int(0.9 * len(play))
    train.write_text(play[:cut], encoding="utf-8")
    valid.write_text(play[cut:], encoding="utf-8")
    return train, valid


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the new models")
    parser.add_argument("--only", nargs="*", choices=sorted(variants()), default=list(variants()))
    parser.add_argument("--data", type=options.existing_folder, default=str(default_data_root()))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    hold_out, _ = pictures(args.data, args.out)
    train, _ = texts(args.data, args.out)
    for name in args.only:
        if (args.out / name / "config.json").exists():
            continue
        one = variants()[name]
        source = args.out / "start" / one.model
        if not source.exists():
            source.parent.mkdir(exist_ok=True)
            copied(REPO_ROOT / "models" / one.model, source.parent)
        vit = one.model == "vit-tiny"
        found = finetune(
            open_bundle(source),
            args.data / "datasets/cifar10_train_jpeg.zip" if vit else train,
            one.fit,
            one.tune,
            args.out / name,
            held_out_data=hold_out if vit else None,
        )
        assert found is not None
        say(f"{name}: best at step {found.tuned.best_step}, held-out loss {found.tuned.best:.4f}")


if __name__ == "__main__":
    main()
