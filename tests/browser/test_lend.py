"""A browser that lends itself: a headless Chromium as a peer beside peers in Python."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
import torch
from aiohttp import web

from astra_mesh.limits import TAB_LOST_S
from astra_mesh.peer.answer import new_request
from astra_mesh.web import ApiConfig, files, serving
from astra_mesh.web.tabfiles import TabFiles
from astra_mesh.wire.messages import Options, Prepare, RequestId, Sampling, Task, Use
from tests.browser.chrome import Tab
from tests.browser.conftest import browser
from tests.browser.lending import (
    JOIN_S,
    Line,
    lend,
    listed,
    owners,
    ready,
    share,
    slow_line,
    slow_peers,
    tabs_of,
    tokens_of,
)
from tests.browser.pages import Shown, shown
from tests.browser.test_page import CONTRAST
from tests.bundles import write_bundle
from tests.integration.mesh_fixtures import (
    Reply,
    TestClient,
    client_of,
    fit_small,
    mesh_of,
    picture,
    until,
)
from tests.javascript.test_engine import VENDOR
from tests.timings import patient
from tests.unit.families.making import CONFIGS, make_tensors

SHIPPED = Path(__file__).parents[2] / "models"
PROMPT = [640, 11, 262, 717, 286, 262, 345, 12] * 8
SHORT = Sampling(max_new_tokens=12)
SOLO, EXACT = Options(use=Use.SOLO), Options(use=Use.ALL, codec="fp32")
TOKEN = "a-token-of-the-tests"
__all__ = ["slow_peers"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not VENDOR.exists(), reason="without the browser runtime: make runtime"),
]


def ask(client: TestClient, options: Options = EXACT) -> RequestId:
    return client.send(Task.GENERATE, "tiny-gpt2", tokens=PROMPT, options=options, sampling=SHORT)


@pytest.mark.usefixtures("slow_peers")
async def test_texts_are_those_of_the_reference(tab: Tab) -> None:
    """fp32: those of one device; with codes: those of the same plan in one process."""
    async with shown(SHIPPED, ["alone"]) as on:
        phone = await lend(tab, on, "tiny-gpt2")
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            exact = await client.reply(ask(client))
            assert phone in owners(exact)
            assert share(exact, phone) > 10
            assert exact.ids == solo.ids
            for codec, rate in (("vq", 0), ("fp16", 0)):
                options = Options(use=Use.ALL, codec=codec, rate=rate)
                reply = await client.reply(ask(client, options))
                plan = reply.done().report.plan
                assert (plan.codec, share(reply, phone) > 10) == (codec, True)
                wanted = await asyncio.to_thread(
                    tokens_of, SHIPPED / "tiny-gpt2", plan, PROMPT, SHORT
                )
                assert reply.ids == wanted
        await tab.until("document.getElementById('lend-done').textContent.startsWith('3 shares')")
        said = await tab.text("#lend-models")
        assert "ready" in said.split("tiny-gpt2")[1].split("vit-tiny")[0]
        assert "offered" in said.split("vit-tiny")[1]
        own = r"Chrome on Linux computer [0-9a-f]{4} \(this browser\)\n"
        assert re.search(own, await tab.text("#devices"))
        assert tab.complaints == []


@pytest.mark.usefixtures("slow_peers")
async def test_a_rate_that_is_not_loaded_keeps_nobody_waiting(tab: Tab) -> None:
    """The request goes on without the tab at once, and a later one has it."""
    line = Line(200e6)
    options = Options(use=Use.ALL, codec="vq", rate=64)
    async with (
        shown(SHIPPED, ["alone"]) as on,
        slow_line(on.server.port, line) as url,
    ):
        phone = await lend(tab, on, "tiny-gpt2", url=url)
        async with client_of(on.peers[0]) as client:
            await client.reply(ask(client, Options(use=Use.ALL, codec="vq", rate=16)))
            line.bps = 4e6  # the rate's files take seconds
            began = time.monotonic()
            reply = await client.reply(ask(client, options))
            assert time.monotonic() - began < patient(2.5)
            assert phone not in owners(reply)
            [note] = [one for one in reply.done().report.notes if "planned again" in one]
            assert note.endswith(
                "it refused: this tab is still loading 64 bits of this codebook; ready in a moment"
            )
            await tab.until(
                "document.getElementById('lend-problem').textContent.startsWith("
                "'It did not take the last one: this tab is still loading')"
            )
            now = "document.getElementById('lend-now').textContent"
            assert (await tab.eval(now)).endswith("The newest request went on without it.")
            said = "document.getElementById('lend-models').textContent"
            await tab.until(f"/ready: .*; fetching 64 bits: [0-9.]+ .B of [0-9.]+ MB/.test({said})")
            bar = "document.querySelector('#lend-models progress[max]')"
            await tab.until(f"{bar}?.value > 0 && {bar}.value < {bar}.max")
            line.bps = 200e6
            async with asyncio.timeout(JOIN_S):
                while phone not in owners(reply := await client.reply(ask(client, options))):
                    await asyncio.sleep(0.2)
            plan = reply.done().report.plan
            wanted = await asyncio.to_thread(tokens_of, SHIPPED / "tiny-gpt2", plan, PROMPT, SHORT)
            assert reply.ids == wanted
        await tab.until("document.getElementById('lend-problem').hidden")
        await tab.until("!document.querySelector('#lend-models progress')")


@pytest.mark.parametrize("codec", ["fp32", "vq"])
async def test_labels_are_those_of_one_device(tab: Tab, sample: Path, codec: str) -> None:
    async with shown(SHIPPED, ["left", "right"]) as on:
        phone = await lend(tab, on, "vit-tiny")
        found = {}
        async with client_of(on.peers[1]) as client:
            for use in (Use.SOLO, Use.ALL):
                reply = await client.reply(
                    client.send(
                        Task.CLASSIFY,
                        "vit-tiny",
                        image=sample.read_bytes(),
                        options=Options(use=use, codec=codec),
                    )
                )
                found[use] = {one.label: one.probability for one in reply.done().labels}
        assert phone in owners(reply)
        assert next(iter(found[Use.ALL])) == next(iter(found[Use.SOLO]))
        near = 1e-3 if codec == "fp32" else 0.02  # codes cost something, on any device
        assert all(
            abs(found[Use.ALL][one] - found[Use.SOLO][one]) < near for one in found[Use.SOLO]
        )


async def test_vectors_and_other_families(tab: Tab, models: Path) -> None:
    async with shown(models, ["left", "right"]) as on:
        phone = await lend(tab, on, "feelings", "pictures")
        asked = [
            (Task.EMBED, "feelings", {"tokens": [7 * i % 64 for i in range(40)]}),
            (Task.CLASSIFY, "feelings", {"tokens": [3 * i % 64 for i in range(40)]}),
            (Task.CLASSIFY, "pictures", {"image": picture()}),
        ]
        async with client_of(on.peers[0]) as client:
            for task, model, inputs in asked:
                solo, exact = [
                    (await client.reply(client.send(task, model, options=options, **inputs)))  # type: ignore[arg-type]
                    for options in (SOLO, EXACT)
                ]
                assert phone in owners(exact), model
                mine, wanted = exact.done(), solo.done()
                labels = {one.label: one.probability for one in wanted.labels}
                assert all(abs(labels[one.label] - one.probability) < 1e-3 for one in mine.labels)
                if task is Task.EMBED:
                    vectors = [
                        torch.frombuffer(bytearray(one.vector), dtype=torch.float32)
                        for one in (mine, wanted)
                    ]
                    torch.testing.assert_close(*vectors, atol=1e-3, rtol=0)


async def test_a_llama_with_shared_heads(tab: Tab, tmp_path: Path) -> None:
    """Rotations and heads that share keys: the reference's text, exact and with codes."""
    write_bundle(tmp_path / "llama", CONFIGS["llama"], make_tensors("llama"))
    fit_small(tmp_path / "llama")
    prompt = [7 * i % 61 for i in range(32)]
    async with shown(tmp_path, ["left", "right"]) as on:
        phone = await lend(tab, on, "llama")
        async with client_of(on.peers[0]) as client:

            async def asked(options: Options) -> Reply:
                return await client.reply(
                    client.send(
                        Task.GENERATE, "llama", tokens=prompt, options=options, sampling=SHORT
                    )
                )

            solo, exact = await asked(SOLO), await asked(EXACT)
            assert phone in owners(exact)
            assert exact.ids == solo.ids
            coded = await asked(Options(use=Use.ALL, codec="vq"))
            assert phone in owners(coded)
            plan = coded.done().report.plan
            wanted = await asyncio.to_thread(tokens_of, tmp_path / "llama", plan, prompt, SHORT)
            assert coded.ids == wanted


