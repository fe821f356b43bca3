"""Trains models/vit-tiny: a small vision transformer for the ten classes of CIFAR-10.

    python -m tools.models.train_vit_tiny                 # train, resume where a run stopped
    python -m tools.models.train_vit_tiny --evaluate      # measure the exported folder

Made for a small budget: ten epochs, about an hour of one free CPU core (a GPU is used where there
is one). What makes the budget go far, each with its source:
    * half of the patches are dropped in most of the training: PatchDropout, Liu et al. 2022
      (arXiv:2208.07220); the last part sees all of them;
    * attention starts as in mimetic initialization, Trockman & Kolter 2023 (arXiv:2305.09828),
      on sinusoidal 2-D positions (Vaswani et al. 2017, arXiv:1706.03762);
    * Muon for the matrices (see common.py), label smoothing (Szegedy et al. 2015,
      arXiv:1512.00567), random crops and flips, an average of the weights.

The exported folder is what transformers' ViTForImageClassification reads and writes.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tools.models.common import (
    Block,
    Curve,
    Optimiser,
    Reporter,
    autocast,
    load_checkpoint,
    one_cycle,
    pick_device,
    run,
    save_checkpoint,
    step_generator,
    training_parser,
    write_weights,
)

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TRAIN_SET, TEST_SET = "datasets/cifar10_train_jpeg.zip", "datasets/cifar10_test_jpeg.zip"
SIDE, PATCH = 32, 4
GRID = SIDE // PATCH
TOKENS = GRID * GRID
EPS = 1e-6
DIM, DEPTH, HEADS = 128, 6, 4
BATCH, KEEP, FULL = 128, 32, 0.15  # images, patches kept, final fraction without dropping
MUON_LR, ADAM_LR, DECAY, SMOOTHING = 4e-3, 2e-3, 0.05, 0.05


def load_images(archive: Path) -> tuple[Tensor, Tensor]:
    """Decodes an archive of JPEGs in class folders: (N, 3, 32, 32) uint8 and (N,) labels."""
    with zipfile.ZipFile(archive) as box:
        rows = list(csv.DictReader(io.TextIOWrapper(box.open("labels.csv"))))
        images = np.empty((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            with Image.open(io.BytesIO(box.read(row["file"]))) as picture:
                images[place] = np.asarray(picture.convert("RGB"))
    labels = torch.tensor([CLASSES.index(row["file"].split("/")[0]) for row in rows])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def normalise(images: Tensor) -> Tensor:
    """uint8 pixels to floats in [-1, 1], as preprocessor_config.json says."""
    return images.float() / 127.5 - 1.0


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip, and random crop out of the image mirrored by four pixels; on uint8."""
    shift = torch.randint(0, 9, (2, len(images), 1), generator=generator)
    flip = torch.rand(len(images), 1, generator=generator) < 0.5
    line = torch.arange(-4, SIDE + 4).abs()
    line = torch.where(line >= SIDE, 2 * (SIDE - 1) - line, line)
    rows, cols = line[shift + torch.arange(SIDE)]
    cols = torch.where(flip, SIDE - 1 - cols, cols)
    pixel = (rows[:, :, None] * SIDE + cols[:, None, :]).flatten(1)  # (B, 1024)
    return images.flatten(2).gather(2, pixel[:, None].expand(-1, 3, -1)).view_as(images)


class LeanViT(nn.Module):
    """The network of transformers' ViTForImageClassification, with dropping of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * PATCH * PATCH, DIM)
        self.cls = nn.Parameter(torch.zeros(1, 1, DIM))
        self.position = nn.Parameter(torch.zeros(1, TOKENS + 1, DIM))
        self.blocks = nn.ModuleList(
            Block(DIM, HEADS, causal=False, gelu="none", dropout=0.0, eps=EPS) for _ in range(DEPTH)
        )
        self.ln = nn.LayerNorm(DIM, eps=EPS)
        self.classifier = nn.Linear(DIM, len(CLASSES))

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, 32, 32) to logits (B, 10); keep (B, K) names the patches not dropped."""
        patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)  # (B, 64, 48)
        position = self.position[0, 1:]
        if keep is not None:
            patches = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[2]))
            position = position[keep]
        cls = (self.cls + self.position[:, :1]).expand(len(images), -1, -1)
        x = torch.cat([cls, self.patch(patches) + position], dim=1)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(self.ln(x[:, 0]))
        return logits


