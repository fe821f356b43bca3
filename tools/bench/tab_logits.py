"""How far a tab's logits are from torch's, in node: peers/phone/README.md.

Two shards of one model, with codes between them, as in ``tests/javascript/test_engine.py`` but at
true sizes: the largest difference of a logit, beside the largest logit, and whether the most likely
token or label is the same.

    python -m tools.bench.tab_logits [--tokens 64] [--models NAME ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from astra_mesh.families import Model, ModelInput
from astra_mesh.plan.layout import make_layout
from astra_mesh.quant.codebook import Codebook
from astra_mesh.quant.codecs import VectorCodec
from tests.javascript.golden import Case, write_model
from tools.bench.tab import LARGE, SHIPPED, models

RUN: Final = Path(__file__).parents[2] / "tests" / "javascript" / "run_shards.mjs"
PART: Final = 0.4  # of the tokens, the first shard's


def cases(model: Model, book: Codebook, tokens: int, folder: Path) -> list[Case]:
    """One for each rate."""
    task = next(one for one in ("generate", "classify") if one in model.spec.tasks)
    generator = torch.Generator().manual_seed(5)
    if task == "generate":
        ids = torch.randint(model.spec.vocab_size, (tokens,), generator=generator)
        inputs = ModelInput(tokens=ids)
    else:
        shape = model.image_shape
        assert shape is not None
        inputs = ModelInput(pixels=torch.rand(shape, generator=generator) * 2 - 1)
    count = model.count_tokens(inputs)
    cut = round(PART * count)
    found = []
    for stages in book.able:
        layout = make_layout(
            model.spec,
            [(0, cut), (cut, count)],
            pooling=model.spec.pooling(task),
            first_block=book.first_block,
            stages=stages,
        )
        found.append(Case(model, folder, layout, VectorCodec(model, book), inputs))
    return found


@torch.inference_mode()
def compared(case: Case, shards: list[dict[str, Any]]) -> str:
    """The answer's logits, from what the shards pooled."""
    theirs = _whole(case.pooled)
    ours = _whole([(torch.tensor(one["vector"]), one["weight"]) for one in shards])
    writes = "generate" in case.model.spec.tasks
    head = case.model.logits if writes else case.model.classify
    one, other = (head(vector[None] if writes else vector).flatten() for vector in (ours, theirs))
    most, apart = float(other.abs().max()), float((one - other).abs().max())
    same = "the same" if int(one.argmax()) == int(other.argmax()) else "another"
    return f"{apart:.1e} of {most:.2f} ({apart / most:.1e}), {same} answer"


def _whole(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """What the head reads: each shard pooled a sum, of so much weight."""
    return torch.stack([vector for vector, _ in parts]).sum(0) / sum(weight for _, weight in parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [*SHIPPED, *LARGE]
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--models", nargs="+", metavar="NAME", choices=names, default=names)
    given = parser.parse_args()
    for name, model, books in models(given.models, whole=True):
        for book in books:
            with tempfile.TemporaryDirectory() as work:
                show(name, book, _run(model, book, given.tokens, Path(work)))


def _run(model: Model, book: Codebook, tokens: int, work: Path) -> Sequence[str]:
    folder = work / "model"
    write_model(model, [VectorCodec(model, book)], folder)
    found = cases(model, book, tokens, folder)
    for case in found:
        case.run()
    given, results = work / "cases.json", work / "results.json"
    given.write_text(json.dumps([case.described() for case in found]))
    subprocess.run(["node", str(RUN), str(given), str(results)], check=True)
    shards = json.loads(results.read_text())
    return [compared(case, one) for case, one in zip(found, shards, strict=True)]


def show(name: str, book: Codebook, lines: Sequence[str]) -> None:
    for stages, line in zip(book.able, lines, strict=True):
        past = "history" if book.history else "no history"
        print(f"{name:11} {book.rate(stages):4} bits, {past:10} {line}", flush=True)


if __name__ == "__main__":
    main()
