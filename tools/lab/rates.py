"""Links that change in the middle of a request: what ``late="adapt"`` makes of it.

The model looks at pictures, so that both devices wait for each other in every block. It has random
weights and a codebook of four rates up to 1,536 bits: its codes are large enough for links of some
Mbit/s to matter, and its answers mean nothing.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tools.lab.house import House, Say
from tools.lab.scenario import Device, Options, Request, Scenario, SetRate

MODEL = "wide"
EDGE = 384  # pixels: 577 tokens
CONFIG = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "image_size": EDGE,
    "patch_size": 16,
    "id2label": {str(i): f"class {i}" for i in range(10)},
}
GROUPS = (64, 64, 128, 128)  # of each stage: 256 to 1,536 bits per token and block
CODEWORDS = 16
BITS = 4 * sum(GROUPS)
NAMES = ("attic", "cellar")
PICTURE = "picture.png"
REPEATS = 5
CALM_S = 0.5  # after a change of the rates
Late = Literal["wait", "adapt"]


@dataclass(frozen=True)
class Answered:
    """One request."""

    wall_s: float
    notes: list[str]
    bits: list[int]  # that links fell and rose to


def make_model(folder: Path) -> Path:
    """Write the bundle, and a picture beside it; the bundle's folder."""
    from astra_mesh.bundle import open_bundle
    from astra_mesh.bundle.tensors import save_tensors
    from astra_mesh.families import read_spec
    from tools.bench.sizes import random_picture, random_weights, staged

    bundle = folder / MODEL
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    edge = {"height": EDGE, "width": EDGE}
    settings = {"image_processor_type": "ViTImageProcessor", "size": edge}
    (bundle / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_tensors(bundle / "model.safetensors", random_weights(CONFIG))
    model = open_bundle(bundle).model_id
    staged(read_spec(CONFIG), model, GROUPS, CODEWORDS).save(bundle / "codebook.safetensors")
    (folder / PICTURE).write_bytes(random_picture(EDGE))
    return bundle


@contextmanager
def two_peers(mbps: float, say: Say) -> Iterator[House]:
    """Two devices of half a core each, with the model loaded."""
    with tempfile.TemporaryDirectory(prefix="lab-rates-") as folder:
        offer = str(make_model(Path(folder)))
        device = Device(cpu=0.5, rate_mbps=mbps)
        scenario = Scenario(devices=dict.fromkeys(NAMES, device), offer=(offer,), meet_s=180.0)
        with House(scenario, say, timelines=False) as house:
            for name in NAMES:
                house.ask(request(house, "wait", name))
            yield house


def request(house: House, late: Late, device: str = NAMES[0]) -> Request:
    """A picture over both, at the largest rate."""
    options = Options(use="all", codec="vq", rate=BITS, late=late)
    picture = str(Path(house.scenario.offer[0]).parent / PICTURE)
    return Request(device=device, model=MODEL, task="classify", image=picture, options=options)


def set_rates(house: House, mbps: float) -> None:
    """Of both cables, in both directions."""
    for name in NAMES:
        house.apply(SetRate(device=name, at_s=0, up_mbps=mbps, down_mbps=mbps))


def disturbed(house: House, late: Late, mbps: float, later_mbps: float) -> Answered:
    """A request in whose middle the rates change."""
    set_rates(house, mbps)
    time.sleep(CALM_S)
    usual_s = min(told(house.ask(request(house, "wait"))).wall_s for _ in range(3))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(house.ask, request(house, late))
        time.sleep(usual_s / 2)
        set_rates(house, later_mbps)
        return told(answer.result())


def told(answer: dict[str, Any]) -> Answered:
    """What counts of an answer."""
    report = answer["report"]
    changes = [one for peer in report["peers"] for one in peer["rates"].values()]
    return Answered(answer["wall_s"], report["notes"], [x for one in changes for x in one[1::2]])


def plain_s(house: House) -> float:
    """The median time of requests whose links do not change."""
    return statistics.median(told(house.ask(request(house, "wait"))).wall_s for _ in range(REPEATS))


def figure(mbps: float, later_mbps: float, say: Say) -> str:
    """The rates fall in the middle of requests: how long those take, and what they say."""
    with two_peers(later_mbps, say) as house:
        lower_s = plain_s(house)
    found: dict[Late, list[Answered]] = {}
    with two_peers(mbps, say) as house:
        usual_s = plain_s(house)
        for late in ("adapt", "wait"):
            found[late] = [disturbed(house, late, mbps, later_mbps) for _ in range(REPEATS)]
    adapted, waited = (
        statistics.median(one.wall_s for one in found[late]) for late in ("adapt", "wait")
    )
    said = sum(any("degraded" in note for note in one.notes) for one in found["adapt"])
    lowest = min((bits for one in found["adapt"] for bits in one.bits), default=BITS)
    return (
        f"{mbps:g} to {later_mbps:g} Mbit/s within a request: {adapted:.2f} s with adapt, "
        f"{waited:.2f} s with wait; {usual_s:.2f} s undisturbed, {lower_s:.2f} s planned for "
        f"{later_mbps:g} Mbit/s ({adapted / lower_s:.2f} and {waited / lower_s:.2f} of it, target "
        f"1.3; medians of {REPEATS}); {said} of {REPEATS} say that they fell, to {lowest} of "
        f"{BITS} bits"
    )
