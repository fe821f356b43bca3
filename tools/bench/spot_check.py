"""How far honest and lying peers are from the right codes: ``python -m tools.bench.spot_check``.

From it come the bounds of :mod:`astra_mesh.peer.spot_check`. Three shards of a shipped model; the
third checks another one. Honest peers compute in each number format, as seen by a peer in each;
liars send codes of another input, random ones, or those of another input in one block or token.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.engine.recheck import Deviation, Recheck
from astra_mesh.engine.reference import run_shards
from astra_mesh.engine.shard import Coded, ShardRun
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.families.precision import PRECISIONS, Precision, convert
from astra_mesh.plan.layout import Layout, make_layout
from astra_mesh.quant.codebook import Codebook, load_codebook
from astra_mesh.quant.codecs import PLAIN, PlainCodec, VectorCodec, make_codec

Alter = Callable[[int, int, Coded], Coded]
MODELS: Final = Path(__file__).resolve().parents[2] / "models"
ME: Final = 2  # the shard that checks
TOKENS: Final = 240  # of a text
_STEP: Final = 3_000  # characters from one text to the next


class Case:
    """A model with a code at one rate."""

    def __init__(self, name: str, book: Codebook | None, stages: int) -> None:
        self.name, self.book, self.stages = name, book, stages

    def request(
        self, theirs: Model, own: Model, given: ModelInput, alter: Alter | None = None
    ) -> tuple[list[Deviation], dict[tuple[int, int], Coded]]:
        """What the third shard finds about the one that it checks, and what was sent."""
        codec, other = self._codec(own), self._codec(theirs)
        layout = self._layout(own, given, codec)
        runs = [ShardRun(theirs, layout, i, other, given) for i in (0, 1)]
        runs.append(ShardRun(own, layout, ME, codec, given))
        sent = run_shards(runs, alter) if alter is not None else run_shards(runs)
        shard = self.checked(layout)
        kept = {
            (block, source): codes[taker]
            for (block, source), codes in sent.items()
            for taker in [shard if source == ME else ME]
            if taker in layout.receivers(source, block)
        }
        pooled = runs[shard].pooled() if layout.pooling == "class" else None
        steps = Recheck(own, layout, codec, given, shard, kept, pooled).blocks()
        return [one for one in steps if one is not None], sent

    def _codec(self, model: Model) -> PlainCodec | VectorCodec:
        return make_codec(self.name, model, self.book)

    def _layout(self, model: Model, given: ModelInput, codec: PlainCodec | VectorCodec) -> Layout:
        count = model.count_tokens(given)
        edges = [0, count // 3, 2 * count // 3, count]
        return make_layout(
            model.spec,
            list(itertools.pairwise(edges)),
            pooling="last" if model.spec.causal else "class",
            first_block=codec.first_block,
            stages=self.stages,
        )

    @staticmethod
    def checked(layout: Layout) -> int:
        """The class token's shard, or the one before the own."""
        return 0 if layout.pooling == "class" else 1


def liars(
    case: Case, model: Model, given: ModelInput, other: ModelInput
) -> Iterator[tuple[str, Sequence[Deviation]]]:
    """What is found about each kind of liar."""
    _, foreign = case.request(model, model, other)
    shard = 1 if model.spec.causal else 0
    middle = model.spec.num_hidden_layers // 2
    drawn = np.random.default_rng(0)

    def random_codes(codes: Coded) -> Coded:
        assert case.book is not None
        size = case.book.size
        return {
            n: [drawn.integers(0, size, one.shape).astype(one.dtype) for one in arrays]
            for n, arrays in codes.items()
        }

    def one_token(codes: Coded, false: Coded) -> Coded:
        return {
            n: [np.concatenate([b[:1], a[1:]]) for a, b in zip(arrays, false[n], strict=True)]
            for n, arrays in codes.items()
        }

    kinds: dict[str, Alter] = {
        "another input": lambda b, s, c: foreign[b, s] if s == shard else c,
        "one block": lambda b, s, c: foreign[b, s] if (s, b) == (shard, middle) else c,
        "one token": lambda b, s, c: one_token(c, foreign[b, s]) if s == shard else c,
    }
    if case.book is not None:
        kinds["random codes"] = lambda b, s, c: random_codes(c) if s == shard else c
    for kind, alter in kinds.items():
        yield kind, case.request(model, model, given, alter)[0]


