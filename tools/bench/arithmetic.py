"""What the arithmetic of several devices costs, with a network that costs nothing.

    python -m tools.bench.arithmetic [--models gpt2-124m ...] [--codes plain half ...] [--rounds 5]

All shards of one request are computed one after the other by one thread of one process, and the
thread's processor time is taken step by step; so is one device's, in turns. Shards are cut so that
all take about as long, as the planner cuts them. One device's time over the longest shard's is what
a mesh of such devices cannot exceed, however good its network and its event loops are; times
scatter by some per cent, so its quartiles are told, too. Random weights, 128 bits, memoryless codes
decoded by tables.

    encode   own tokens' codes
    local    own queries, keys and values, and attention among own tokens
    known    the same in the first block, where all others' tokens are computed, too
    decode   others' keys and values from their codes
    remote   attention to them
    finish   output projection, feed-forward, and what goes with them
    head     what comes after the last block

``--codes``: *plain*; of *half* of the coordinates; with the *first* block coded, too, so that no
device computes others' tokens in it; or *half-first*. Results go to docs/data/arithmetic.json.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.shard import ShardRun
from astra_mesh.families import ModelInput, build_model
from astra_mesh.families.precision import Precision, convert
from astra_mesh.families.spec import Pooling
from astra_mesh.peer.precision import pack_if_faster
from astra_mesh.plan.layout import Layout, make_layout
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.quant.codecs import VectorCodec, make_codec
from astra_mesh.quant.codes import Receiver
from tools.bench import command
from tools.bench.baselines.variants import DTYPES
from tools.bench.sizes import (
    CONFIGS,
    FORMS,
    MEMORYLESS,
    PLAIN,
    default_cache,
    ensure,
    random_picture,
    random_tokens,
    text_limit,
)
from tools.bench.speed_stats import spread
from tools.lab import options
from tools.models.common import REPO_ROOT

OUT: Final = REPO_ROOT / "docs" / "data" / "arithmetic.json"
BALANCES: Final = 4  # times that shards are cut anew before measuring

Spent = dict[str, float]  # seconds by step
P = ParamSpec("P")
T = TypeVar("T")


class Case(NamedTuple):
    """A request, and over how many devices."""

    model: str
    tokens: int
    devices: int


CASES: Final = (
    Case("gpt2-124m", 1024, 2),
    Case("gpt2-124m", 1024, 4),
    Case("gpt2-124m", 1024, 8),
    Case("llama-125m", 512, 2),
    Case("vit-base", 197, 4),
    Case("vit-base-1024", 1025, 4),
)


class Request:
    """A case with its model loaded.

    Args:
        case: which.
        folder: of the model's files.
        dtype: that all is computed in.
    """

    def __init__(self, case: Case, folder: Path, dtype: Precision) -> None:
        self.case = case
        bundle = open_bundle(folder)
        self._model = build_model(bundle.config, load_weights(bundle))
        convert(self._model, dtype)
        pack_if_faster(self._model)
        book = load_codebook(folder / MEMORYLESS)
        codec = make_codec("vq", self._model, book)
        assert isinstance(codec, VectorCodec)
        self._codec = codec
        self._codec.prepare(self._codec.stages)
        config = CONFIGS[case.model]
        self._pooling: Pooling
        if "image_size" in config:
            processor = ImageProcessor.from_bundle(bundle)
            pixels = processor(random_picture(config["image_size"]))
            self._inputs, self._pooling = ModelInput(pixels=pixels), "class"
        else:
            ids = torch.tensor(random_tokens(config["vocab_size"], case.tokens))
            self._inputs, self._pooling = ModelInput(tokens=ids), "last"

    def solo(self) -> Spent:
        """Seconds of one device by step."""
        return self.shards([0, self.case.tokens])[0]

    def _head(self, run: ShardRun) -> None:
        if self._pooling == "last":
            self._model.logits(self._model.final(run.x[-1:]))
        else:
            self._model.classify(run.pooled()[0].to(run.x.dtype))

    def shards(self, edges: Sequence[int]) -> list[Spent]:
        """Seconds of each shard by step; ``edges`` from 0 to the number of tokens."""
        layout = make_layout(
            self._model.spec,
            list(itertools.pairwise(edges)),
            pooling=self._pooling,
            first_block=self._codec.first_block,
            stages=self._codec.stages,
        )
        spent: list[Spent] = [defaultdict(float) for _ in range(len(edges) - 1)]
        runs = [
            timed(
                one,
                "local",
                ShardRun,
                self._model,
                layout,
                i,
                _Timed(self._codec, one),
                self._inputs,
            )
            for i, one in enumerate(spent)
        ]
        for block in range(layout.blocks):
            self._block(layout, block, runs, spent)
        answering = layout.answering()
        timed(spent[answering], "head", self._head, runs[answering])
        return [dict(one) for one in spent]

    @staticmethod
    def _block(layout: Layout, block: int, runs: Sequence[ShardRun], spent: list[Spent]) -> None:
        coded = block >= layout.first_block
        sent = {
            i: timed(spent[i], "encode", run.encode, block)
            for i, run in enumerate(runs)
            if coded and layout.receivers(i, block)
        }
        for i, run in enumerate(runs):
            kind = "local" if coded else "known"
            timed(spent[i], kind, run.attend_local, block)
            for source in layout.sources(i, block) if coded else []:
                codes, before = sent[source][i], spent[i]["decode"]
                timed(spent[i], "remote", run.attend_remote, block, source, codes)
                spent[i]["remote"] -= spent[i]["decode"] - before
            timed(spent[i], "finish", run.finish, block)

    def balanced(self) -> list[int]:
        """Edges of shards that take about as long."""
        tokens, devices = self.case.tokens, self.case.devices
        edges = [tokens * i // devices for i in range(devices + 1)]
        for _ in range(BALANCES):
            took = [sum(one.values()) for one in self.shards(edges)]
            speeds = [
                (stop - start) / seconds
                for (start, stop), seconds in zip(itertools.pairwise(edges), took, strict=True)
            ]
            ends = itertools.accumulate(speeds)
            edges = [0, *(round(tokens * end / sum(speeds)) for end in ends)]
        return edges


class _Timed:
    """A codec of which decoding is timed, apart from the attention that it is for."""

    def __init__(self, codec: VectorCodec, spent: Spent) -> None:
        self._codec, self._spent = codec, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def receiver(self, stages: int, known: Tensor | None) -> Receiver:
        """As the codec's."""
        found = self._codec.receiver(stages, known)
        decode = found.decode
        found.decode = lambda *args: timed(self._spent, "decode", decode, *args)  # type: ignore[method-assign]
        return found


