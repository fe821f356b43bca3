"""How fast a browser tab runs a block, beside torch on the same core: peers/phone/README.md.

Times are of the processor, not of the clock, so that other programs disturb them less; torch and
the tab each compute with one thread. The best of five windows counts, after a warm-up in which
WebAssembly is compiled for speed.

    python -m tools.bench.tab [--tokens 64] [--models NAME ...] [--chromium] [--pair]
    python -m tools.bench.tab --load [--models NAME ...]

``--load`` loads all blocks of a model in Chromium instead, from this machine: seconds by the clock
until the default rate of each codebook is ready, and what tables of each rate take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
import torch
from aiohttp import web

from astra_mesh.browser.files import make_files
from astra_mesh.bundle import find_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.attention import attend, merge
from astra_mesh.families import Model, build_model
from astra_mesh.families.packed import pack
from astra_mesh.quant.codebook import Codebook, load_codebook
from astra_mesh.web.files import read_all
from astra_mesh.wire.messages import ModelId
from tests.browser.chrome import Tab, chrome
from tools.bench.sizes import CONFIGS, memoryless, predictive, random_weights

HERE: Final = Path(__file__).parent
PEER: Final = HERE.parents[1] / "astra_mesh" / "web" / "site" / "peer"
SHIPPED: Final = ("vit-tiny", "tiny-gpt2")
LARGE: Final = ("gpt2-124m", "llama-125m", "vit-base")
BLOCKS: Final = 2  # of the large ones; one is timed
ID: Final = ModelId("a" * 64)
WARM: Final = 30
WINDOWS: Final = 5
WINDOW_S: Final = 0.1
PAIR_WINDOW_S: Final = 2.0
LOAD_S: Final = 300.0
HOST: Final = "peer.lan"  # no secure context: as a phone in the same Wi-Fi sees a peer


def models(
    wanted: Sequence[str], whole: bool = False
) -> Iterator[tuple[str, Model, list[Codebook]]]:
    """Of those names; ``whole``: with all blocks."""
    for name in (one for one in SHIPPED if one in wanted):
        bundle = find_bundle(name)
        book = load_codebook(bundle.path / "codebook.safetensors")
        yield name, build_model(bundle.config, load_weights(bundle)), [book]
    for name in (one for one in LARGE if one in wanted):
        config = CONFIGS[name]
        if not whole:
            config = config | {"num_hidden_layers": BLOCKS, "n_layer": BLOCKS}
        config |= {"vocab_size": 1000} if "vocab_size" in config else {}
        model = build_model(config, random_weights(config))
        yield name, model, [make(model.spec, ID) for make in (memoryless, predictive)]


def best_s(work: Callable[[int], object]) -> float:
    """Seconds of the processor for one of so many calls."""
    work(WARM)
    began = time.process_time()
    work(1)
    calls = max(1, round(WINDOW_S / max(time.process_time() - began, 1e-4)))
    times = []
    for _ in range(WINDOWS):
        began = time.process_time()
        work(calls)
        times.append((time.process_time() - began) / calls)
    return min(times)


@torch.inference_mode()
def torch_s(model: Model, tokens: int) -> float:
    """As peers run it: weights packed."""
    block = model.block(BLOCKS - 1)
    pack(block)
    x = torch.randn(tokens, model.spec.hidden_size)

    def work(calls: int) -> None:
        for _ in range(calls):
            query, rows = block.query_key_value(block.normalize(x), 0)
            block.mix(x, merge([attend(query, rows, model.spec.causal)]))

    return best_s(work)


def node_s(folder: Path, tokens: int) -> dict[str, float]:
    command = ["node", str(HERE / "tab_node.mjs"), str(PEER), str(folder), str(tokens)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, capture_output=True, check=True).stdout
    )
    return found


def children_s() -> float:
    """Seconds of the processor that all processes below this one have used: the browser's."""
    return sum(_used_s(process) for process in psutil.Process().children(recursive=True))


def _used_s(process: psutil.Process) -> float:
    """Of all threads: by Linux to the nanosecond, by other systems in hundredths of a second."""
    with suppress(psutil.Error, OSError):
        threads = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
        if threads:
            return sum(int(one.read_text().split()[0]) for one in threads) / 1e9
        used = process.cpu_times()
        return used.user + used.system
    return 0.0


@asynccontextmanager
async def page(folder: Path) -> AsyncIterator[Tab]:
    """A tab with the page's files, those of a model and this folder's scripts."""
    app = web.Application()
    for one in read_all():
        app.router.add_get(one.address, one.serve)

    async def file(request: web.Request) -> web.FileResponse:
        return web.FileResponse(folder / request.match_info["name"])

    async def script(request: web.Request) -> web.FileResponse:
        path = HERE / f"{request.match_info['name']}.mjs"
        return web.FileResponse(path, headers={"Content-Type": "text/javascript"})

    app.router.add_get("/files/{name}", file)
    app.router.add_get("/page/{name:tab|tab_worker}.mjs", script)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            async with chrome(Path(home), f"--host-resolver-rules=MAP {HOST} 127.0.0.1") as tab:
                await tab.open(f"http://{HOST}:{port}/")
                yield tab
    finally:
        await runner.cleanup()


