"""The page of live peers in a headless Chromium: type, click, upload, look."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from astra_mesh import limits
from astra_mesh.peer.loading import loading
from tests.browser.chrome import Tab
from tests.browser.pages import begin, devices, no_complaints, shown
from tests.bundles import BERT, bert_tensors, write_bundle
from tests.integration.mesh_fixtures import until
from tests.integration.web_fixtures import busy
from tests.timings import patient

PROMPT = " ".join(f"w{7 * i % 64}" for i in range(40))
TOKEN = "a/token+of~the=tests"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


async def spans(tab: Tab) -> list[str]:
    titles = "document.querySelectorAll('#request-picture rect title')"
    script = f"[...{titles}].map((one) => one.textContent)"
    return [str(one) for one in await tab.eval(script)]


def blocks_of(titles: list[str]) -> set[tuple[str, str]]:
    """Who did something in which block."""
    return {(t.split(",")[0], t.split("block ")[1][0]) for t in titles if "block " in t}


async def test_a_text_is_asked_answered_and_shown_block_by_block(
    tab: Tab, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINKS_TELL_S", 0.2)
    async with shown(models, ["left", "middle", "right"]) as on:
        await tab.open(on.url)
        await tab.until(devices(3))
        assert await tab.text("#me") == "right"
        await tab.choose("#ask-model", "words")
        await tab.click("#ask summary")
        await tab.choose("#ask-use", "all")
        await tab.eval("document.getElementById('ask-tokens').value = 6")
        await tab.type("#ask-text", PROMPT)
        await tab.click("#ask-go")
        await tab.until("document.querySelector('#answers .cost')?.textContent.includes('took')")
        made = await tab.text("#answers .made")
        assert made.strip().startswith("w")
        cost = await tab.text("#answers .cost")
        assert "3 devices, 16 bits per token and block" in cost
        await tab.until("document.querySelector('#request-table tbody tr:nth-child(3)')")
        said = await tab.text("#request-said")
        assert "generate with words: answered." in said
        assert "6 new tokens" in said
        # Every peer's steps come here, in all blocks; those of the others perhaps after the answer.
        everywhere = {
            (name, str(block)) for name in ("left", "middle", "right") for block in range(3)
        }
        deadline = time.monotonic() + patient(10.0)
        while (seen := blocks_of(await spans(tab))) != everywhere and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        titles = await spans(tab)
        assert seen == everywhere, titles
        kinds = {title.split(": ")[1].split(",")[0] for title in titles}
        assert {"compute", "encode", "decode"} <= kinds
        assert "tokens 0 to" in await tab.text("#devices")
        # Of the link between the two others the figures stand in the list and in the picture.
        await tab.until("document.getElementById('devices').textContent.includes('to middle ')")
        await tab.until("document.querySelectorAll('#mesh-picture .label-back').length === 3")
        await no_complaints(tab, on.url)


async def test_why_one_device_answered_alone_is_told(tab: Tab, models: Path, sample: Path) -> None:
    why = "no other peer here holds this model and codebook"
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        await tab.choose("#ask-model", "words")
        await tab.choose("#ask-use", "all")
        await tab.type("#ask-text", PROMPT)
        await tab.click("#ask-go")
        await tab.until("document.querySelector('#answers .cost')?.textContent.includes('took')")
        cost = await tab.text("#answers .cost")
        assert "one device" in cost
        assert f"Plan: {why}." in cost
        await tab.choose("#photo-use", "all")
        await tab.upload("#photo-file", sample)
        await tab.until("document.getElementById('photo-cost').textContent.includes('took')")
        assert f"Plan: {why}." in await tab.text("#photo-cost")


EMPTY = """(() => {
    const [card, empty] = ['photo', 'photo-empty'].map((id) =>
        document.getElementById(id).getBoundingClientRect());
    return [empty.height / card.height, card.bottom - empty.bottom];
})()"""
DROP = """(name, files) => {
    const event = new DragEvent(name, { bubbles: true, cancelable: true });
    Object.defineProperty(event, 'dataTransfer', { value: { files } });
    document.getElementById('photo').dispatchEvent(event);
}"""


async def test_the_photo_card_has_room_to_drop_a_picture(
    tab: Tab, models: Path, sample: Path
) -> None:
    shown_now = "getComputedStyle(document.getElementById('photo-empty')).display !== 'none'"
    over = "document.getElementById('photo').classList.contains('over')"
    async with shown(models, ["alone"]) as on:
        await tab.shape(1280, 900)
        await tab.open(on.url)
        await tab.until("document.querySelectorAll('#quality-body svg').length > 0")
        share, below = await tab.eval(EMPTY)
        assert share > 0.4, "the card is as high as the one beside it"
        assert below < 30
        await tab.eval(f"({DROP})('dragover', [])")
        assert await tab.eval(over)
        await tab.eval(f"({DROP})('dragleave', [])")
        assert not await tab.eval(over)
        data = base64.b64encode(await asyncio.to_thread(sample.read_bytes)).decode()
        made = f"Uint8Array.from(atob('{data}'), (one) => one.charCodeAt(0))"
        file = f"new File([{made}], 'a.jpg', {{ type: 'image/jpeg' }})"
        await tab.eval(f"({DROP})('drop', [{file}])")
        await tab.until("document.querySelectorAll('#labels li').length > 0")
        assert not await tab.eval(shown_now)
        assert not await tab.eval(over)
        beside = """['photo-preview', 'labels'].map((id) => document.getElementById(id)
            .getBoundingClientRect()).reduce((one, two) => two.left >= one.right)"""
        assert await tab.eval(beside), "the labels stand beside the picture"
        await tab.shape(320, 640)
        await tab.open(on.url)
        await tab.until("document.getElementById('photo-model').value !== ''")
        assert not await tab.eval(shown_now), "nothing is dropped on a phone"
        await no_complaints(tab, on.url)


async def test_names_of_peers_are_text_whatever_they_hold(tab: Tab, models: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    async with shown(models, [evil, "right"]) as on:
        await tab.open(on.url)
        await tab.until(devices(2))
        assert evil in await tab.text("#devices")
        assert await tab.eval("document.querySelectorAll('#devices img').length") == 0
        await no_complaints(tab, on.url)


async def test_a_conversation_goes_on_and_starts_anew(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'words'")
        await tab.choose("#ask-as", "chat")
        await tab.eval("document.getElementById('ask-tokens').value = 4")
        for count in (1, 2):
            await tab.type("#ask-text", "w9 w8")
            await tab.key("Enter", 13, modifiers=2)  # with Control
            await tab.until(f"document.querySelectorAll('#answers .cost').length === {count}")
        assert await tab.eval("document.querySelectorAll('#answers .mine').length") == 2
        await tab.click("#ask-clear")
        assert await tab.eval("document.getElementById('answers').childElementCount") == 0
        assert await tab.eval("document.activeElement.id") == "ask-text"
        await no_complaints(tab, on.url)


async def test_a_choice_that_cannot_be_is_shown(tab: Tab, models: Path) -> None:
    """It may lie where it was folded away: the browser would say nothing at all."""
    async with shown(models, ["right"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        await tab.choose("#ask-model", "words")
        await tab.eval("document.getElementById('ask-tokens').value = 99999")
        await tab.type("#ask-text", "w1 w2")
        assert await tab.eval("document.querySelector('#ask details').open") is False
        await tab.click("#ask-go")
        await tab.until("document.querySelector('#ask details').open")
        await tab.until("document.activeElement.id === 'ask-tokens'")


async def test_an_empty_field_counts_as_it_was(tab: Tab, models: Path) -> None:
    async with shown(models, ["right"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'words'")
        for field in ("ask-tokens", "ask-temperature"):
            await tab.eval(f"document.getElementById('{field}').value = ''")
        await tab.type("#ask-text", "w1 w2")
        await tab.click("#ask-go")
        await tab.until("document.querySelector('#answers .cost') !== null")
        assert len((await tab.text("#answers .made")).split()) > 1


async def test_the_loaded_or_else_the_shipped_model_comes_first(
    tab: Tab, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    for name in ("aaa", "tiny-gpt2", "zzz"):  # three models, not copies
        shutil.copytree(models / "words", folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | {"called": name}))
        for path in (*(folder / name).glob("codebook*"), folder / name / "manifest.json"):
            path.unlink(missing_ok=True)
    async with shown(folder, ["right"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'tiny-gpt2'")
        await on.peers[-1].models.load(on.peers[-1].models.find("zzz"))
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'zzz'")


async def test_a_request_that_cannot_be_is_said_in_a_sentence(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'words'")
        await tab.type("#ask-text", "w1 " * 300)  # the context holds fewer
        await tab.click("#ask-go")
        await tab.until("!document.getElementById('ask-problem').hidden")
        assert "tokens" in await tab.text("#ask-problem")
        assert await tab.eval("document.getElementById('ask-go').disabled") is False


async def test_a_picture_from_a_file_and_from_the_camera(
    tab: Tab, models: Path, sample: Path, tmp_path: Path
) -> None:
    async with shown(models, ["left", "right"]) as on:
        await tab.open(on.url)
        await tab.until(devices(2))
        await tab.upload("#photo-file", sample)
        await tab.until("document.querySelectorAll('#labels li').length > 0")
        assert "%" in await tab.text("#labels li")
        assert "took" in await tab.text("#photo-cost")

        await tab.choose("#photo-use", "all")
        await tab.until("document.getElementById('photo-cost').textContent.includes('2 devices')")

        await tab.click("#photo-camera")  # Chromium plays a camera
        await tab.until("document.getElementById('photo-video').videoWidth > 0")
        before = await tab.eval("document.getElementById('photo-preview').src")
        await tab.click("#photo-snap")
        await tab.until(f"document.getElementById('photo-preview').src !== {json.dumps(before)}")
        await tab.until("document.getElementById('photo-cost').textContent.includes('2 devices')")
        assert await tab.eval("document.getElementById('photo-video').srcObject.active") is False

        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG but not really")
        await tab.upload("#photo-file", broken)
        await tab.until("!document.getElementById('photo-problem').hidden")
        assert "picture" in await tab.text("#photo-problem") or "image" in await tab.text(
            "#photo-problem"
        )
        listed = "document.getElementById('request-choice').options.length"
        await tab.until(f"{listed} === 5")  # the newest, three pictures, and this one
        await tab.until("document.querySelectorAll('#request-picture rect').length > 0")
        assert "classify with pictures: answered." in await tab.text("#request-said")
        for _ in range(9):  # more than are kept
            await tab.upload("#photo-file", broken)
            await tab.until("!document.getElementById('photo-problem').hidden")
        assert "classify with pictures: answered." in await tab.text("#request-said")


async def test_files_that_are_no_usual_picture(tab: Tab, models: Path, tmp_path: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('photo-model').value === 'pictures'")
        text = tmp_path / "notes.txt"
        text.write_text("no picture")
        await tab.upload("#photo-file", text)
        await tab.until("!document.getElementById('photo-problem').hidden")
        assert "cannot read the file as a picture" in await tab.text("#photo-problem")
        assert await tab.eval("document.getElementById('photo-preview').hidden") is True

        thin = tmp_path / "thin.bmp"  # of no kind that is sent as it is: the page draws it anew
        Image.new("RGB", (4000, 1), "red").save(thin)
        await tab.upload("#photo-file", thin)
        await tab.until("document.querySelectorAll('#labels li').length > 0")
        assert await tab.eval("document.getElementById('photo-problem').hidden") is True
        await no_complaints(tab, on.url)


async def test_nothing_of_a_picture_stays_beside_an_error(
    tab: Tab, models: Path, sample: Path, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('photo-model').value === 'pictures'")
        await tab.eval(
            "navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('none'))"
        )
        for fails in (
            tab.click("#photo-camera"),
            tab.upload("#photo-file", text),
        ):
            await tab.upload("#photo-file", sample)
            await tab.until("document.querySelectorAll('#labels li').length > 0")
            await fails
            await tab.until("!document.getElementById('photo-problem').hidden")
            assert await tab.text("#labels") == await tab.text("#photo-cost") == ""
            assert await tab.eval("document.getElementById('photo-preview').hidden") is True


async def test_the_page_asks_for_nothing_while_an_answer_comes(
    tab: Tab, models: Path, slow_steps: None
) -> None:
    """All that it shows comes by its WebSocket; ten times a second a Pi would feel."""
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await begin(tab, "text")
        before = len(tab.loaded)
        await tab.until("document.querySelector('#answers .made').textContent.length > 40")
        assert tab.loaded[before:] == []


async def test_a_stopped_answer_stays_and_the_conversation_goes_on_from_it(
    tab: Tab, models: Path, slow_steps: None
) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await begin(tab, "chat")
        await tab.eval("document.getElementById('ask-stop').focus()")
        await tab.key("Enter", 13, text="\r")
        await tab.until("document.querySelector('#answers .cost')?.textContent === '\\nstopped'")
        assert await tab.eval("document.activeElement.id") == "ask-text"
        assert await tab.eval("document.getElementById('ask-problem').hidden") is True
        await until(lambda: not busy(on.peers[0]))
        made = await tab.text("#answers .made")
        await tab.eval("""window.sent = []; window.send = fetch;
            window.fetch = (path, about) => {
                if (about.body) sent.push(about.body);
                return send(path, about);
            }""")
        await tab.type("#ask-text", "w7")
        await tab.click("#ask-go")
        await tab.until("sent.length === 1")
        messages = json.loads(await tab.eval("sent[0]"))["messages"]
        roles = [one["role"] for one in messages]
        assert roles == ["user", "assistant", "user"]
        assert messages[1]["content"].strip() == made.strip()
        await tab.click("#ask-stop")
        await tab.until("document.getElementById('ask-stop').hidden")
        await no_complaints(tab, on.url)


async def test_a_peer_without_models_says_so(tab: Tab, tmp_path: Path) -> None:
    async with shown(tmp_path, ["empty"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        assert await tab.text("#ask-model") == "no model here writes texts"
        assert await tab.eval("document.getElementById('ask-go').disabled") is True
        assert await tab.text("#photo-none") == "No model here labels pictures."
        assert await tab.text("#quality-body") == "No model is here."
        assert await tab.eval("document.getElementById('quality-model').offsetParent") is None
        await no_complaints(tab, on.url)


async def test_a_classifier_of_texts_is_told_of_with_where_it_is_used(
    tab: Tab, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "film", BERT, bert_tensors(BERT))
    async with shown(tmp_path, ["one"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        await tab.until("!document.getElementById('ask-elsewhere').hidden")
        said = await tab.text("#ask-elsewhere")
        assert said.startswith("Not on this page: film (")
        assert "astra-mesh classify NAME --text TEXT" in said
        await no_complaints(tab, on.url)


async def test_a_model_that_takes_no_text_is_not_offered(
    tab: Tab, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mute"
    shutil.copytree(models / "words", folder)
    for name in ("tokenizer.json", "manifest.json"):
        (folder / name).unlink(missing_ok=True)
    async with shown(tmp_path, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        assert await tab.text("#ask-model") == "mute has no tokenizer.json"
        assert await tab.eval("document.getElementById('ask-go').disabled") is True


async def test_spaces_are_refused_as_no_text_is(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'words'")
        await tab.type("#ask-text", "   ")
        await tab.click("#ask-go")
        await tab.key("Enter", 13, modifiers=2)
        assert await tab.eval("document.getElementById('ask-form').matches(':invalid')") is True
        assert await tab.eval("document.getElementById('answers').childElementCount") == 0
        assert await tab.text("#ask-problem") == "Type a text first."
        assert await tab.eval("document.activeElement.id") == "ask-text"
        await tab.type("#ask-text", " w9")
        assert await tab.eval("document.getElementById('ask-problem').hidden") is True
        assert await tab.eval("document.getElementById('ask-form').matches(':valid')") is True
        await no_complaints(tab, on.url)


async def test_an_empty_field_says_what_it_wants(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'words'")
        await tab.click("#ask-go")
        assert await tab.text("#ask-problem") == "Type a text first."


async def test_why_a_model_holds_no_conversation_is_told(
    tab: Tab, models: Path, tmp_path: Path
) -> None:
    chat = "document.querySelector('#ask-as [value=chat]')"
    await asyncio.to_thread(shutil.copytree, models / "words", tmp_path / "plain")
    for name in ("tokenizer_config.json", "manifest.json"):
        (tmp_path / "plain" / name).unlink(missing_ok=True)
    async with shown(tmp_path, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'plain'")
        why = "conversation: the model has no chat template"
        assert await tab.eval(f"[{chat}.disabled, {chat}.textContent]") == [True, why]
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('ask-model').value === 'words'")
        assert await tab.eval(f"[{chat}.disabled, {chat}.textContent]") == [False, "conversation"]


async def test_buttons_of_paired_devices_lie_apart(tab: Tab, models: Path) -> None:
    boxes = """['pair-open', 'pair-leave'].map((id) =>
        document.getElementById(id).getBoundingClientRect())"""
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('pair-devices').childElementCount > 0")
        await tab.eval("document.getElementById('pair-leave').hidden = false")  # as with others
        for width in (320, 390, 1280):
            await tab.shape(width, 800)
            gap = f"(([a, b]) => Math.max(b.left - a.right, b.top - a.bottom))({boxes})"
            assert await tab.eval(gap) >= 8


async def test_a_request_that_nobody_saw_says_why_it_has_no_steps(tab: Tab, models: Path) -> None:
    body = {"model": "words", "prompt": PROMPT, "max_tokens": 2}
    seen = "document.getElementById('request-picture').offsetParent !== null"
    async with shown(models, ["alone"]) as on:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{on.url}v1/completions", json=body) as answer,
        ):
            assert answer.status == 200
        await tab.open(on.url)
        await tab.until("!document.getElementById('request-unseen').hidden")
        said = await tab.text("#request-unseen")
        assert said == "Its steps were not recorded, because no page was open when it began."
        assert await tab.eval(seen) is False
        await tab.type("#ask-text", PROMPT)
        await tab.click("#ask-go")
        await tab.until("document.querySelectorAll('#request-picture rect').length > 0")
        assert await tab.eval("document.getElementById('request-unseen').hidden") is True
        assert await tab.eval(seen) is True


async def test_a_link_on_another_site_leads_to_the_page(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        other = on.url.replace("127.0.0.1", "localhost")  # another site to a browser
        await tab.open(f"{other}docs")
        await tab.eval(f"location.href = {json.dumps(on.url)}")
        await tab.until(f"location.href === {json.dumps(on.url)}")
        await tab.until(devices(1))
        await tab.open(f"{other}docs")
        await tab.eval(f"location.href = {json.dumps(on.url + 'v1/models')}")
        await tab.until("document.body?.innerText.includes('foreign_origin')")


async def test_quality_against_bits(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.getElementById('quality-model').options.length === 3")
        await tab.until("document.querySelectorAll('#quality-body circle').length === 2")
        assert await tab.eval("document.getElementById('quality-model').value") == "words"
        assert "16 bits stay within 2 %" in await tab.text("#quality-body")
        assert "<b>valid</b>.txt" in await tab.text("#quality-body")
        await tab.shape(320, 640, dark=False)
        await tab.open(on.url)
        await tab.until("document.querySelectorAll('#quality-body circle').length === 2")
        scale = """(() => { const one = document.querySelector('#quality-body svg');
            return one.getBoundingClientRect().width / one.viewBox.baseVal.width; })()"""
        assert 12 * await tab.eval(scale) > 10  # pixels of its text
        await tab.choose("#quality-model", "feelings")
        await tab.until(
            "document.getElementById('quality-body').innerText.includes('eval feelings')"
        )
        await no_complaints(tab, on.url)


async def test_everything_has_a_name_and_the_keyboard_reaches_it(tab: Tab, models: Path) -> None:
    async with shown(models, ["left", "right"]) as on:
        await tab.open(on.url)
        await tab.until(devices(2))
        await tab.until("document.querySelector('#quality-body').childElementCount > 0")
        met = await tab.names()
        interactive = {"button", "textbox", "combobox", "link", "spinbutton", "checkbox"}
        assert [one for one in met if one[0] in interactive and not one[1].strip()] == []
        figures = [name for role, name in met if role == "figure"]
        assert len(figures) >= 2
        assert all(name.strip() for name in figures)
        assert any(role == "status" for role, _ in met)
        assert any(role in ("image", "img") and "right, left" in name for role, name in met)

        reached = []
        for _ in range(40):
            await tab.key("Tab", 9)
            reached.append(await tab.eval("document.activeElement.id"))
        wanted = {
            "ask-model",
            "ask-text",
            "ask-go",
            "photo-choose",
            "photo-camera",
            "quality-model",
        }
        assert wanted <= set(reached)


@pytest.mark.parametrize("dark", [False, True])
async def test_text_stands_out_and_nothing_runs_off_a_small_phone(
    tab: Tab, models: Path, dark: bool
) -> None:
    async with shown(models, ["a-device-with-a-rather-long-name", "right"]) as on:
        await tab.shape(320, 640, dark)
        await tab.open(on.url)
        await tab.until(devices(2))
        assert await tab.eval("document.documentElement.scrollWidth") <= 320
        assert await tab.eval(CONTRAST) == []
        small = """[...document.querySelectorAll('button, select')].filter((one) => {
            const box = one.getBoundingClientRect();
            return box.width > 0 && box.height < 40; }).map((one) => one.id)"""
        assert await tab.eval(small) == []
        await tab.eval("scrollTo(0, 600)")
        line = "document.querySelector('header').getBoundingClientRect().bottom"
        await tab.until("scrollY > 500")
        assert 20 < await tab.eval(line) < 60
        seen = "document.querySelector('nav').getBoundingClientRect().top >= 0"
        assert await tab.eval(seen)
        await on.server.stop()  # what is wrong is seen wherever one reads
        await tab.until("document.getElementById('state').classList.contains('bad')")
        assert await tab.eval("document.getElementById('state').getBoundingClientRect().top") >= 0


WIDTH = "document.querySelector('#request-picture svg').viewBox.baseVal.width"
SCALE = f"document.querySelector('#request-picture svg').getBoundingClientRect().width / {WIDTH}"
CUT = """(() => {
    const picture = document.querySelector('#request-picture svg').getBoundingClientRect();
    return [...document.querySelectorAll('#request-picture text')].filter((one) => {
        const { left, right } = one.getBoundingClientRect();
        return left < picture.left - 1 || right > picture.right + 1;
    }).map((one) => one.textContent);
})()"""


async def test_the_timeline_s_figures_fit_a_small_phone(tab: Tab, models: Path) -> None:
    async with shown(models, ["left", "right"]) as on:
        await tab.shape(320, 640)
        await tab.open(on.url)
        await tab.until(devices(2))
        await tab.choose("#photo-use", "all")
        await tab.choose("#ask-use", "all")
        await tab.type("#ask-text", PROMPT)
        await tab.click("#ask-go")
        await tab.until("document.querySelector('#request-table tbody tr:nth-child(2)')")
        fits = "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)"
        assert await tab.eval("document.documentElement.scrollWidth") <= 320
        assert await tab.eval(f"{fits}(document.getElementById('request-table').parentElement)")
        assert await tab.eval(f"{fits}(document.getElementById('request-picture'))")
        assert await tab.eval(SCALE) == pytest.approx(1.0, abs=0.02), (
            "its text is as large as meant"
        )
        assert await tab.eval(CUT) == []
        names = (
            "[...document.querySelectorAll('#request-picture text')].map((one) => one.firstChild"
        )
        assert {"left", "right"} <= set(await tab.eval(f"{names}.textContent)"))
        await tab.shape(1280, 900)  # a phone that was turned, or a window made wide
        await tab.until(f"{WIDTH} === 720")
        assert await tab.eval(CUT) == []
        await tab.shape(320, 640)
        await tab.until(f"{WIDTH} < 320")
        seen = """[...document.querySelectorAll('#request-table td')].every((one) =>
            one.getBoundingClientRect().right <= innerWidth
            && getComputedStyle(one, '::before').content.length > 3)"""
        assert await tab.eval(seen)
        assert "sent" in await tab.eval(
            "document.querySelector('#request-table td:last-child').dataset.head"
        )
        assert await tab.eval(CONTRAST) == []


async def test_numbers_of_blocks_stand_at_even_distances(tab: Tab, models: Path) -> None:
    table: list[tuple[Sequence[int], list[int]]] = [  # where blocks end; whose number is written
        (range(0, 120, 20), [0, 1, 2, 3, 4, 5]),
        (range(0, 60, 7), [0, 2, 4, 6, 8]),
        (range(0, 24, 2), [0, 10]),
        (range(12), [0]),
        ([0, 1, 2, 200, 201, 202], [0, 5]),
        ([3, 4, 5], [0]),
        ([], []),
    ]
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        for ends, written in table:
            pairs = json.dumps([[at, block] for block, at in enumerate(ends)])
            script = f"numbered({pairs}, (at) => at).map(([, block]) => block)"
            got = await tab.eval(f"import('/page/timeline.js').then(({{ numbered }}) => {script})")
            assert got == written


# Texts whose contrast with what lies behind them is below 4.5 (WCAG 2, AA).
CONTRAST = """(() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
    const behind = (one) => {
        for (let e = one; e; e = e.parentElement) {
            const found = rgb(getComputedStyle(e).backgroundColor);
            if (found.length === 3 || found[3] > 0) return found;
        }
        return [255, 255, 255];
    };
    const bad = [];
    for (const one of document.querySelectorAll('body *')) {
        const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || one.closest('svg') || one.disabled || !one.getClientRects().length) continue;
        const [a, b] = [luminance(rgb(getComputedStyle(one).color)), luminance(behind(one))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) bad.push([one.tagName, one.id, one.textContent.slice(0, 30), ratio]);
    }
    return bad;
})()"""


async def test_who_waits_for_a_model_sees_why(
    tab: Tab, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("astra_mesh.web.waiting.LOADING_TELL_S", 0.1)
    going = threading.Event()

    def slow(*args: Any, **more: Any) -> Any:
        going.wait(30)  # in the compute thread
        return (yield from loading(*args, **more))

    monkeypatch.setattr("astra_mesh.peer.models.loading", slow)
    async with shown(models, ["left"]) as on:
        await tab.open(on.url)
        await tab.until(devices(1))
        await tab.choose("#ask-model", "words")
        await tab.type("#ask-text", PROMPT)
        await tab.click("#ask-go")
        waits = "document.querySelector('#answers .waits')"
        await tab.until(f"{waits}?.textContent.includes('loading words on left…')")
        going.set()
        await tab.until("document.querySelector('#answers .cost')?.textContent.includes('took')")
        assert "until the model was loaded" in await tab.text("#answers .cost")
        assert await tab.eval(f"{waits} === null")
        await no_complaints(tab, on.url)


async def test_a_model_that_cannot_read_pictures_is_not_offered_for_photos(
    tab: Tab, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESCAN_S", 0.2)
    folder = tmp_path / "models" / "pictures"
    await asyncio.to_thread(shutil.copytree, models / "pictures", folder)
    file = folder / "preprocessor_config.json"
    data = await asyncio.to_thread(file.read_bytes)
    await asyncio.to_thread(file.unlink)
    async with shown(tmp_path / "models", ["left"]) as on:
        await tab.open(on.url)
        await tab.until("!document.getElementById('photo-none').hidden")
        said = await tab.text("#photo-none")
        assert said == "pictures has no preprocessor_config.json, so it takes no pictures."
        assert await tab.eval("document.getElementById('photo-ask').hidden") is True
        await asyncio.to_thread(file.write_bytes, data)
        await tab.until("!document.getElementById('photo-ask').hidden")
        assert await tab.eval("document.getElementById('photo-model').value") == "pictures"


async def test_the_description_of_the_api_loads_nothing(tab: Tab, models: Path) -> None:
    async with shown(models, ["left"]) as on:
        await tab.open(f"{on.url}docs")
        await tab.until("document.querySelectorAll('h2').length > 5")
        assert "/v1/completions" in await tab.text("body")
        await tab.shape(320, 640)
        assert await tab.eval("document.documentElement.scrollWidth") <= 320
        name = "[...document.querySelectorAll('td code')].find((one) => one.innerText === 'model')"
        assert await tab.eval(f"{name}.getClientRects().length") == 1  # names are not cut
        await no_complaints(tab, on.url)
