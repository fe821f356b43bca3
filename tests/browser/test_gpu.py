"""A tab's blocks on a GPU (WebGPU, here the one that Chromium brings as a program) give what torch
gives, and a tab computes there only where that is faster."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from aiohttp import web

from astra_mesh.browser.files import make_files
from astra_mesh.engine.attention import attend
from astra_mesh.families import Model
from astra_mesh.web.files import read_all
from tests.browser.chrome import Tab
from tests.browser.conftest import browser
from tests.unit.families.making import make_model

FLAGS = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
TOKENS = 13
GPU = '{ place: "webgpu", kernels: false }'
KERNELS = '{ place: "wasm", kernels: true }'
KINDS = ("gpt2", "vit", "llama", "qwen3", "bert")

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

_LOAD = """(async () => {
  const { loadModel } = await import("/page/peer/engine.js");
  const { Matrix } = await import("/page/peer/matrix.js");
  const file = async (name) => (await fetch(`/files/KIND/${name}`)).arrayBuffer();
  const manifest = JSON.parse(new TextDecoder().decode(await file("manifest.json")));
  const getBlob = async (name) => new Uint8Array(await file(name));
  const model = await loadModel(manifest, getBlob, undefined, HOW);
  const size = model.spec.hidden_size;
  const rows = Float32Array.from({ length: TOKENS * size }, (_, i) => Math.sin(i + 1));
  const y = await model.runBlock(1, new Matrix(rows, size));
  return JSON.stringify({ place: model.place, why: model.why, y: [...y.data] });
})()"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for kind in KINDS:
        (folder / kind).mkdir()
        files = make_files(kind, "a" * 64, make_model(kind), {}, folder / kind)
        (folder / kind / "manifest.json").write_text(json.dumps(files.manifest))
    return folder


@asynccontextmanager
async def _served(folder: Path) -> AsyncIterator[str]:
    """The page's files and those of models, at an address that browsers call secure."""
    app = web.Application()
    for one in read_all():
        app.router.add_get(one.address, one.serve)
    app.router.add_static("/files", folder)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def page(made: Path) -> AsyncIterator[Tab]:
    async with _served(made) as url, browser(*FLAGS) as tab:
        await tab.open(url)
        if not await tab.eval("navigator.gpu?.requestAdapter().then(Boolean) ?? false"):
            pytest.skip("this Chromium offers no WebGPU")
        if not await tab.eval("fetch('/page/vendor/versions.json').then((one) => one.ok)"):
            pytest.skip("without the browser runtime: make runtime")
        yield tab


async def _run(page: Tab, kind: str, how: str) -> dict[str, Any]:
    script = _LOAD.replace("KIND", kind).replace("HOW", how).replace("TOKENS", str(TOKENS))
    await page.eval(f"{{ globalThis.found = null; {script}.then((one) => {{ found = one; }}); 0 }}")
    await page.until("found !== null", 120)  # a GPU that is a program compiles slowly
    found: dict[str, Any] = json.loads(await page.eval("found"))
    return found


@torch.inference_mode()
def _wanted(model: Model) -> np.ndarray:
    size = model.spec.hidden_size
    x = torch.from_numpy(np.sin(np.arange(1, TOKENS * size + 1)).astype("f4").reshape(-1, size))
    block = model.block(1)
    query, rows = block.query_key_value(block.normalize(x), 0)
    part = attend(query, rows, model.spec.causal)
    return block.mix(x, part.out.permute(2, 0, 1, 3).reshape(TOKENS, -1)).numpy()


async def test_blocks_of_all_families_on_the_gpu(page: Tab) -> None:
    for kind in KINDS:
        wanted = _wanted(make_model(kind)).ravel()
        found = await _run(page, kind, GPU)
        assert found["place"] == "webgpu"
        off = np.abs(np.array(found["y"]) - wanted).max() / np.abs(wanted).max()
        assert off <= 1e-3, kind


async def test_blocks_of_all_families_by_kernels_with_relaxed_simd(page: Tab) -> None:
    for kind in KINDS:
        wanted = _wanted(make_model(kind)).ravel()
        found = await _run(page, kind, KERNELS)
        off = np.abs(np.array(found["y"]) - wanted).max() / np.abs(wanted).max()
        assert off <= 1e-5, kind


async def test_a_gpu_that_is_slower_is_not_taken_and_the_tab_says_so(page: Tab) -> None:
    """A GPU that is a program is slower than the same processor without that detour."""
    found = await _run(page, "gpt2", "null")
    assert found["place"] == "wasm"
    assert found["why"].startswith("the GPU takes ")
    wanted = _wanted(make_model("gpt2")).ravel()
    assert np.abs(np.array(found["y"]) - wanted).max() <= 1e-3 * np.abs(wanted).max()


async def test_a_gpu_that_is_lost_is_not_used_again(page: Tab) -> None:
    script = """(async () => {
      const { loadModel } = await import("/page/peer/engine.js");
      const { gpuMissing } = await import("/page/peer/runtime.js");
      const get = GPUAdapter.prototype.requestDevice;
      const file = async (name) => (await fetch(`/files/gpt2/${name}`)).arrayBuffer();
      const manifest = JSON.parse(new TextDecoder().decode(await file("manifest.json")));
      let device = null;
      GPUAdapter.prototype.requestDevice = async function (...given) {
        return (device = await get.apply(this, given));
      };
      const getBlob = async (name) => new Uint8Array(await file(name));
      const model = await loadModel(manifest, getBlob, undefined, HOW);
      const before = [model.isLost, await gpuMissing()];
      device.destroy();
      await device.lost;
      await new Promise((done) => setTimeout(done));
      return JSON.stringify([...before, model.isLost, await gpuMissing()]);
    })()""".replace("HOW", GPU)
    before, missing, after, why = json.loads(await page.eval(script))
    assert (before, missing, after) == (False, "", True)
    assert why.startswith("the browser took the GPU away")
