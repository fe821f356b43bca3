"""Draws models/vit-tiny/sample.jpg: a ship on the sea, for demonstrations and tests.

    python -m tools.models.draw_sample                    # draw, then classify

Everything in the picture is computed here (sky gradient, clouds and waves of smoothed noise, a
hull with deckhouse and funnel, haze, film grain), so it may be shared freely. Takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tools.models.common import REPO_ROOT

SIDE, HORIZON = 256, 138
Plane = NDArray[np.float64]


def smooth_noise(random: np.random.Generator, rows: int, cols: int) -> Plane:
    """Noise of rows x cols cells, enlarged smoothly to SIDE x SIDE, in [0, 1]."""
    cells = Image.fromarray(random.random((rows, cols)).astype(np.float32))
    plane = np.asarray(cells.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.clip(plane, 0.0, 1.0)


def mix(low: tuple[int, int, int], high: tuple[int, int, int], weight: Plane) -> Plane:
    """Colours (SIDE, SIDE, 3) between low (weight 0) and high (weight 1)."""
    start, end = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    colours: Plane = start + (end - start) * weight[..., None]
    return colours


def background(random: np.random.Generator) -> Image.Image:
    """Sky with clouds above the horizon, sea with waves and glitter below it."""
    row = np.arange(SIDE, dtype=np.float64)[:, None] * np.ones((1, SIDE))
    sky = mix((92, 142, 200), (206, 222, 236), np.clip(row / HORIZON, 0, 1))
    clouds = 0.6 * smooth_noise(random, 7, 5) + 0.4 * smooth_noise(random, 16, 11)
    sky += (np.clip(clouds - 0.5, 0, 1) * 150)[..., None]
    depth = np.clip((row - HORIZON) / (SIDE - HORIZON), 0, 1)
    waves = 0.5 * smooth_noise(random, 60, 9) + 0.5 * smooth_noise(random, 120, 30)
    sea = mix((88, 126, 156), (22, 62, 98), depth**0.7)
    sea += ((waves - 0.5) * (14 + 60 * depth))[..., None]
    pixels = np.where(row[..., None] < HORIZON, sky, sea)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_ship(picture: Image.Image) -> None:
    """A freighter seen from the side, with its mirror image in the water."""
    pen = ImageDraw.Draw(picture)
    pen.polygon([(40, 168), (216, 168), (206, 186), (52, 186)], fill=(30, 52, 76))
    pen.polygon([(22, 128), (236, 122), (214, 168), (42, 168)], fill=(44, 48, 58))
    pen.polygon([(38, 157), (219, 157), (214, 168), (42, 168)], fill=(128, 44, 38))
    pen.line([(22, 128), (236, 122)], fill=(208, 208, 204), width=3)
    pen.rectangle((44, 84, 88, 128), fill=(232, 232, 226))
    pen.rectangle((50, 68, 82, 86), fill=(222, 222, 216))
    for top in (73, 92, 106):
        for left in range(52, 80, 7):
            pen.rectangle((left, top, left + 4, top + 4), fill=(58, 74, 92))
    pen.rectangle((60, 44, 73, 69), fill=(176, 58, 44))
    pen.rectangle((60, 44, 73, 49), fill=(34, 34, 36))
    for left, width, colour in (
        (96, 30, (164, 84, 52)), (129, 28, (70, 104, 132)), (160, 30, (176, 148, 84)),
    ):  # fmt: skip
        pen.rectangle((left, 108, left + width, 125), fill=colour)
    for mast in (142, 204):
        pen.line([(mast, 62), (mast, 124)], fill=(84, 82, 80), width=3)
        pen.line([(mast, 66), (mast - 26, 106)], fill=(110, 106, 102), width=1)
    pen.line([(36, 170), (222, 170)], fill=(214, 226, 232), width=3)


def draw(seed: int) -> Image.Image:
    """The finished picture."""
    random = np.random.default_rng(seed)
    picture = background(random)
    draw_ship(picture)
    picture = picture.filter(ImageFilter.GaussianBlur(1.3))
    pixels = np.asarray(picture, dtype=np.float64)
    light = 0.9 + 0.2 * smooth_noise(random, 4, 4)
    grain = random.normal(0.0, 4.0, (SIDE, SIDE, 1)) + random.normal(0.0, 2.0, (SIDE, SIDE, 3))
    pixels = np.clip(pixels * light[..., None] + grain, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def classify(picture: Path, model: Path) -> list[tuple[str, float]]:
    """Classes and probabilities, the likeliest first, by the exported model."""
    from transformers import ViTForImageClassification, ViTImageProcessor

    network = ViTForImageClassification.from_pretrained(model, dtype=torch.float32)
    processor = ViTImageProcessor.from_pretrained(model)
    with torch.no_grad(), Image.open(picture) as image:
        pixels = processor(image.convert("RGB"), return_tensors="pt")
        chances = network(**pixels).logits[0].softmax(0)
    names = network.config.id2label
    order = chances.argsort(descending=True).tolist()
    return [(names[place], float(chances[place])) for place in order]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=REPO_ROOT / "models" / "vit-tiny")
    parser.add_argument("--out", type=Path, help="default: sample.jpg in the model's folder")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    out = args.out or args.model / "sample.jpg"
    draw(args.seed).save(out, quality=88)
    print(f"{out.name}: {out.stat().st_size} bytes")
    for name, chance in classify(out, args.model)[:3]:
        print(f"{name:12s} {chance:.3f}")


if __name__ == "__main__":
    main()