_LOCKS = """
    globalThis.locks = [];
    Object.defineProperty(navigator, "wakeLock", { value: { request: async (kind) => {
      const lock = { kind, held: true, release: async () => {
        lock.held = false;
        lock.onrelease?.();
      } };
      locks.push(lock);
      return lock;
    } } });"""


@pytest.mark.usefixtures("slow_peers")
async def test_the_screen_stays_on_only_while_it_computes(tab: Tab) -> None:
    await tab.call("Page.addScriptToEvaluateOnNewDocument", source=_LOCKS)
    async with shown(SHIPPED, ["alone"]) as on:
        await lend(tab, on, "tiny-gpt2")
        assert await tab.eval("locks.length") == 0
        async with client_of(on.peers[0]) as client:
            await client.reply(ask(client))
            await tab.until("locks.length === 1")
            await tab.until("!locks[0].held")
            await client.reply(ask(client))
            await tab.until("locks.length === 2")
            assert await tab.eval("locks[1].held && locks[1].kind === 'screen'")
        await tab.click("#lend-leave")
        assert await tab.eval("locks.some((one) => one.held)") is False


async def test_two_browsers_give_each_other_codes(tab: Tab, other_tab: Tab) -> None:
    async with shown(SHIPPED, ["left", "right"]) as on:
        first = await lend(tab, on, "tiny-gpt2")
        await other_tab.open(f"{on.url}#lend")
        await other_tab.until("document.getElementById('lend-asked')?.hidden === false")
        await other_tab.click("#lend-join")
        await listed(other_tab, on, 2)
        second = next(one for one in tabs_of(on, 0) if one != first)
        await ready(on, second, "tiny-gpt2")
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            reply = await client.reply(ask(client))
            assert {first, second} < set(owners(reply))
            assert len(owners(reply)) == 4
            assert reply.ids == solo.ids
        names = [on.peers[0].others()[one].name for one in (first, second)]
        assert len(set(names)) == 2  # though the devices are alike
        said = await tab.text("#devices")
        assert all(re.fullmatch("Chrome on Linux computer [0-9a-f]{4}", one) for one in names)
        assert f"{names[0]} (this browser)\n" in said
        assert f"{names[1]}\n" in said