def inputs_of(bundle: Bundle, model: Model, data: Path, count: int) -> list[ModelInput]:
    """Texts or pictures."""
    if model.spec.causal:
        tokenizer = TextTokenizer.from_bundle(bundle)
        text = (data / "tinyshakespeare" / "input.txt").read_text()
        parts = [text[i * _STEP : (i + 1) * _STEP] for i in range(count)]
        return [
            ModelInput(tokens=torch.tensor(tokenizer.encode_full(part)[0][:TOKENS]))
            for part in parts
        ]
    processor = ImageProcessor.from_bundle(bundle)
    with zipfile.ZipFile(data / "cifar10_test_jpeg.zip") as pictures:
        names = [name for name in pictures.namelist() if name.endswith((".jpg", ".jpeg"))]
        return [ModelInput(pixels=processor(pictures.read(name))) for name in names[:count]]


def cases_of(bundle: Bundle) -> Iterator[Case]:
    """The codebooks at their smallest, usual and largest rate, and the plain codecs."""
    for path in sorted(bundle.path.glob("codebook*.safetensors")):
        book = load_codebook(path)
        for stages in sorted({book.able[0], book.default_stages, book.able[-1]}):
            yield Case(book.codec, book, stages)
    for name in PLAIN:
        yield Case(name, None, 1)


@torch.inference_mode()
def measure(name: str, data: Path, count: int) -> None:
    """Print the figures of one model."""
    bundle = open_bundle(MODELS / name)
    models: dict[Precision, Model] = {}
    for precision in PRECISIONS:
        models[precision] = build_model(bundle.config, load_weights(bundle))
        convert(models[precision], precision)
    exact = models["fp32"]
    inputs = inputs_of(bundle, exact, data, count)
    for case in cases_of(bundle):
        most = {"mean": 0.0, "worst": 0.0, "result": 0.0}
        for theirs, own in itertools.product(PRECISIONS, repeat=2):
            for given in inputs:
                for one in case.request(models[theirs], models[own], given)[0]:
                    if one.block == exact.spec.num_hidden_layers:
                        most["result"] = max(most["result"], one.mean)
                    else:
                        most["mean"] = max(most["mean"], one.mean)
                        most["worst"] = max(most["worst"], one.worst)
        least: dict[str, float] = defaultdict(lambda: float("inf"))
        for given, other in itertools.pairwise([*inputs, inputs[0]]):
            for kind, found in liars(case, exact, given, other):
                coded = [one for one in found if one.block < exact.spec.num_hidden_layers]
                figure = max(one.worst if kind == "one token" else one.mean for one in coded)
                least[kind] = min(least[kind], figure)
        print(
            f"{name:10} {case.name:5} {case.stages} stages; honest at most:",
            ", ".join(f"{key} {value:.4f}" for key, value in most.items()),
            "; liars at least:",
            ", ".join(f"{key} {value:.2f}" for key, value in least.items()),
            flush=True,
        )


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.spot_check", description=__doc__)
    data = Path(os.environ.get("ASTRA_MESH_DATA", "../shared/data")) / "datasets"
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    parser.add_argument("--inputs", type=int, default=4)
    parser.add_argument("--model", action="append", help="default: both that are shipped")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in parsed.model or ("tiny-gpt2", "vit-tiny"):
        measure(name, parsed.data, parsed.inputs)


if __name__ == "__main__":
    main(sys.argv[1:])