def timed(spent: Spent, kind: str, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do a step; its seconds of this thread count for ``kind``."""
    began = time.thread_time()
    found = step(*args, **kwargs)
    spent[kind] += time.thread_time() - began
    return found


def measure(request: Request, rounds: int) -> dict[str, Any]:
    """One row of the results; medians over rounds."""
    with torch.inference_mode():
        edges = request.balanced()
        request.solo()
        solo, shards = [], []
        for _ in range(rounds):
            solo.append(request.solo())
            shards.append(request.shards(edges))
    alone = [sum(one.values()) for one in solo]
    whole = [[sum(one.values()) for one in parts] for parts in shards]
    ratios = [one / max(parts) for one, parts in zip(alone, whole, strict=True)]
    sums = [sum(parts) / one for one, parts in zip(alone, whole, strict=True)]
    bound = spread(ratios)
    return {
        **request.case._asdict(),
        "edges": edges,
        "solo_s": statistics.median(alone),
        "solo": dict(medians(solo)),
        "bound": bound.median,
        "bound_quartiles": [bound.low, bound.high],
        "work": statistics.median(sums),
        "shards": [dict(medians(parts)) for parts in zip(*shards, strict=True)],
    }


def medians(rounds: Sequence[Spent]) -> Iterator[tuple[str, float]]:
    """Of each step."""
    for kind in rounds[0]:
        yield kind, statistics.median(one[kind] for one in rounds)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit statuses of :func:`tools.bench.command.measured`."""
    parser = command.parser(__doc__, OUT)
    parser.add_argument("--models", nargs="+", choices=sorted(CONFIGS), default=sorted(CONFIGS))
    both = "(default: plain, and for pictures first, too)"
    parser.add_argument("--codes", nargs="+", choices=sorted(FORMS), help=both)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--rounds", type=options.within(int, 1), default=5)
    parser.add_argument("--cache", type=options.folder, default=default_cache())
    args = parser.parse_args(argv)
    return command.measured(args, lambda save: _measure_all(args, save))


def _measure_all(args: argparse.Namespace, save: command.Save) -> None:
    torch.set_num_threads(1)
    rows = []
    for case in (case for case in CASES if case.model in args.models):
        pictures = [] if args.codes or text_limit(case.model) is not None else ["first"]
        for codes in args.codes or [PLAIN, *pictures]:
            folder = ensure(case.model, args.cache, form=codes) / case.model
            row = measure(Request(case, folder, args.dtype), args.rounds)
            rows.append(row | {"codes": codes})
            command.say(
                f"{case.model}, {case.tokens} tokens, {case.devices} devices, {codes}: "
                f"{row['work']:.3f} times one device's {row['solo_s']:.2f} s in all, "
                f"at most {row['bound']:.2f} times as fast"
            )
            save({"dtype": args.dtype, "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