@pytest.mark.usefixtures("slow_peers")
async def test_a_browser_that_dies_in_a_request(tab: Tab) -> None:
    """Frozen without a word, so that the request waits for it; then gone: others do its part."""
    async with shown(SHIPPED, ["alone"]) as on:
        phone = await lend(tab, on, "tiny-gpt2")
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            assert phone in owners(await client.reply(ask(client)))
            await tab.eval("document.onfreeze = null")
            await tab.call("Page.setWebLifecycleState", state="frozen")
            await asyncio.sleep(0.5)  # so that it is
            request = ask(client)
            await asyncio.sleep(0.5)
            await tab.fire("Page.crash")
            killed = time.monotonic()
            reply = await client.reply(request)
            took = time.monotonic() - killed
        assert reply.ids == solo.ids
        assert phone not in owners(reply)
        assert took < patient(4)
        await until(lambda: not tabs_of(on, 0))


@pytest.mark.usefixtures("slow_peers")
async def test_a_browser_that_is_frozen_in_a_request(tab: Tab) -> None:
    """Without a word, as iPhones do it: its socket stays open, and the others wait no longer than
    for a tab.
    """
    async with shown(SHIPPED, ["alone"]) as on:
        phone = await lend(tab, on, "tiny-gpt2")
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            assert phone in owners(await client.reply(ask(client)))
            await tab.eval("document.onfreeze = null")
            await tab.call("Page.setWebLifecycleState", state="frozen")
            await asyncio.sleep(0.5)  # so that it is
            began = time.monotonic()
            reply = await client.reply(ask(client))
            assert time.monotonic() - began < patient(TAB_LOST_S + 1.5)
        assert reply.ids == solo.ids
        assert phone not in owners(reply)


