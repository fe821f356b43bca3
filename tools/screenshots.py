"""The pictures of the README: three real peers with the shipped models, in headless Chromium.

python -m tools.screenshots        # writes docs/pictures/*.png; needs Chromium
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.chrome import Tab, chrome

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
PROMPT = (
    "O Romeo, Romeo! wherefore art thou Romeo? Deny thy father and refuse thy name; Or, if thou "
    "wilt not, be but sworn my love, And I'll no longer be a Capulet."
)
COLOURS = 128
# What scrolls in its own frame is as high as what it holds: a picture cannot be scrolled.
WHOLE = """for (const one of document.querySelectorAll("PART, PART *")) {
    if (one.clientHeight && one.scrollHeight > one.clientHeight && one.localName !== "select") {
        one.style.maxHeight = "none";
        one.style.height = `${one.scrollHeight + one.offsetHeight - one.clientHeight}px`;
    }
}"""


async def start(
    stack: AsyncExitStack, state: Path, name: str, ports: list[int], *more: str
) -> dict[str, Any]:
    """A peer that knows those at ``ports``; what it says of itself."""
    argv = ["--name", name, "--port", "0", "--listen", "127.0.0.1", "--no-discovery", "--json"]
    argv += ["--state-dir", str(state / name), "--stop-with-stdin", "--threads", "1", *more]
    argv += [word for port in ports for word in ("--peer", f"127.0.0.1:{port}")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "astra_mesh", "peer", *argv, cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    stack.push_async_callback(end, process)
    assert process.stdout is not None
    while (found := json.loads(await process.stdout.readline()))["type"] != "started":
        pass
    return dict(found)


async def end(process: Process) -> None:
    """Close its standard input, and read what it still says."""
    assert process.stdin is not None
    process.stdin.close()
    await process.communicate()


async def visit(tab: Tab, url: str) -> None:
    await tab.open(url)
    await tab.until("document.querySelectorAll('#devices li').length === 3")
    await tab.choose("#ask-use", "all")
    await tab.type("#ask-text", PROMPT)
    for count in (1, 2):  # the first one loads the model on three peers
        await tab.click("#ask-go")
        await tab.until(f"document.querySelectorAll('#answers .cost').length === {count}")
    await tab.until("document.querySelector('#request-table tbody tr:nth-child(3)')")
    await tab.choose("#quality-model", "tiny-gpt2")
    await tab.shape(900, 900)
    await shoot(tab, "timeline", "#request")
    await tab.choose("#photo-use", "all")
    await tab.upload("#photo-file", ROOT / "models" / "vit-tiny" / "sample.jpg")
    await tab.until("document.querySelectorAll('#labels li').length === 5")
    await tab.eval("document.getElementById('answers').firstChild.remove()")
    await tab.shape(390, 844)
    await shoot(tab, "mesh", "#mesh")
    await shoot(tab, "ask", "#ask")
    await shoot(tab, "quality", "#quality")
    await tab.shape(390, 844, dark=True)
    await shoot(tab, "photo", "#photo")


async def shoot(tab: Tab, name: str, selector: str) -> None:
    """One picture, in few colours."""
    await asyncio.sleep(1.2)  # the figures of the mesh come each second
    await tab.eval(WHOLE.replace("PART", selector))
    path = FOLDER / f"{name}.png"
    await tab.screenshot(path, selector)
    await asyncio.to_thread(shrink, path)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


def shrink(path: Path) -> None:
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


async def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
        folder = Path(text)
        async with AsyncExitStack() as stack:
            ports: list[int] = []
            for name in ("kitchen", "attic"):
                ports.append((await start(stack, folder, name, ports, "--no-api"))["port"])
            about = await start(stack, folder, "desk", ports, "--api-port", "0")
            tab = await stack.enter_async_context(chrome(folder / "chrome"))
            await visit(tab, about["api"].removesuffix("v1"))


if __name__ == "__main__":
    asyncio.run(main())
