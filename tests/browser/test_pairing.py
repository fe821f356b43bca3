"""Pairing on the pages of two devices that are strangers, each in a Chromium of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from astra_mesh.mesh.codes import as_uri, new_code
from astra_mesh.mesh.identity import DeviceKey
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.trust import Trust
from astra_mesh.naming import labelled
from tests.browser.chrome import Tab
from tests.browser.conftest import browser
from tests.browser.pages import no_complaints
from tests.integration.web_fixtures import ELSEWHERE, Device, strangers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OPEN = "!document.getElementById('pair-window').hidden"
CODE = "/^[2-9A-HJKMNP-Z]{4}-[2-9A-HJKMNP-Z]{4}$/"
PROBLEM = "!document.getElementById('pair-problem').hidden"
SEEN = "document.getElementById('pair-state').textContent"
READER = """
    window.qrs = [];
    window.BarcodeDetector = class {
        static getSupportedFormats() { return Promise.resolve(["qr_code"]); }
        detect() { return Promise.resolve(window.qrs.map((rawValue) => ({ rawValue }))); }
    };
"""
LOST = """performance.getEntriesByType('resource')
    .filter((one) => one.name.endsWith('/v1/pairing') && one.responseStatus === 0).length"""
REFRESHED = """(async () => {
    const asked = () => performance.getEntriesByType('resource')
        .filter((one) => one.name.endsWith('/v1/pairing')).length;
    const before = asked();
    while (asked() < before + 2) await new Promise((go) => setTimeout(go, 20));
    return true;
})()"""


@pytest.fixture
async def devices(tmp_path: Path) -> AsyncIterator[list[Device]]:
    async with strangers(tmp_path / "trust", "kitchen", "attic") as found:
        yield found


def called(device: Device) -> str:
    """On the page."""
    assert device.peer.trust is not None
    return labelled(device.peer.name, device.peer.trust.device.id)


def listed(count: int) -> str:
    return f"document.querySelectorAll('#pair-devices li').length === {count}"


async def start(tab: Tab, device: Device) -> None:
    await tab.open(f"{device.root}/")
    await tab.until(listed(1))


async def open_window(tab: Tab) -> str:
    """The code that is shown."""
    before = await tab.eval("document.getElementById('pair-shown').textContent")
    await tab.click("#pair-open")
    shown = "document.getElementById('pair-shown').textContent"
    await tab.until(f"{OPEN} && {CODE}.test({shown}) && {shown} !== {json.dumps(before)}")
    return await tab.text("#pair-shown")


async def give(tab: Tab, code: str, at: str) -> None:
    for selector, text in (("#pair-code", code), ("#pair-at", at)):
        await tab.eval(f"document.querySelector('{selector}').value = ''")
        await tab.type(selector, text)
    await tab.key("Enter", 13, text="\r")


async def test_a_code_of_one_page_is_typed_into_the_other(
    tab: Tab, other_tab: Tab, devices: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen, attic = devices
    monkeypatch.setattr("astra_mesh.client.pairing_post.is_loopback", lambda host: False)
    await start(tab, kitchen)
    await start(other_tab, attic)
    code = await open_window(tab)
    assert code in await tab.text("#pair-state")
    (named,) = [name for role, name in await tab.names() if name.startswith("QR code")]
    assert code in named

    wrong = new_code()
    assert wrong != code
    await give(other_tab, wrong, kitchen.place)
    await other_tab.until(PROBLEM)
    said = await other_tab.text("#pair-problem")
    assert "code" in said, said
    assert await other_tab.eval("document.getElementById('pair-code').value") == wrong
    assert await tab.eval(OPEN)  # two tries are left

    await give(other_tab, code, kitchen.place)
    await other_tab.until(f"{SEEN} === {json.dumps(f'Paired with {called(kitchen)}.')}")
    await other_tab.until(listed(2))
    assert await other_tab.eval("document.getElementById('pair-problem').hidden")
    await tab.until(listed(2))
    assert not await tab.eval(OPEN)
    assert await tab.text("#pair-state") == f"Paired with {called(attic)}."
    for page, own, other in ((tab, kitchen, attic), (other_tab, attic, kitchen)):
        text = await page.text("#pair-devices")
        assert f"{called(own)}, this one" in text
        assert f"{own.peer.name} (this device)" in await page.text("#devices")
        assert f"{called(other)} Unpair" in text
        assert ("button", f"Unpair {called(other)}") in await page.names()

    await other_tab.click("#pair-devices button")
    await other_tab.until(listed(1))
    assert other_tab.questions == [f"Shut {called(kitchen)} out of the mesh, on all devices?"]
    await no_complaints(tab, f"{kitchen.root}/")


async def test_a_qr_is_scanned_where_the_browser_reads_them(
    tab: Tab, other_tab: Tab, devices: list[Device]
) -> None:
    """Chromium plays a camera but reads no QRs on Linux: what it would read is told to it."""
    kitchen, attic = devices
    await start(tab, kitchen)
    await start(other_tab, attic)
    assert await other_tab.eval("document.getElementById('pair-scan').hidden")
    await other_tab.before_pages(READER)
    await start(other_tab, attic)
    await other_tab.until("!document.getElementById('pair-scan').hidden")
    await other_tab.click("#pair-scan")
    playing = "document.getElementById('pair-video').srcObject?.active === true"
    await other_tab.until(f"{SEEN}.startsWith('Hold it') && {playing}")
    await other_tab.eval("window.qrs = ['https://example.org']")
    await other_tab.until(f"{SEEN}.startsWith('This QR is none')")
    await other_tab.click("#pair-scan-stop")
    assert not await other_tab.eval(playing)
    assert await other_tab.eval("document.getElementById('pair-live').hidden")

    code = await open_window(tab)
    await other_tab.click("#pair-scan")
    await other_tab.eval(f"window.qrs = {json.dumps([as_uri(code, [kitchen.place])])}")
    await other_tab.until(f"{SEEN} === {json.dumps(f'Paired with {called(kitchen)}.')}")
    await other_tab.until(listed(2))
    assert not await other_tab.eval(playing)
    await tab.until(listed(2))


async def test_a_camera_that_may_not_be_used_is_said(tab: Tab, devices: list[Device]) -> None:
    await tab.before_pages(READER)
    await start(tab, devices[0])
    await tab.until("!document.getElementById('pair-scan').hidden")
    await tab.eval(
        "navigator.mediaDevices.getUserMedia ="
        " () => Promise.reject(new DOMException('', 'NotAllowedError'))"
    )
    await tab.click("#pair-scan")
    await tab.until(PROBLEM)
    assert "allow it beside the address" in await tab.text("#pair-problem")
    assert await tab.eval("document.getElementById('pair-live').hidden")


async def test_a_device_leaves_by_its_page(tab: Tab, other_tab: Tab, devices: list[Device]) -> None:
    kitchen, attic = devices
    await start(tab, kitchen)
    await start(other_tab, attic)
    hidden = "document.getElementById('pair-leave').hidden"
    assert await other_tab.eval(hidden), "it is alone"
    await give(other_tab, await open_window(tab), kitchen.place)
    await other_tab.until(listed(2))
    await tab.until(listed(2))  # both pages stand still
    await other_tab.click("#pair-leave")
    await other_tab.until(listed(1))
    (question,) = other_tab.questions
    assert question.startswith("Take this device out of the mesh?")
    await other_tab.until(f"{SEEN}.startsWith('This device has left the mesh; ')")
    text = await other_tab.text("#pair-state")
    assert f"{called(kitchen)} knows that this device has left" in text, text
    assert await other_tab.eval(hidden)
    assert await other_tab.eval("document.activeElement.id") == "pair-open"
    await tab.until(listed(1))
    await no_complaints(other_tab, f"{attic.root}/")


async def test_on_another_device_the_page_names_the_one_that_serves_it(
    devices: list[Device],
) -> None:
    """There "this device" would be the one that shows the page."""
    kitchen, attic = devices
    window = await open_pairing(kitchen)
    async with browser(f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1") as tab:
        await tab.open(f"http://{ELSEWHERE}:{attic.server.port}/")
        await tab.until(listed(1))
        assert f"{called(attic)}, which serves this page" in await tab.text("#pair-devices")
        assert "attic (it serves this page)" in await tab.text("#devices")
        await give(tab, window, kitchen.place)
        await tab.until(listed(2))
        await tab.click("#pair-leave")
        await tab.until(listed(1))
        (question,) = tab.questions
        assert question.startswith(f"Take {called(attic)} out of the mesh? ")
        await tab.until(f"{SEEN}.startsWith({json.dumps(f'{called(attic)} has left the mesh; ')})")
        assert tab.complaints == []


async def open_pairing(device: Device) -> str:
    """The code of a window that no page opened."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{device.root}/v1/pairing/open", json={}) as answer,
    ):
        code: str = (await answer.json())["code"]
        return code