@pytest.mark.usefixtures("slow_peers")
async def test_a_browser_that_tells_that_it_is_frozen_costs_nothing(tab: Tab) -> None:
    async with shown(SHIPPED, ["alone"]) as on:
        phone = await lend(tab, on, "tiny-gpt2")
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            assert phone in owners(await client.reply(ask(client)))
            began = time.monotonic()
            await tab.call("Page.setWebLifecycleState", state="frozen")
            reply = await client.reply(ask(client))
            assert time.monotonic() - began < patient(2.5)
        assert reply.ids == solo.ids
        await until(lambda: not tabs_of(on, 0))
        await tab.call("Page.setWebLifecycleState", state="active")
        await listed(tab, on)
        now = "document.getElementById('lend-now').textContent"
        await tab.until(f"{now}.endsWith('Since it joined again no request came.')")


@pytest.mark.usefixtures("slow_peers")
async def test_a_network_that_goes_away_in_a_request_is_said_at_once(tab: Tab) -> None:
    """Nothing is closed: the page says that it is away, and after it that it was lost midway."""
    line = Line(200e6)
    async with (
        shown(SHIPPED, ["alone"]) as on,
        slow_line(on.server.port, line) as url,
    ):
        phone = await lend(tab, on, "tiny-gpt2", url=url)
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            assert phone in owners(await client.reply(ask(client)))
            now = "document.getElementById('lend-now').textContent"
            await tab.until(f"{now}.includes('It took part in the newest request')")
            line.spare_bytes, line.later_bps = 3_000, 1.0  # codes of a few tokens
            request = ask(client)
            await until(lambda: line.bps == 1.0)
            went = time.monotonic()
            state = "document.getElementById('lend-state').textContent"
            await tab.until(f"{state}.startsWith('Not connected: nothing is heard of alone')")
            assert time.monotonic() - went < patient(3.5)
            assert await tab.eval(now) == ""
            models = await tab.text("#lend-models")
            assert ("loaded" in models, "ready" in models) == (True, False)
            reply = await client.reply(request)
        assert reply.ids == solo.ids
        assert phone not in owners(reply)
        line.bps = 200e6
        await listed(tab, on)
        await tab.until(f"{now}.includes('It was lost midway through the newest request')")
        assert "1 share computed" in await tab.text("#lend-done")


async def test_a_device_that_sleeps_is_lost_and_comes_back_by_itself(tab: Tab) -> None:
    async with shown(SHIPPED, ["left", "right"]) as on:
        await lend(tab, on, "tiny-gpt2")
        await tab.call("Page.setWebLifecycleState", state="frozen")
        await until(lambda: not any(tabs_of(on, i) for i in (0, 1)), 20)
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            assert (await client.reply(ask(client))).ids == solo.ids
        await asyncio.sleep(8)
        await tab.call("Page.setWebLifecycleState", state="active")
        phone = await listed(tab, on)
        await ready(on, phone, "tiny-gpt2")
        async with client_of(on.peers[0]) as client:
            reply = await client.reply(ask(client))
        assert phone in owners(reply)
        assert reply.ids == solo.ids


async def test_it_joins_again_when_its_peer_is_back(tab: Tab) -> None:
    async with mesh_of(["left", "right"], SHIPPED) as peers:
        async with serving(peers[1], ApiConfig(port=0)) as server:
            port = server.port
            first = await lend(tab, Shown(peers, server))
        await tab.until("document.getElementById('lend-state').textContent.startsWith('Not conn')")
        await until(lambda: first not in peers[0].others())
        await asyncio.sleep(6)  # by then it would wait 8 s, if it waited twice as long each time
        async with serving(peers[1], ApiConfig(port=port)) as server:
            began = time.monotonic()
            await listed(tab, Shown(peers, server))
            assert time.monotonic() - began < patient(5)


@pytest.mark.usefixtures("slow_peers")
async def test_a_further_rate_comes_from_a_peer_that_was_started_again(tab: Tab) -> None:
    """It knows no file of before until the tab asks for the model's manifest once more."""
    rate = Options(use=Use.ALL, codec="vq", rate=64)
    async with mesh_of(["left", "right"], SHIPPED) as peers:
        async with serving(peers[1], ApiConfig(port=0)) as server:
            first = await lend(tab, Shown(peers, server), "tiny-gpt2")
        await until(lambda: first not in peers[0].others())
        async with serving(peers[1], ApiConfig(port=server.port)) as server:
            phone = await listed(tab, Shown(peers, server))
            async with client_of(peers[0]) as client, asyncio.timeout(JOIN_S):
                while phone not in owners(await client.reply(ask(client, rate))):
                    await asyncio.sleep(0.2)


