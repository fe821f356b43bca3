"""A lent device looks now and then how fast it is, while its page is seen, and tells others."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from astra_mesh.web import files
from astra_mesh.wire.messages import PeerId, Timing
from tests.browser.chrome import Tab
from tests.browser.lending import lend
from tests.browser.pages import Shown, shown
from tests.browser.test_lend import SHIPPED
from tests.integration.mesh_fixtures import until
from tests.javascript.test_engine import VENDOR

SLOWER = 8.0  # times, that each look of the altered page sees
SEEN_S = 30.0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not VENDOR.exists(), reason="without the browser runtime: make runtime"),
]
# Another page lies over it, as the browser tells it.
_VISIBILITY = """
    Object.defineProperty(document, "visibilityState", { value: "STATE", configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tabs look all the time, and see that they are slow."""
    altered = {
        "limits.js": {"PULSE_S = 20.0": "PULSE_S = 0.3", "PULSE_SHARE = 0.01": "PULSE_SHARE = 1"},
        "measure.js": {"return Math.max(best /": f"return {SLOWER} * Math.max(best /"},
    }

    def changed(one: files.PageFile | files.VendorFile) -> files.PageFile | files.VendorFile:
        changes = altered.get(one.address.rpartition("/peer/")[2], {})
        if not changes or isinstance(one, files.VendorFile):
            return one
        text = one.data.decode()
        for before, after in changes.items():
            assert text.count(before) == 1
            text = text.replace(before, after)
        return replace(one, data=text.encode())

    served = [changed(one) for one in files.read_all()]
    monkeypatch.setattr(files, "read_all", lambda: served)


def told(on: Shown, phone: PeerId) -> list[Timing]:
    """What every peer knows of the device's time for tiny-gpt2."""
    offers = [one for peer in on.peers for one in peer.others()[phone].models]
    return [one.timing for one in offers if one.name == "tiny-gpt2" and one.timing is not None]


@pytest.mark.usefixtures("impatient")
async def test_it_tells_all_others_while_its_page_is_seen(tab: Tab) -> None:
    hidden = _VISIBILITY.replace("STATE", "hidden")
    await tab.call("Page.addScriptToEvaluateOnNewDocument", source=hidden)
    async with shown(SHIPPED, ["left", "right"]) as on:
        phone = await lend(tab, on, "tiny-gpt2")
        before = told(on, phone)
        await asyncio.sleep(4)
        assert told(on, phone) == before
        await tab.eval(_VISIBILITY.replace("STATE", "visible"))
        first = before[0].per_token_s
        await until(lambda: all(one.per_token_s > 2 * first for one in told(on, phone)), SEEN_S)
        assert len(told(on, phone)) == 2
        assert tab.complaints == []