def frequencies() -> Tensor:
    """Angular steps per patch of the position code: a quarter of DIM, spread over (0, pi)."""
    count = DIM // 4
    return (torch.arange(count) + 0.5) * (math.pi / count)


def position_code() -> Tensor:
    """Sinusoidal 2-D positions (64, DIM): for each frequency sin x, cos x, sin y, cos y."""
    place = torch.arange(GRID)
    axes = place.repeat(GRID), place.repeat_interleave(GRID)
    angles = [axis[:, None] * frequencies() for axis in axes]
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.stack(waves, dim=-1).flatten(1)


def mimetic(noise: float, identity: float) -> tuple[Tensor, Tensor]:
    """Factors (DIM, DIM) of noise Z + identity I, their columns and rows by falling weight."""
    target = noise * torch.randn(DIM, DIM) / DIM**0.5 + identity * torch.eye(DIM)
    u, s, vt = torch.linalg.svd(target)
    return u * s.sqrt(), s.sqrt()[:, None] * vt


@torch.no_grad()
def initialise(model: LeanViT) -> None:
    """Sinusoidal positions, mimetic attention with the paper's constants, zero classifier."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(model.classifier.weight)
    nn.init.normal_(model.cls, std=0.1)
    model.position[0, 1:] = 0.5 * position_code()
    for block in model.blocks:
        assert isinstance(block, Block)
        block.down.weight.mul_(0.3)
        value, out = mimetic(0.4, -0.4)
        block.value.weight.copy_(value.T)
        block.out.weight.copy_(out.T)
        for rows in torch.arange(DIM).view(HEADS, -1):
            query, key = mimetic(0.7, 0.7)
            block.query.weight[rows] = query[:, : len(rows)].T
            block.key.weight[rows] = key[: len(rows)]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """The fraction of the images whose largest logit is their label's."""
    hits = 0
    for first in range(0, len(images), 250):
        with autocast(device):
            output = model(normalise(images[first : first + 250].to(device)))
        logits = output if isinstance(output, Tensor) else output.logits
        hits += int((logits.argmax(1).cpu() == labels[first : first + 250]).sum())
    return hits / len(images)


def hf_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The lean module's weights under the names of ViTForImageClassification."""
    inner = {
        "ln1": "layernorm_before", "query": "attention.attention.query",
        "key": "attention.attention.key", "value": "attention.attention.value",
        "out": "attention.output.dense", "ln2": "layernorm_after",
        "up": "intermediate.dense", "down": "output.dense",
    }  # fmt: skip
    outer = {
        "cls": "vit.embeddings.cls_token", "position": "vit.embeddings.position_embeddings",
        "ln.weight": "vit.layernorm.weight", "ln.bias": "vit.layernorm.bias",
        "patch.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "patch.bias": "vit.embeddings.patch_embeddings.projection.bias",
    }  # fmt: skip
    named = {}
    for name, tensor in weights.items():
        if name.startswith("blocks."):
            _, number, part, kind = name.split(".")
            named[f"vit.encoder.layer.{number}.{inner[part]}.{kind}"] = tensor
        else:
            named[outer.get(name, name)] = tensor
    patch = outer["patch.weight"]
    named[patch] = named[patch].reshape(DIM, 3, PATCH, PATCH)
    return named