async def chromium_s(folder: Path, tokens: int) -> dict[str, float]:
    async with page(folder) as tab:
        return await _in_tab(tab, tokens)


async def pair_gain(folder: Path, tokens: int) -> float:
    """How many times the codes of one worker two make at once, by the clock: the most that a second
    thread can bring.
    """
    async with page(folder) as tab:
        await tab.eval(_WORKERS)
        rates: list[list[float]] = []
        for _ in range(WINDOWS + 1):  # the first one loads and compiles
            call = "coded({}, {}, {})".format
            rates.append([await tab.eval(call(n, tokens, 1e3 * PAIR_WINDOW_S)) for n in (1, 2)])
    alone, together = (max(window[i] for window in rates[1:]) for i in (0, 1))
    return together / alone


async def loaded(folder: Path) -> list[str]:
    """What loading a model takes in Chromium, a sentence each."""
    async with page(folder) as tab:
        await tab.eval(_LOADED)
        await tab.until("globalThis.told", LOAD_S)
        lines: list[str] = json.loads(await tab.eval("told"))
    return lines


_LOADED: Final = """(() => {
  const file = async (name) => (await fetch(`/files/${name}`)).arrayBuffer();
  import("/page/tab.mjs")
    .then(({ load }) => load("/page/peer", async (name) => new Uint8Array(await file(name))))
    .catch((error) => [`failed: ${error.message}`])
    .then((found) => (globalThis.told = JSON.stringify(found)));
  return 0;
})()"""


_LOAD: Final = """(async () => {
  const { bench } = await import("/page/tab.mjs");
  const file = async (name) => (await fetch(`/files/${name}`)).arrayBuffer();
  globalThis.works = await bench("/page/peer", async (name) => new Uint8Array(
    await file(name)), TOKENS);
  return JSON.stringify(Object.keys(works));
})()"""


_WORKERS: Final = """
  const workers = [0, 1].map(() => new Worker("/page/tab_worker.mjs", { type: "module" }));
  const one = (worker, tokens, ms) => new Promise((done) => {
    worker.onmessage = ({ data }) => done(data);
    worker.postMessage({ tokens, ms });
  });
  globalThis.coded = async (count, tokens, ms) => {
    const some = workers.slice(0, count);
    const found = await Promise.all(some.map((worker) => one(worker, tokens, ms)));
    return found.reduce((a, b) => a + b);
  };
  0"""


async def _in_tab(tab: Tab, tokens: int) -> dict[str, float]:
    names = json.loads(await tab.eval(_LOAD.replace("TOKENS", str(tokens))))
    found: dict[str, float] = {}
    for name in [*names, *names]:  # twice, as in node
        work = f"works[{json.dumps(name)}]"
        await tab.eval(f"{work}({WARM})")
        began = time.perf_counter()
        await tab.eval(f"{work}(5)")
        calls = max(5, round(0.5 / ((time.perf_counter() - began) / 5)))
        for _ in range(WINDOWS):
            before = children_s()
            await tab.eval(f"{work}({calls})")
            found[name] = min(found.get(name, 1e9), (children_s() - before) / calls)
    return found


def show(name: str, tokens: int, torch_block: float, where: str, found: dict[str, float]) -> None:
    block = found.pop("block")
    print(
        f"{name:11} {tokens:4} tokens  torch {1e3 * torch_block:7.2f} ms  "
        f"{where:8} {1e3 * block:7.2f} ms ({block / torch_block:.1f}x)"
    )
    for what, took in found.items():
        print(f"{'':30}{what}: {1e3 * took:.2f} ms ({took / block:.0%} of the block)")
    sys.stdout.flush()


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [*SHIPPED, *LARGE]
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--models", nargs="+", metavar="NAME", choices=names, default=names)
    parser.add_argument("--chromium", action="store_true", help="in headless Chromium too")
    parser.add_argument("--pair", action="store_true", help="what a second thread can bring there")
    parser.add_argument("--load", action="store_true", help="what loading takes there, instead")
    return parser.parse_args(given)


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    for name, model, books in models(given.models, given.load):
        tokens = min(given.tokens, model.spec.max_tokens)
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            files = make_files(name, ID, model, {book.id: book for book in books}, folder)
            (folder / "manifest.json").write_text(json.dumps(files.manifest))
            if given.load:
                print(name, *asyncio.run(loaded(folder)), sep="\n    ")
                continue
            torch_block = torch_s(model, tokens)
            show(name, tokens, torch_block, "node", node_s(folder, tokens))
            if given.chromium:
                found = asyncio.run(chromium_s(folder, tokens))
                show(name, tokens, torch_block, "Chromium", found)
            if given.pair:
                gain = asyncio.run(pair_gain(folder, tokens))
                print(f"{'':30}codes by two workers at once: {gain:.2f} times those of one")


if __name__ == "__main__":
    main()