async def test_the_list_is_asked_for_until_it_comes(
    tab: Tab, other_tab: Tab, devices: list[Device]
) -> None:
    """It is told once that the devices changed; the answer to what follows may be lost."""
    kitchen, attic = devices
    await start(tab, kitchen)
    await start(other_tab, attic)
    await give(other_tab, await open_window(tab), kitchen.place)
    await tab.until(listed(2))
    await tab.call("Network.enable")
    await tab.call("Network.setBlockedURLs", urls=["*/v1/pairing"])
    await other_tab.click("#pair-leave")
    await other_tab.until(f"{SEEN}.startsWith('This device has left the mesh; ')")
    await tab.until(f"{LOST} > 0")
    assert await tab.eval(listed(2))
    await tab.call("Network.setBlockedURLs", urls=[])
    await tab.until(listed(1))


async def test_a_window_closes_by_its_button_and_after_three_wrong_codes(
    tab: Tab, other_tab: Tab, devices: list[Device]
) -> None:
    kitchen, attic = devices
    await start(tab, kitchen)
    await start(other_tab, attic)
    code = await open_window(tab)
    await tab.click("#pair-close")
    await tab.until(f"!({OPEN})")
    assert await tab.text("#pair-state") == "Closed: the code holds no more."
    assert await tab.eval("document.activeElement.id") == "pair-open"
    await give(other_tab, code, kitchen.place)
    await other_tab.until(PROBLEM)
    assert "window" in await other_tab.text("#pair-problem")

    await open_window(tab)
    await tab.eval("document.getElementById('pair-close').focus()")
    for _ in range(3):
        await give(other_tab, new_code(), kitchen.place)
        await other_tab.until("document.getElementById('pair-join').disabled === false")
        await other_tab.until(PROBLEM)
    await tab.until(f"!({OPEN})")
    assert "Three wrong codes" in await tab.text("#pair-state")
    assert await tab.eval("document.activeElement.id") == "pair-open"
    assert await tab.eval(listed(1))