_BARS = """
    globalThis.bars = [];
    new MutationObserver(() => {
      const bar = document.querySelector("#lend-models progress[max]");
      if (bar) bars.push([bar.value, bar.max]);
    }).observe(document.getElementById("lend-models"), { childList: true });"""


def _one_bar(bars: list[list[int]]) -> None:
    """Over runtime, blocks and codebook; it grows, in small steps, until all is there."""
    done, totals = zip(*bars, strict=True)
    assert len(set(totals)) == 1
    assert totals[0] > 3.5e6 + 8.1e6
    assert list(done) == sorted(done)
    assert done[0] < 1e6
    assert done[-1] > totals[0] - 1e6
    assert max(b - a for a, b in pairwise(done)) < 2e6


async def test_over_a_slow_line(tab: Tab) -> None:
    """8 Mbit/s and 40 ms each way, also for the model's files."""
    async with (
        shown(SHIPPED, ["left", "right"]) as on,
        slow_line(on.server.port, Line(8e6, 0.04)) as url,
    ):
        phone = await lend(tab, on, url=url)
        await tab.eval(_BARS)
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            loading = asyncio.create_task(ready(on, phone, "tiny-gpt2"))
            await tab.until("document.querySelector('#lend-models progress')?.value > 0")
            await loading
            _one_bar(await tab.eval("bars"))
            reply = await client.reply(ask(client))
            assert phone in owners(reply)
            assert reply.ids == solo.ids