def export(weights: dict[str, Tensor], out: Path) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors (float16)."""
    config = {
        "architectures": ["ViTForImageClassification"], "model_type": "vit",
        "image_size": SIDE, "patch_size": PATCH, "num_channels": 3, "hidden_size": DIM,
        "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 4 * DIM,
        "hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": EPS,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dtype": "float16",
        "id2label": {str(place): name for place, name in enumerate(CLASSES)},
        "label2id": {name: place for place, name in enumerate(CLASSES)},
    }  # fmt: skip
    preprocessor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True,
        "size": {"height": SIDE, "width": SIDE}, "resample": 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    write_weights(hf_names(weights), out)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


class Batches:
    """Augmented batches and kept patches, fixed by seed and step."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int, steps: int) -> None:
        self.images, self.labels, self.seed, self.steps = images, labels, seed, steps
        self.full_from = round((1 - FULL) * steps)
        self.per_epoch = len(images) // BATCH

    def at(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normalised images (B, 3, 32, 32), labels (B,) and kept patches (B, KEEP) or None."""
        epoch, place = divmod(step, self.per_epoch)
        order = torch.randperm(len(self.images), generator=step_generator(self.seed, 1, epoch))
        chosen = order[place * BATCH : (place + 1) * BATCH]
        generator = step_generator(self.seed, 2, step)
        images = normalise(augment(self.images[chosen], generator))
        keep = None
        if step < self.full_from:
            keep = torch.rand(BATCH, TOKENS, generator=generator).argsort(1)[:, :KEEP]
        return images, self.labels[chosen], keep


def learn(
    model: LeanViT, optimiser: Optimiser, batches: Batches, step: int, device: torch.device
) -> float:
    """One training step; its loss."""
    images, labels, keep = batches.at(step)
    with autocast(device):
        logits = model(images.to(device), None if keep is None else keep.to(device))
        loss = F.cross_entropy(logits, labels.to(device), label_smoothing=SMOOTHING)
    loss.backward()
    factor = one_cycle(step, batches.steps)
    optimiser.step(MUON_LR * factor, ADAM_LR * factor, step)
    return float(loss.detach())


def train(args: argparse.Namespace) -> None:
    """Trains, resuming from the checkpoint where there is one, and exports at each check."""
    device = pick_device(args.device)
    torch.manual_seed(args.seed)
    batches = Batches(*load_images(args.data / TRAIN_SET), args.seed, args.steps)
    test_images, test_labels = load_images(args.data / TEST_SET)
    model = LeanViT()
    initialise(model)
    averaged = LeanViT().to(device)
    optimiser = Optimiser(model.to(device), decay=DECAY, ema=0.998)
    checkpoint = args.work / "checkpoint.pt"
    start = load_checkpoint(checkpoint, model, optimiser)
    curve = Curve(args.out / "training.csv", ["step", "seconds", "loss", "test_accuracy"], start)
    losses: list[float] = []
    with Reporter("vit-tiny", args.until or args.steps, start) as report:
        for done in report.steps():
            losses.append(learn(model, optimiser, batches, done - 1, device))
            report.advance(done, f"loss {np.mean(losses[-50:]):.3f}")
            if done % args.check and done < report.total:
                continue
            averaged.load_state_dict(optimiser.average)
            part = slice(None, None, 1 if done == args.steps else 10)  # on the way a tenth
            score = accuracy(averaged, test_images[part], test_labels[part], device)
            report.say(f"step {done}: loss {np.mean(losses):.4f}, accuracy {score:.4f}")
            curve.add(done, report.elapsed, float(np.mean(losses)), score)
            export(optimiser.average, args.out)
            save_checkpoint(checkpoint, model, optimiser, done)
            losses.clear()


def evaluate(args: argparse.Namespace) -> None:
    """Prints the accuracy of the exported folder, computed with transformers."""
    from transformers import ViTForImageClassification

    device = pick_device(args.device)
    model: nn.Module = ViTForImageClassification.from_pretrained(args.out, dtype=torch.float32)
    images, labels = load_images(args.data / TEST_SET)
    score = accuracy(model.to(device).eval(), images, labels, device)
    print(f"accuracy on {len(images)} test images: {score:.4f}")


def main() -> None:
    """Command line."""
    parser = training_parser(__doc__, "vit-tiny", steps=4000, check=250)
    parser.add_argument("--until", type=int, default=0, help="leave here, to resume later")
    run(parser, train, evaluate)


if __name__ == "__main__":
    main()
