"""A headless Chromium, driven by its DevTools protocol: as much of it as these tests need."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATH = next((found for name in NAMES if (found := shutil.which(name))), None)
WAIT_S = 30.0
CLICKS = 3
STILL_S = 0.05  # that something does not move before it is clicked
_EXPECTED = "No available adapters."  # what Chromium says where a page asks for a GPU in vain
_FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--hide-scrollbars",
)


_WENT = ("Inspected target navigated or closed", "Execution context was destroyed.")


class PageWentError(AssertionError):
    """The page that was asked gave way to another one meanwhile."""


class Tab:
    """One page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []  # of the console, and errors of scripts
        self.loaded: list[str] = []  # addresses that the page asked for
        self.questions: list[str] = []  # that the page asked in a dialog; all were agreed to

    async def read(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            if "id" in found:
                future = self._waiting.pop(found["id"], None)
                if future is not None and not future.done():
                    future.set_result(found)
            elif found["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(found["params"]["exceptionDetails"])[:500])
            elif found["method"] == "Log.entryAdded":
                if found["params"]["entry"]["text"] != _EXPECTED:
                    self.complaints.append(str(found["params"]["entry"])[:500])
            elif found["method"] == "Network.requestWillBeSent":
                self.loaded.append(found["params"]["request"]["url"])
            elif found["method"] == "Page.javascriptDialogOpening":
                self.questions.append(found["params"]["message"])
                agree = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                await self._socket.send_json({"id": next(self._ids), **agree})

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        answer = await asyncio.wait_for(future, WAIT_S)
        if answer.get("error", {}).get("message") in _WENT:
            raise PageWentError((method, answer))
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def fire(self, method: str) -> None:
        """Call what gives no answer: it ends the page."""
        await self._socket.send_json({"id": next(self._ids), "method": method})

    async def start(self, width: int = 390, height: int = 844, dark: bool = False) -> None:
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
            await self.call(f"{domain}.enable")
        await self.shape(width, height, dark)

    async def shape(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme, motion])

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def before_pages(self, script: str) -> None:
        """Runs in each page that is opened from now on, before its own programs."""
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def eval(self, script: str) -> Any:
        """The value of an expression."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (script, answer)
        return answer["result"].get("value")

    async def until(self, script: str, within_s: float = 3 * WAIT_S) -> None:
        """Wait until an expression is true."""
        end = asyncio.get_running_loop().time() + within_s
        while not await self._holds(script):
            if asyncio.get_running_loop().time() > end:
                text = await self.eval("document.body.innerText")
                raise AssertionError(
                    f"not within {within_s} s: {script}\n{text}\n{self.complaints}"
                )
            await asyncio.sleep(0.05)

    async def _holds(self, script: str) -> bool:
        """Whether an expression is true; not so while one page gives way to another."""
        try:
            return bool(await self.eval(f"Boolean({script})"))
        except PageWentError:
            return False

    async def text(self, selector: str) -> str:
        found = await self.eval(f"document.querySelector({json.dumps(selector)}).innerText")
        return str(found)

    async def click(self, selector: str) -> None:
        """A click of the mouse in the middle of an element, as a person would: once it stands
        still, and again where it moved away under the mouse."""
        for _ in range(CLICKS):
            x, y = await self._place(selector)
            for kind in ("mousePressed", "mouseReleased"):
                await self.call(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
                )
            if await self.eval("window.clicked !== false"):  # another page has none
                return
        raise AssertionError(f"{CLICKS} clicks of the mouse did not reach {selector}")

    async def _place(self, selector: str) -> tuple[float, float]:
        """The middle of an element that can be clicked; from then on ``window.clicked``
        says whether a click met it: one whose press and release met two things meets neither."""
        x, y, reachable = await self.eval(
            f"""(async () => {{
            const found = () => document.querySelector({json.dumps(selector)});
            const frame = () => new Promise((resolve) => setTimeout(resolve, {1000 * STILL_S}));
            const until = performance.now() + {500 * WAIT_S};
            let x, y, still, reachable;
            do {{  // what is shown above it may push it out of view again, or it is made anew
                const one = found();
                one.scrollIntoView({{block: 'center'}});
                const last = one.getBoundingClientRect();
                await frame();
                const box = one.getBoundingClientRect();
                [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                still = box.x === last.x && box.y === last.y;
                const top = document.elementFromPoint(x, y);
                reachable = one === top || one.contains(top);
            }} while (!(still && reachable) && performance.now() < until);
            window.clicked = false;
            const met = (event) => (window.clicked = Boolean(found()?.contains(event.target)));
            document.addEventListener('click', met, {{capture: true, once: true}});
            return [x, y, still && reachable];
        }})()"""
        )
        assert reachable, f"{selector} is hidden, covered or moving"
        return x, y

    async def type(self, selector: str, text: str) -> None:
        await self.click(selector)
        await self.call("Input.insertText", text=text)

    async def key(self, key: str, code: int, modifiers: int = 0, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    async def choose(self, selector: str, value: str) -> None:
        """An option of a select."""
        await self.eval(
            f"""(() => {{
            const one = document.querySelector({json.dumps(selector)});
            one.value = {json.dumps(value)};
            one.dispatchEvent(new Event('change', {{bubbles: true}}));
        }})()"""
        )

    async def upload(self, selector: str, path: Path) -> None:
        root = await self.call("DOM.getDocument")
        node = await self.call(
            "DOM.querySelector", nodeId=root["root"]["nodeId"], selector=selector
        )
        await self.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(path)])

    async def names(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader meets."""
        tree = await self.call("Accessibility.getFullAXTree")
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree["nodes"]
            if not node["ignored"] and "role" in node
        ]

    async def screenshot(self, path: Path, selector: str = "") -> None:
        clip: dict[str, Any] = {}
        if selector:
            script = f"""(() => {{ scrollTo(0, 0);
                const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
                return [b.x, b.y, b.width, b.height]; }})()"""
            x, y, width, height = await self.eval(script)
            clip = {"clip": {"x": x, "y": y, "width": width, "height": height, "scale": 1}}
        answer = await self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, **clip
        )
        data = base64.b64decode(answer["data"])
        await asyncio.to_thread(path.write_bytes, data)


