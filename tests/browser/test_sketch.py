"""The picture of the mesh: no text lies on another, or on a device, however many there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chrome import Tab
from tests.browser.pages import no_complaints, shown

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

DEVICES = 8
NAMES = {
    "short": [f"pi{i}" for i in range(DEVICES)],
    "long": [f"living-room-tablet-{i}" for i in range(DEVICES)],
    "wide": ["W" * 15] * DEVICES,  # of one name: each with digits of its id
}


def mesh(names: list[str], bps: float | None = 94.3e6, trip: float | None = 0.0123) -> Any:
    """What a page hears of devices, the first one its own."""
    ids = [f"{i:x}" * 64 for i in range(len(names))]
    about = {"via": "", "system": "Linux aarch64", "cores": 4.0, "host": ""}
    figures = {"round_trip_s": trip, "send_bps": bps, "receive_bps": bps}
    links = [{"id": one, "round_trip_s": trip, "send_bps": bps} for one in ids]
    peers = [
        {"id": one, "name": name, "self": not i, "links": links, **about, **figures}
        for i, (one, name) in enumerate(zip(ids, names, strict=True))
    ]
    return {"type": "mesh", "peers": peers, "models": [], "paired": [], "problem": ""}


# Shows a mesh, and tells what lies on what: texts of one label are one box.
LOOK = """import('/page/mesh.js').then(({ showMesh, showShares }) => {
    showMesh(%s);
    showShares(%s);
    const svg = document.querySelector('#mesh-picture svg');
    const name = (one) => one.textContent || 'circle';
    const boxes = [...svg.querySelectorAll('.label, circle.node')].map((one) => {
        const box = one.getBoundingClientRect();
        return { name: name(one), x: box.x, y: box.y, right: box.right, bottom: box.bottom };
    });
    const over = (a, b) => a.x < b.right - 0.5 && b.x < a.right - 0.5
        && a.y < b.bottom - 0.5 && b.y < a.bottom - 0.5;
    const found = [];
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
        if (over(a, b)) found.push([a.name, b.name]);
    }));
    const all = svg.getBoundingClientRect();
    const out = boxes.filter((a) => a.x < all.x - 0.5 || a.right > all.right + 0.5
        || a.y < all.y - 0.5 || a.bottom > all.bottom + 0.5).map((a) => a.name);
    return { found, out, names: svg.querySelectorAll('.name').length,
        figures: svg.querySelectorAll('.rate').length };
})"""


async def look(tab: Tab, names: list[str], with_shares: bool, **figures: float | None) -> Any:
    told = mesh(names, **figures)
    shares = [
        {"id": one["id"], "start": 100 * i, "stop": 100 * i + 100}
        for i, one in enumerate(told["peers"])
    ]
    script = LOOK % (json.dumps(told), json.dumps(shares if with_shares else []))
    return await tab.eval(script)


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
async def test_labels_never_overlap_up_to_eight_devices(tab: Tab, models: Path, width: int) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.shape(width, 740)
        await tab.open(on.url)
        await tab.until("document.querySelectorAll('#devices li').length === 1")
        for kind, names in NAMES.items():
            for count in range(1, DEVICES + 1):
                for with_shares in (False, True):
                    case = (kind, count, with_shares)
                    told = await look(tab, names[:count], with_shares)
                    assert (told["found"], told["out"]) == ([], []), case
                    links = 3 if count == 3 else count - 1  # of three, all; else its own
                    assert (told["names"], told["figures"]) == (count, links), case
        await no_complaints(tab, on.url)


async def test_many_devices_leave_what_has_no_room_to_the_list(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.shape(360, 740)
        await tab.open(on.url)
        await tab.until("document.querySelectorAll('#devices li').length === 1")
        for count in (9, 12, 16, 24):
            told = await look(tab, [f"living-room-tablet-{i}" for i in range(count)], True)
            labels = [pair for pair in told["found"] if pair != ["circle", "circle"]]
            assert (labels, told["out"]) == ([], []), count
            assert await tab.eval("document.querySelectorAll('#devices li').length") == count


async def test_a_link_that_was_not_measured_says_so(tab: Tab, models: Path) -> None:
    async with shown(models, ["alone"]) as on:
        await tab.open(on.url)
        await tab.until("document.querySelectorAll('#devices li').length === 1")
        await look(tab, ["left", "right"], False, bps=None, trip=None)
        assert await tab.eval(
            "[...document.querySelectorAll('#mesh-picture .label:not(.name) text')]"
            ".map((one) => one.textContent)"
        ) == ["rate ?", "?"]