async def test_a_file_that_was_altered_is_not_used(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TabFiles.blob

    async def blob(self: TabFiles, request: web.Request) -> web.StreamResponse:
        answer = await original(self, request)
        assert isinstance(answer, web.FileResponse)
        data = bytearray(await asyncio.to_thread(answer._path.read_bytes))
        data[len(data) // 2] ^= 1
        return web.Response(body=bytes(data))

    monkeypatch.setattr(TabFiles, "blob", blob)
    async with shown(SHIPPED, ["left", "right"]) as on:
        phone = await lend(tab, on)
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            reply = await client.reply(ask(client))
            assert reply.ids == solo.ids
            assert phone not in owners(reply)
            models = "document.getElementById('lend-models').textContent"
            await tab.until(f"{models}.includes('altered')")
            [note] = (await client.reply(ask(client))).done().report.notes
            why = (
                "it could not load the model: a file of the model is not the one that was promised"
            )
            assert note.startswith("planned without Chrome on Linux")
            assert why in note
            now = "document.getElementById('lend-now').textContent"
            await tab.until(f"{now}.includes('{why}')")


async def test_a_file_that_the_host_s_disk_damaged_comes_whole_the_second_time(
    tab: Tab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The browser asks for it past its cache, and the host looks at its own copy."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with shown(SHIPPED, ["alone"]) as on, aiohttp.ClientSession() as http:
        async with http.get(f"{on.url}tab/models") as answer:
            model = next(one for one in await answer.json() if one["name"] == "tiny-gpt2")
        async with http.get(f"{on.url}tab/models/{model['id']}") as answer:
            weights = (await answer.json())["weights"]
        for one in weights[:2]:
            (file,) = tmp_path.glob(f"astra-mesh-tab-*/*/{one['sha256']}")
            file.write_bytes(b"damaged")
        await lend(tab, on, "tiny-gpt2")
        assert "altered" not in await tab.text("#lend-models")
    warned = [one for one in caplog.messages if one.startswith("a file of tiny-gpt2 for tabs was")]
    assert 1 <= len(warned) <= 2  # all files of the model are made anew at once


async def test_a_download_that_breaks_off_is_begun_again(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer dies while it sends a block, and is started again."""
    original, dies = TabFiles.blob, True

    async def blob(self: TabFiles, request: web.Request) -> web.StreamResponse:
        answer = await original(self, request)
        assert isinstance(answer, web.FileResponse)
        data = await asyncio.to_thread(answer._path.read_bytes)
        if not dies or len(data) < 500_000:
            return answer
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    monkeypatch.setattr(TabFiles, "blob", blob)
    async with mesh_of(["left", "right"], SHIPPED) as peers:
        async with serving(peers[1], ApiConfig(port=0)) as server:
            on = Shown(peers, server)
            phone = await lend(tab, on)
            link = peers[0].link(phone)
            assert link is not None
            model = next(
                one.id for one in peers[0].others()[phone].models if one.name == "tiny-gpt2"
            )
            link.send(Prepare(request=new_request(), model=model))
            said = "document.getElementById('lend-models').textContent"
            await tab.until(f"{said}.includes('not fetched: the line to the peer')")
            assert re.search("[0-9a-f]{64}", await tab.eval(said)) is None
            await until(lambda: len(peers[0].others()[phone].models) == 1)
        dies = False
        await until(lambda: phone not in peers[0].others())
        async with serving(peers[1], ApiConfig(port=server.port)) as server:
            on = Shown(peers, server)
            again = await listed(tab, on)
            await until(lambda: all(len(peer.others()[again].models) == 2 for peer in peers))
            await ready(on, again, "tiny-gpt2")
            await tab.until(f"{said}.split('vit-tiny')[0].includes('ready')")


async def test_a_peer_without_the_runtime_says_so(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [one for one in files.read_all() if isinstance(one, files.PageFile)]
    monkeypatch.setattr(files, "read_all", lambda: own)
    async with shown(SHIPPED, ["alone"]) as on:
        await tab.open(f"{on.url}#lend")
        await tab.until("document.getElementById('lend-asked')?.hidden === false")
        await tab.until(
            "document.getElementById('lend-problem').textContent.includes('make runtime')"
        )
        assert await tab.eval("document.getElementById('lend-join').disabled")
        assert await tab.eval("document.getElementById('lend-form').hidden") is False


async def test_a_page_that_is_loaded_again_goes_on_lending(tab: Tab) -> None:
    """Phones throw pages away that nobody looks at, and load them anew."""
    async with shown(SHIPPED, ["left", "right"]) as on:
        first = await lend(tab, on)
        await tab.eval("location.reload()")
        await until(lambda: first not in on.peers[0].others())
        assert await listed(tab, on) != first
        await tab.click("#lend-leave")
        await until(lambda: not tabs_of(on, 0))
        await tab.eval("location.reload()")
        await tab.until("document.getElementById('lend-form')?.hidden === false")
        await asyncio.sleep(0.5)
        assert await tab.eval("document.getElementById('lend-form').hidden") is False


async def test_the_panel_says_who_planned_without_it_and_why(tab: Tab) -> None:
    """Another peer than the one that serves the page."""
    async with shown(SHIPPED, ["left", "right"]) as on:
        phone = await lend(tab, on, "tiny-gpt2")
        async with client_of(on.peers[0]) as client:
            await client.reply(ask(client, SOLO))
            now = "document.getElementById('lend-now').textContent"
            await tab.until(f"{now}.includes('left planned it: ')")
            reply = await client.reply(ask(client))
            assert phone in owners(reply)
            await tab.until(f"{now}.includes('It took part in the newest request')")


async def test_the_keyboard_stays_on_the_button(tab: Tab) -> None:
    async with shown(SHIPPED, ["alone"]) as on:
        await tab.open(f"{on.url}#lend")
        await tab.until("document.activeElement.id === 'lend-join'")
        await tab.key("Enter", 13, text="\r")
        await tab.until("document.getElementById('lend-on').hidden === false")
        assert await tab.eval("document.activeElement.id") == "lend-leave"
        await tab.key("Enter", 13, text="\r")
        await tab.until("document.getElementById('lend-form').hidden === false")
        assert await tab.eval("document.activeElement.id") == "lend-join"


async def test_a_code_that_is_scanned_into_an_open_page(tab: Tab) -> None:
    async with shown(SHIPPED, ["alone"], token=TOKEN) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('token').hidden === false")
        await tab.eval(f"location.hash = 'lend&token={TOKEN}'")
        await tab.until("document.getElementById('token').hidden")
        await tab.until("document.getElementById('lend-asked').hidden === false")
        assert TOKEN not in await tab.eval("location.href")
        await tab.until("document.getElementById('main').inert === false")
        await tab.click("#lend-join")
        await listed(tab, on)


async def test_threads_are_used_where_the_context_is_secure(tab: Tab) -> None:
    async with shown(SHIPPED, ["alone"]) as on:
        phone = await lend(tab, on)
        assert await tab.eval("crossOriginIsolated")
        device = on.peers[0].others()[phone].device
        assert device is not None
        assert device.threads == min(8, await tab.eval("navigator.hardwareConcurrency"))
        assert tab.complaints == []


async def test_leaving_is_a_goodbye(tab: Tab) -> None:
    async with shown(SHIPPED, ["left", "right"]) as on:
        phone = await lend(tab, on)
        began = time.monotonic()
        await tab.click("#lend-leave")
        await until(lambda: all(phone not in peer.others() for peer in on.peers))
        assert time.monotonic() - began < patient(4)
        assert await tab.eval("document.getElementById('lend-form').hidden") is False
        assert "this browser" not in await tab.text("#devices")
        assert tab.complaints == []


async def test_over_plain_http_from_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secure context: no WebCrypto, no threads, no wake lock; it computes all the same."""
    settings = {"token": TOKEN, "hosts": ("phone.test",)}
    monkeypatch.setattr("astra_mesh.web.invitation.is_loopback", lambda host: False)
    monkeypatch.setattr("astra_mesh.web.invitation.is_alone", lambda listen: False)
    async with (
        browser("--host-resolver-rules=MAP phone.test 127.0.0.1") as tab,
        shown(SHIPPED, ["left", "right"], **settings) as on,
    ):
        await tab.open(f"http://phone.test:{on.server.port}/#lend&token={TOKEN}")
        assert await tab.eval("isSecureContext") is False
        assert tab.complaints == []
        await tab.until("document.getElementById('lend-asked')?.hidden === false")
        await tab.click("#lend-join")
        phone = await listed(tab, on)
        await ready(on, phone, "tiny-gpt2", "vit-tiny")
        await _tells_who_and_where(tab, on.peers[1].others()[phone].name)
        async with client_of(on.peers[0]) as client:
            solo = await client.reply(ask(client, SOLO))
            reply = await client.reply(ask(client))
        assert phone in owners(reply)
        assert reply.ids == solo.ids
        await tab.click("#lend summary")
        await tab.click("#lend-invite")
        await tab.until("document.querySelector('#lend-qr svg')")
        assert f"/#lend&token={TOKEN}" in await tab.text("#lend-address")


async def _tells_who_and_where(tab: Tab, name: str) -> None:
    """Which of the devices serves the page, and which it is; why no model is on the GPU, once."""
    why = "browsers offer the GPU to pages on HTTPS or localhost only"
    for place, text in (
        ("devices", f"{name} (this browser)"),
        ("devices", "right (it serves this page)"),
        ("lend-state", f"Joined through right as {name}"),
        ("lend-why", f"On the processor ({why})."),
    ):
        await tab.until(f"document.getElementById('{place}').textContent.includes({text!r})")
    lines = "document.getElementById('lend-models').textContent"
    await tab.until(f"{lines}.split('on the processor').length === 3")
    assert why not in await tab.text("#lend-models")


@pytest.mark.parametrize("dark", [False, True])
async def test_the_panel_fits_a_small_phone_and_everybody(tab: Tab, dark: bool) -> None:
    async with shown(SHIPPED, ["left"]) as on:
        await tab.shape(320, 640, dark)
        await lend(tab, on)
        assert await tab.eval("document.documentElement.scrollWidth") <= 320
        right = (  # of each link of the line that scrolls, once it is scrolled to
            "[...document.querySelectorAll('nav a')].map((a) => {"
            " a.scrollIntoView({ inline: 'nearest', block: 'nearest', behavior: 'instant' });"
            " return a.getBoundingClientRect().right; })"
        )
        assert max(await tab.eval(right)) <= 320
        assert await tab.eval("document.querySelector('nav').getBoundingClientRect().right") <= 320
        assert await tab.eval(CONTRAST) == []
        met = await tab.names()
        assert ("button", "Leave") in met
        assert any(role == "status" for role, _ in met)
        box = await tab.eval("document.getElementById('lend-leave').getBoundingClientRect().height")
        assert box >= 40