async def test_a_page_that_is_loaded_again_shows_its_code_and_no_other_page_does(
    tab: Tab, other_tab: Tab, devices: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen = devices[0]
    monkeypatch.setattr("astra_mesh.client.pairing_post.is_loopback", lambda host: False)
    await start(tab, kitchen)
    code = await open_window(tab)
    path = await tab.eval("document.querySelector('#pair-qr path').getAttribute('d')")
    await tab.open("about:blank")
    await start(tab, kitchen)
    await tab.until(OPEN)
    assert await tab.text("#pair-shown") == code
    assert await tab.eval("document.querySelector('#pair-qr path').getAttribute('d')") == path

    await start(other_tab, kitchen)
    await other_tab.until(OPEN)
    assert "shown where it was opened" in await other_tab.text("#pair-shown")
    assert await other_tab.eval("document.getElementById('pair-qr').childElementCount") == 0

    newer = await open_window(other_tab)  # the older window is closed by it
    assert newer != code
    await tab.until("document.getElementById('pair-shown').textContent.includes('where it was')")
    assert code not in await tab.eval("document.body.innerText.replace(/.*astra-mesh pair.*/, '')")


async def test_what_happens_each_second_disturbs_nobody(tab: Tab, devices: list[Device]) -> None:
    kitchen, attic = devices
    async with aiohttp.ClientSession() as http:  # attic is a member, so it has a button
        async with http.post(f"{kitchen.root}/v1/pairing/open", json={}) as answer:
            code = (await answer.json())["code"]
        body = {"code": code, "at": [kitchen.place]}
        async with http.post(f"{attic.root}/v1/pairing/join", json=body) as answer:
            assert answer.status == 200, await answer.text()
    await tab.open(f"{kitchen.root}/")
    await tab.until(listed(2))
    await open_window(tab)
    await tab.eval("document.querySelector('#pair-devices button').focus()")
    assert await tab.eval(REFRESHED)  # and the device may be called otherwise once it is linked
    assert await tab.eval("document.activeElement.ariaLabel.startsWith('Unpair ')")

    await give(tab, "2345-678A", "")
    await tab.until(PROBLEM)
    said = await tab.text("#pair-problem")
    assert "mistyped" in said
    assert await tab.eval(REFRESHED)
    assert await tab.text("#pair-problem") == said
    assert await tab.eval("document.activeElement.id") == "pair-at"
    assert await tab.eval(OPEN)


GAP = """(() => {
    const [one, two] = [...document.querySelectorAll('#pair-devices button')]
        .map((button) => button.getBoundingClientRect());
    return two.top - one.bottom;
})()"""


async def let_in(trust: Trust, *keys: DeviceKey) -> None:
    def decide(book: RosterBook) -> bool:
        for key in keys:
            book.let_in(key.certificate, "vm")
        return True

    await asyncio.to_thread(trust.change, decide)


async def test_who_was_let_in_or_shut_out_elsewhere_shows_without_a_link(
    tab: Tab, devices: list[Device]
) -> None:
    trust, key = devices[0].peer.trust, DeviceKey.new()
    assert trust is not None
    await start(tab, devices[0])
    await let_in(trust, key)
    await tab.until(listed(2))

    def decide(book: RosterBook) -> bool:
        book.shut_out(key.id)
        return True

    await asyncio.to_thread(trust.change, decide)
    await tab.until(listed(1))


async def test_devices_of_one_name_are_told_apart(tab: Tab, devices: list[Device]) -> None:
    trust = devices[0].peer.trust
    assert trust is not None
    keys = [DeviceKey.new(), DeviceKey.new()]
    await let_in(trust, *keys)
    await tab.open(f"{devices[0].root}/")
    await tab.until(listed(3))
    text, names = await tab.text("#pair-devices"), await tab.names()
    for key in keys:
        assert f"vm ({key.id[:8]})" in text
        assert ("button", f"Unpair vm ({key.id[:8]})") in names
    assert await tab.eval(GAP) >= 8, "a thumb meets the wrong one"


async def test_a_code_that_nobody_could_use_is_not_drawn(tab: Tab, devices: list[Device]) -> None:
    await start(tab, devices[0])
    code = await open_window(tab)
    assert await tab.eval("document.getElementById('pair-qr').childElementCount") == 0
    said = await tab.text("#pair-state")
    assert f"astra-mesh pair {code}" in said
    assert "listens on 127.0.0.1 only" in said
    assert "start it without --listen" in said
