"""New tokens a second: the engine's loop, a peer, and transformers, on this machine alone.

    python -m tools.bench.decode [--models NAME ...] [--dtypes fp32 bf16] [--threads 2] [--rounds 5]

All compute the same model (random weights, true sizes: :mod:`tools.bench.sizes`) with the same
threads, one after the other in turns: the engine's loop and transformers' in this process, and a
peer in a process of its own that this one asks through the Python client, with 1, 4 and 8 requests
at once. A round is every variant once. The time between the first and the last new token counts.
Results go to docs/data/decode.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

import astra_mesh
from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.decode import Decoder
from astra_mesh.engine.reference import run_solo
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.families.precision import Precision, convert
from astra_mesh.peer.precision import pack_if_faster
from astra_mesh.wire.messages import Sampling
from tools.bench import command
from tools.bench.sizes import default_cache, ensure
from tools.lab import options
from tools.models.common import REPO_ROOT

OUT: Final = REPO_ROOT / "docs" / "data" / "decode.json"
MODELS: Final = ("gpt2-124m", "llama-125m")
PROMPT: Final = 128  # tokens
NEW: Final = 64
AT_ONCE: Final = (1, 4, 8)
START_S: Final = 120.0
Variant = Callable[[], Awaitable[float]]  # does it once; new tokens a second


def loaded(folder: Path, dtype: Precision) -> Model:
    """The model as a peer has it."""
    bundle = open_bundle(folder)
    model = build_model(bundle.config, load_weights(bundle))
    convert(model, dtype)
    pack_if_faster(model)
    return model


def engine(model: Model, prompt: torch.Tensor) -> float:
    """The loop of one device, as tests and measurements have it."""
    run = run_solo(model, ModelInput(tokens=prompt), "last", spare=NEW)
    decoder = Decoder(run, Sampling(max_new_tokens=NEW))
    decoder.step()
    began = time.perf_counter()
    for _ in range(NEW - 1):
        decoder.step()
    return (NEW - 1) / (time.perf_counter() - began)


def reference(folder: Path, dtype: str) -> Any:
    """The same weights in transformers."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        form = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        return AutoModelForCausalLM.from_pretrained(folder, dtype=form).eval()


@torch.inference_mode()
def plain(model: Any, prompt: torch.Tensor) -> float:
    """A greedy loop over transformers' own cache: its ``generate`` without its checks."""
    found = model(prompt[None], use_cache=True)
    token, began = found.logits[:, -1:].argmax(-1), time.perf_counter()
    for _ in range(NEW - 1):
        found = model(token, past_key_values=found.past_key_values, use_cache=True)
        token = found.logits[:, -1:].argmax(-1)
    return (NEW - 1) / (time.perf_counter() - began)


@contextlib.asynccontextmanager
async def peer(
    folder: Path, dtype: str, threads: int, home: Path, *more: str
) -> AsyncIterator[str]:
    """The address of a peer that offers the model, with ``more`` options."""
    argv = ["-m", "astra_mesh", "peer", "--json", "--stop-with-stdin", "--no-discovery"]
    argv += ["--no-api", "--no-preload", "--listen", "127.0.0.1", "--port", "0"]
    argv += ["--threads", str(threads), "--dtype", dtype, "--model", str(folder), *more]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdin=pipe, stdout=pipe, cwd=home
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        started = json.loads(await asyncio.wait_for(process.stdout.readline(), START_S))
        yield f"127.0.0.1:{started['port']}"
    finally:
        process.stdin.close()
        await process.wait()


async def asked(mesh: astra_mesh.Mesh, model: str, prompts: Sequence[list[int]]) -> float:
    """So many requests at once; new tokens a second of all, while all of them run."""
    firsts, lasts = list[float](), list[float]()

    async def one(prompt: list[int]) -> None:
        times = []
        async for _ in mesh.generate(model, prompt, max_new_tokens=NEW, use="solo"):
            times.append(time.perf_counter())
        assert len(times) == NEW, f"{len(times)} new tokens instead of {NEW}"
        firsts.append(times[0])
        lasts.append(times[-1])

    await asyncio.gather(*(one(prompt) for prompt in prompts))
    return len(prompts) * (NEW - 1) / (max(lasts) - min(firsts))


async def compare(
    name: str, dtype: Precision, threads: int, rounds: int, home: Path
) -> dict[str, Any]:
    """Medians and all rounds of each variant, for one model in one format."""
    folder = ensure(name, default_cache()) / name
    model = loaded(folder, dtype)
    generator = torch.Generator().manual_seed(7)
    vocabulary = model.spec.vocab_size
    prompts = torch.randint(vocabulary, (max(AT_ONCE), PROMPT), generator=generator)
    theirs = reference(folder, dtype)

    async def ours() -> float:
        return await asyncio.to_thread(engine, model, prompts[0])

    async def its() -> float:
        return await asyncio.to_thread(plain, theirs, prompts[0])

    async with (
        peer(folder, dtype, threads, home) as address,
        astra_mesh.connect(address) as mesh,
    ):

        def at_once(count: int) -> Variant:
            return lambda: asked(mesh, name, prompts[:count].tolist())

        variants: dict[str, Variant] = {"transformers": its, "engine": ours}
        variants |= {f"peer-{count}": at_once(count) for count in AT_ONCE}
        for do in variants.values():
            await do()  # loads, and fills caches
        found: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds):
            for variant, do in variants.items():
                found[variant].append(await do())
    print(f"{name}, {dtype}:", flush=True)
    for variant, rates in found.items():
        ratio = statistics.median(
            one / other for one, other in zip(rates, found["transformers"], strict=True)
        )
        print(f"  {variant:13} {statistics.median(rates):7.1f} tokens/s, {ratio:.2f}", flush=True)
    return {"model": name, "dtype": dtype, "tokens_per_s": found}


async def run(given: argparse.Namespace, save: command.Save) -> None:
    """All models and formats, kept one by one."""
    about = {"threads": given.threads, "prompt": PROMPT, "new": NEW}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(
        prefix="astra-mesh-decode-", ignore_cleanup_errors=True
    ) as home:
        os.environ["ASTRA_MESH_TRUST"] = str(Path(home) / "trust")  # a device of its own
        for name in given.models:
            for dtype in given.dtypes:
                rows.append(await compare(name, dtype, given.threads, given.rounds, Path(home)))
                save({"machine": about, "rounds": given.rounds, "rows": rows})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit statuses of :func:`tools.bench.command.measured`."""
    parser = command.parser(__doc__, OUT)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    threads = options.within(int, 1, 1024)
    parser.add_argument("--threads", type=threads, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=options.within(int, 1), default=5)
    given = parser.parse_args(argv)

    def measure(save: command.Save) -> None:
        torch.set_num_threads(given.threads)
        asyncio.run(run(given, save))

    return command.measured(given, measure)


if __name__ == "__main__":
    sys.exit(main())