class Chromium:
    """A running browser. Making and ending it blocks.

    Args:
        folder: For its profile; made by it.
        flags: Beside the usual ones.

    Attributes:
        port: Of its DevTools protocol, on loopback.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        assert PATH is not None
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()
        self._process = subprocess.Popen(
            [PATH, *_FLAGS, *root, *flags, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.port = self._find_port(folder / "DevToolsActivePort")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _find_port(self, file: Path) -> int:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            assert self._process.poll() is None, "Chromium ended before it listened"
            lines = file.read_text().splitlines() if file.exists() else []
            if len(lines) > 1:
                return int(lines[0])
            time.sleep(0.02)
        raise AssertionError(f"Chromium does not listen after {WAIT_S} s")


@asynccontextmanager
async def stranger(port: int) -> AsyncIterator[Tab]:
    """A tab in a window of somebody of whom the browser knows nothing, until the ``async with``
    ends."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with http.get("/json/version") as answer:
            browser = (await answer.json())["webSocketDebuggerUrl"]
        async with _connected(http, browser) as whole:
            context = await whole.call("Target.createBrowserContext")
            try:
                target = await whole.call(
                    "Target.createTarget", url="about:blank", newWindow=True, **context
                )
                page = f"/devtools/page/{target['targetId']}"
                async with _connected(http, page) as tab:
                    await tab.start()
                    yield tab
            finally:
                await whole.call("Target.disposeBrowserContext", **context)


@asynccontextmanager
async def _connected(http: aiohttp.ClientSession, address: str) -> AsyncIterator[Tab]:
    async with http.ws_connect(address, max_msg_size=0) as socket:
        tab = Tab(socket)
        reading = asyncio.create_task(tab.read())
        try:
            yield tab
        finally:
            reading.cancel()
            await asyncio.wait([reading])


@asynccontextmanager
async def chrome(folder: Path, *flags: str) -> AsyncIterator[Tab]:
    """A Chromium of its own with one tab; it ends with the ``async with``."""
    running = await asyncio.to_thread(Chromium, folder, *flags)
    try:
        async with stranger(running.port) as tab:
            yield tab
    finally:
        await asyncio.to_thread(running.close)
