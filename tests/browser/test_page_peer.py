"""The page when its peer goes, hangs, wants a token or has too many pages."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from astra_mesh import limits
from tests.browser.chrome import Tab
from tests.browser.pages import begin, devices, no_complaints, shown
from tests.timings import patient

PROMPT = " ".join(f"w{7 * i % 64}" for i in range(40))
TOKEN = "a/token+of~the=tests"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@asynccontextmanager
async def process(models: Path, folder: Path) -> AsyncIterator[tuple[Process, str]]:
    """A peer that can be frozen, and where its page is."""
    argv = ["--name", "frozen", "--port", "0", "--listen", "127.0.0.1", "--no-discovery"]
    argv += ["--api-port", "0", "--model", str(models / "words"), "--state-dir", str(folder)]
    peer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "astra_mesh", "peer", *argv, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert peer.stdout is not None
        while not (found := re.search(rb"http://[^ ]+:\d+/", line := await peer.stdout.readline())):
            assert line, "it ended"
        yield peer, found[0].decode()
    finally:
        peer.kill()
        await peer.wait()


async def test_an_answer_that_is_cut_off_is_said_in_a_sentence(
    tab: Tab, models: Path, slow_steps: None
) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await begin(tab, "text")
        assert on.server._runner is not None
        assert on.server._runner.server is not None
        for one in on.server._runner.server.connections:  # as where the process is killed
            if one.transport is not None:
                one.transport.abort()
        await tab.until("!document.getElementById('ask-problem').hidden")
        assert await tab.text("#ask-problem") == "The answer was cut off: the peer went away."
        assert await tab.text("#answers .made") != ""  # what came stays
        assert await tab.eval("document.getElementById('ask-go').disabled") is False


async def test_a_killed_peer_is_gone_within_five_seconds(
    tab: Tab, models: Path, tmp_path: Path
) -> None:
    async with shown(models, ["left", "right"]) as on:
        argv = ["--name", "victim", "--port", "0", "--listen", "127.0.0.1", "--no-discovery"]
        argv += ["--no-api", "--model", str(models / "words"), "--state-dir", str(tmp_path)]
        argv += [word for one in on.peers for word in ("--peer", f"127.0.0.1:{one.port}")]
        victim = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "astra_mesh", "peer", *argv, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            await tab.open(on.url)
            await tab.until(devices(3))
            assert "victim" in await tab.text("#devices")
            victim.kill()
            killed = time.monotonic()
            await tab.until(devices(2))
            took = time.monotonic() - killed
        finally:
            if victim.returncode is None:
                victim.kill()
            await victim.wait()
        assert "victim" not in await tab.text("#devices")
        assert took < 5.0
        assert await tab.text("#state") == "2 devices"


async def test_the_page_says_that_its_peer_is_gone_and_comes_back(tab: Tab, models: Path) -> None:
    async with shown(models, ["first"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        port = on.server.port
    await tab.until("document.getElementById('state')?.classList.contains('bad')")
    assert "does not answer" in await tab.text("#state")
    async with shown(models, ["second"], port=port):
        await tab.until("document.getElementById('me').textContent === 'second'")
        assert await tab.text("#state") == "1 device"


async def test_a_peer_that_says_nothing_any_more_is_told_and_ends_what_was_asked(
    tab: Tab, models: Path, tmp_path: Path
) -> None:
    """Frozen, it closes nothing; neither does a network that was cut."""
    async with process(models, tmp_path) as (peer, url):
        await tab.open(url)
        await tab.until("document.getElementById('ask-model').value === 'words'")
        await tab.type("#ask-text", PROMPT)
        peer.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        await tab.click("#ask-go")
        await tab.until("document.getElementById('state').classList.contains('bad')")
        assert time.monotonic() - frozen < patient(8.0)
        await tab.until("!document.getElementById('ask-problem').hidden", within_s=1.0)
        for place in ("#state", "#ask-problem"):
            assert (await tab.text(place)).startswith("The peer does not answer")
        assert await tab.eval("document.getElementById('ask-go').disabled") is False
        await tab.click("#ask-go")  # while it is known to be silent
        await tab.until("!document.getElementById('ask-go').disabled", within_s=patient(10.0))
        assert (await tab.text("#ask-problem")).startswith("The peer does not answer")
        peer.send_signal(signal.SIGCONT)
        await tab.until("document.getElementById('state').textContent === '1 device'")
        await tab.click("#ask-go")
        await tab.until("document.querySelector('#answers .cost') !== null")


async def test_a_page_that_stood_still_does_not_blame_its_peer(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        await tab.eval("""window.bad = 0; new MutationObserver(() => (window.bad += 1))
            .observe(document.getElementById('state'), { attributes: true, childList: true });
            for (const end = Date.now() + 8000; Date.now() < end;);""")
        await asyncio.sleep(2.0)
        assert await tab.eval("window.bad") == 0
        await no_complaints(tab, on.url)


async def test_a_token_is_asked_for_once(tab: Tab, models: Path) -> None:
    async with shown(models, ["locked"], token=TOKEN) as on:
        await tab.open(on.url)
        await tab.until("!document.getElementById('token').hidden")
        assert await tab.eval("document.getElementById('main').inert") is True
        assert await tab.eval("document.getElementById('token-problem').hidden") is True
        await tab.type("#token-text", "not-the-right-token")
        await tab.click("#token button")
        await tab.until("!document.getElementById('token-problem').hidden")
        assert "not the token of this peer" in await tab.text("#token-problem")
        assert await tab.text("#state") == "locked"
        await tab.type("#token-text", f" {on.url}#token={TOKEN.replace('+', '%2B')}")
        await tab.click("#token button")
        await tab.until(devices(1))
        await tab.eval("localStorage.clear()")
        await tab.open("about:blank")
        await tab.open(on.url)
        await tab.until("!document.getElementById('token').hidden")
        await tab.type("#token-text", TOKEN)
        await tab.click("#token button")
        await tab.until(devices(1))
        await tab.eval("localStorage.clear()")
        await tab.open("about:blank")
        await tab.open(f"{on.url}#token={TOKEN.replace('+', '%2B')}")  # as the peer prints it
        await tab.until(devices(1))
        assert await tab.eval("location.hash") == ""  # not left for others to see


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_the_figures_open_with_and_without_a_token(
    tab: Tab, models: Path, token: str | None
) -> None:
    async with shown(models, ["alone"], token=token) as on:
        await tab.open(on.url)
        if token is not None:
            await tab.until("!document.getElementById('token').hidden")
            assert await tab.eval("document.getElementById('metrics').hidden") is True
            await tab.type("#token-text", token)
            await tab.click("#token button")
        await tab.until(devices(1))
        await tab.click("#metrics")
        await tab.until("document.body.innerText.includes('# TYPE astra_mesh_')")


async def test_a_name_written_from_right_to_left_keeps_to_itself(tab: Tab, models: Path) -> None:
    hebrew = "\u05d0\u05d1\u05d2"
    async with shown(models, [f"{hebrew}\u202e"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        await tab.until("document.querySelector('#pair-devices li')")
        for place in ("#me", "#devices b", "#pair-devices li"):
            assert (await tab.text(place)).startswith(f"\u2068{hebrew}\u2069"), place
        assert "\u202e" not in await tab.eval("document.documentElement.textContent")
        name, follows = await tab.eval(
            f"""(async () => {{  // where the name and what follows it are drawn
            const {{ named }} = await import('/page/dom.js');
            const text = new Text(named('{hebrew}') + ' (12)');
            document.body.append(text);
            return ['\u05d0', '('].map((letter) => {{
              const range = new Range();
              range.setStart(text, text.data.indexOf(letter));
              range.setEnd(text, text.data.indexOf(letter) + 1);
              return range.getBoundingClientRect().left;
            }});
          }})()"""
        )
        assert name < follows


async def test_more_pages_than_a_peer_takes(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        assert on.server._state.pages == 1
        assert on.peers[0].watch.active
        on.server._state.pages = limits.API_LIVE + 1  # the page that reloads leaves its place
        await tab.open(on.url)
        await tab.until("document.getElementById('state')?.classList.contains('bad')")
        on.server._state.pages = 0
        await tab.until(devices(1))
