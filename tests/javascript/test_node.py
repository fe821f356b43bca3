"""The page's compute peer in node: its own tests, and its answers compared with Python's."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.families.spec import ModelSpec
from astra_mesh.mesh.probe import Backlog, Meter
from astra_mesh.peer.exchange import partners
from astra_mesh.peer.rates import LinkRate, Pacing
from astra_mesh.plan.check import BadPlanError, layout_of
from astra_mesh.plan.cost import Candidate, Work, predict
from astra_mesh.plan.layout import Layout
from astra_mesh.web import files
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import decode, encode, sanitise

HERE = Path(__file__).parent
VECTORS = HERE.parent / "vectors"
NODE = shutil.which("node")
OLDEST = 18
RUN_S = 120


def _missing() -> str:
    if NODE is None:
        return "no node on this machine (Debian: apt install nodejs)"
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").split(".")[0]) < OLDEST:
        return f"node {version.strip()} is older than {OLDEST}"
    if not (Path(files.__file__).parent / "site" / "vendor" / "versions.json").exists():
        return "without the browser runtime: make runtime"
    return ""


MISSING = _missing()
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "all is there"),
    pytest.mark.timeout(2 * RUN_S),
]


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.test.js")))
def test_in_node(name: str) -> None:
    assert NODE is not None
    done = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", str(HERE / name)],
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, _failures(done.stdout) + done.stderr[-2000:]
    assert re.search(r"^# pass [1-9]", done.stdout, re.M), done.stdout[-2000:]


def _failures(output: str) -> str:
    at = output.find("not ok")
    return output[at : at + 4000]


def answers(asked: list[dict[str, Any]]) -> list[Any]:
    """What JavaScript says to each of many questions."""
    assert NODE is not None
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    done = subprocess.run(
        [NODE, str(HERE / "answers.js")],
        check=False,
        input=lines,
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_limits_are_the_same() -> None:
    [found] = answers([{"ask": "limits"}])
    assert len(found) > 50
    assert found == {name: getattr(limits, name) for name in found}


def test_texts_are_made_safe_alike() -> None:
    texts = ["plain", "a\nb\tc", "\u202eright to left", "é\u0301", "\U0001f600" * 12, " x ", ""]
    texts += ["nbsp\u00a0", "\u2028", "x" * 30, "\x7f\x00", "\ue000"]
    asked = [{"ask": "sanitise", "text": text, "limit": 10} for text in texts]
    assert answers(asked) == [sanitise(text, 10) for text in texts]


def test_damaged_frames_are_judged_alike() -> None:
    """Every bit of a vector changed: both languages take it, as the same message, or neither."""
    frames = []
    for vector in json.loads((VECTORS / "protocol.json").read_text()):
        if m.TYPES[bytes.fromhex(vector["frame"])[1]].__name__ not in OF_CLIENTS:
            frames.append(bytes.fromhex(vector["frame"]))
    damaged = list(frames)
    rng = random.Random(8)
    for frame in frames:
        bits = range(16, 8 * len(frame))
        for bit in bits if len(bits) < 1500 else rng.sample(bits, 1500):
            changed = bytearray(frame)
            changed[bit // 8] ^= 1 << bit % 8
            damaged.append(bytes(changed))
        for _ in range(300):
            damaged.append(_mangled(frame, rng))
    found = answers([{"ask": "frame", "frame": frame.hex()} for frame in damaged])
    different = [
        (frame.hex(), mine, theirs)
        for frame, theirs in zip(damaged, found, strict=True)
        if (mine := _again(frame)) != theirs
    ]
    assert different[:3] == []
    assert sum(one is not None for one in found) > 1000


OF_CLIENTS = {"Ask", "Planned", "Result", "ListPeers", "Peers", "Subscribe", "Event", "Refer"}


def _mangled(frame: bytes, rng: random.Random) -> bytes:
    """A few bytes replaced, left out or doubled, the head kept."""
    found = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(2, len(found))
        kind = rng.randrange(3)
        if kind == 0:
            found[at] = rng.choice((0x00, 0x80, 0x90, 0xC0, 0xC3, 0xCB, 0xCF, 0xD0, 0xFF, 0xCA))
        elif kind == 1 and len(found) > 4:
            del found[at]
        else:
            found.insert(at, found[at])
    return bytes(found)


def _again(frame: bytes) -> str | None:
    try:
        message = decode(frame)
        return None if type(message).__name__ in OF_CLIENTS else encode(message).hex()
    except ProtocolError:
        return None


# --- links ----------------------------------------------------------------------------------------


def _calls(rng: random.Random) -> list[list[Any]]:
    """What happens on a link: runs of frames, marks and their pongs, probes."""
    now, found = 100.0, []
    for _ in range(80):
        now += rng.expovariate(1 / 0.02)
        kind = rng.choice(("wrote", "wrote", "idle", "mark", "pong", "backlog", "probed"))
        trip = rng.choice((None, 0.004, 0.03))
        given: dict[str, list[Any]] = {
            "wrote": [rng.choice((10, 3_000, 90_000)), now],
            "pong": [now, trip, trip and trip * rng.uniform(0.3, 1.0)],
            "backlog": [now, rng.choice((0, 5_000)), trip],
            "probed": [rng.uniform(1e5, 1e8), now],
        }
        found.append([kind, *given.get(kind, [now])])
    return found


def _metered(calls: list[list[Any]]) -> list[Any]:
    meter, found = Meter(), []
    for name, *given in calls:
        one = getattr(meter, name)(*given)
        if name == "backlog":
            one = [one.size, "inf" if one.bps == math.inf else one.bps, one.measured_bps]
        found.append(meter.bps if one is None else one)
    return found


def test_links_are_metered_alike() -> None:
    rng = random.Random(81)
    many = [_calls(rng) for _ in range(100)]
    found = answers([{"ask": "meter", "calls": calls} for calls in many])
    assert sum(one is True for each in found for one in each) > 100
    for theirs, calls in zip(found, many, strict=True):
        for mine, one in zip(_metered(calls), theirs, strict=True):
            assert one == (mine if isinstance(mine, bool) else pytest.approx(mine)), calls


def _blocks(rng: random.Random) -> list[list[Any]]:
    now, bps, found = 50.0, 8e6, []
    for block in range(1, 40):
        now += rng.uniform(0.01, 0.12)
        bps = min(max(bps * rng.choice((0.3, 0.8, 1.0, 1.0, 1.3, 2.0)), 1e5), 1e8)
        size = rng.choice((0, 0, 4_000, 60_000))
        seen = rng.choice(("inf", bps))
        found.append([block, now, rng.uniform(0, 0.1), [size, seen, rng.choice((None, bps))]])
    return found


def test_rates_follow_links_alike() -> None:
    rng = random.Random(82)
    sizes = {1: 2_000, 2: 4_000, 3: 8_000, 5: 40_000}
    many = [_blocks(rng) for _ in range(200)]
    asked = [
        {"ask": "rates", "sizes": list(sizes.items()), "block_s": 0.05, "blocks": blocks}
        for blocks in many
    ]
    changed = 0
    for theirs, blocks in zip(answers(asked), many, strict=True):
        rate, pacing = LinkRate(sizes), Pacing(0.05)
        for (block, now, busy_s, (size, bps, measured)), (allowed, stages) in zip(
            blocks, theirs, strict=True
        ):
            mine = pacing.allowed_s(block, now, busy_s)
            assert allowed == pytest.approx(mine)
            assert stages == rate.choose(block, mine, Backlog(size, float(bps), measured))
        changed += len(rate.used)
    assert changed > 500


# --- plans ----------------------------------------------------------------------------------------

PEERS = [m.PeerId(f"{i:x}" * 64) for i in range(8)]
BLOCKS = 3


def _spec(rng: random.Random) -> ModelSpec:
    return ModelSpec(
        family="any",
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=BLOCKS,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=9,
        max_tokens=64,
        causal=rng.random() < 0.5,
        has_class_token=rng.random() < 0.5,
        tasks=("generate", "classify", "embed"),
    )


def _plan(rng: random.Random) -> m.Plan:
    """A plan that is good as often as not."""
    count = rng.randint(1, 5)
    cuts = sorted(rng.randint(0, 12) for _ in range(count - 1))
    bounds = list(zip([0, *cuts], [*cuts, 12], strict=True))
    if rng.random() < 0.1:
        i = rng.randrange(count)
        bounds[i] = (bounds[i][0], max(bounds[i][0], bounds[i][1] + rng.choice((-1, 1))))
    peers = rng.sample(PEERS, count)
    if rng.random() < 0.05:
        peers[-1] = peers[0]
    rates = [
        m.LinkRate(sender=a, receiver=b, stages=rng.choice((1, 1, 1, 2)))
        for a in peers
        for b in peers
        if a != b and rng.random() < 0.98
    ]
    if rng.random() < 0.05:
        rates.append(m.LinkRate(sender=m.PeerId("f" * 64), receiver=peers[0], stages=1))
    holding = [peer for peer, (start, stop) in zip(peers, bounds, strict=True) if stop > start]
    return m.Plan(
        model=m.ModelId("0" * 64),
        codec="vq",
        codebook=m.CodebookId(""),
        shards=[
            m.Shard(peer=peer, start=start, stop=stop)
            for peer, (start, stop) in zip(peers, bounds, strict=True)
        ],
        rates=rates,
        answering=holding[-1] if holding and rng.random() < 0.9 else peers[0],
        class_token=rng.choice(("single", "distributed", "none", "", "both")),
    )


def test_layouts_of_random_plans_are_the_same() -> None:
    rng = random.Random(80)
    asked: list[dict[str, Any]] = []
    wanted: list[dict[str, Any] | str] = []
    for _ in range(3000):
        plan, spec = _plan(rng), _spec(rng)
        task, tokens = rng.choice(list(m.Task)), rng.choice((12, 12, 12, 11))
        first_block, able = rng.choice((0, 1)), rng.choice(((1, 2), (1,)))
        asked.append(
            {
                "ask": "plan",
                "plan": _builtins(plan),
                "spec": _builtins(spec),
                "task": task.value,
                "tokens": tokens,
                "first_block": first_block,
                "able": able,
            }
        )
        try:
            wanted.append(_told(layout_of(plan, spec, task, tokens, first_block, able)))
        except BadPlanError as error:
            wanted.append(str(error))
    found = answers(asked)
    good = [one for one in wanted if isinstance(one, dict)]
    assert 500 < len(good) < 2500
    for theirs, mine in zip(found, wanted, strict=True):
        if isinstance(mine, dict):
            assert theirs == mine
        else:
            assert _words(theirs) == _words(mine)


def test_shares_are_predicted_alike() -> None:
    """What own shares take is compared with what planners think that they take."""
    rng = random.Random(83)
    timing = m.Timing(0.02, 0.003, 0.0001, 0.0, 0.0, 0.0, 0.0)
    asked: list[dict[str, Any]] = []
    wanted: list[list[float]] = []
    while len(asked) < 300:
        plan, spec, task = _plan(rng), _spec(rng), rng.choice(list(m.Task))
        first_block = rng.choice((0, 1))
        try:
            layout = layout_of(plan, spec, task, 12, first_block, (1, 2))
        except BadPlanError:
            continue
        peers = [shard.peer for shard in plan.shards]
        alone = [m.Device(host=peer, cores=8.0, host_cores=8.0, threads=1) for peer in peers]
        candidates = [
            Candidate(peer, "", device, timing) for peer, device in zip(peers, alone, strict=True)
        ]
        found = predict(layout, Work({1: 1.0, 2: 2.0}, plan.answering), candidates, {})
        wanted.append([effort.compute_s for effort in found.efforts])
        about: dict[str, Any] = {"plan": plan, "spec": spec, "timing": timing}
        asked.append(
            {name: _builtins(one) for name, one in about.items()}
            | {"ask": "shares", "task": task.value, "tokens": 12}
            | {"first_block": first_block, "able": (1, 2)}
        )
    for theirs, mine in zip(answers(asked), wanted, strict=True):
        assert theirs == pytest.approx(mine)


def _builtins(value: object) -> Any:
    return msgspec.to_builtins(value)


def _words(text: str) -> list[str]:
    """A sentence without what the languages write differently: brackets and quotes."""
    return re.findall(r"\w+", text)


def _told(layout: Layout) -> dict[str, Any]:
    def bounds(positions: range) -> list[int]:
        return [positions.start, positions.stop] if len(positions) else []

    shards = range(len(layout.bounds))
    return {
        "tokens": layout.tokens,
        "answering": layout.answering(),
        "shards": [
            {
                "sent": bounds(layout.sent(i)),
                "copies": layout.copies_class(i),
                "rows": layout.local_rows(i),
                "wanted": bounds(layout.wanted(i)),
                "sources": [list(layout.sources(i, block)) for block in range(layout.blocks)],
                "receivers": [list(layout.receivers(i, block)) for block in range(layout.blocks)],
                "partners": partners(layout, i) if layout.holds(i) else None,
            }
            for i in shards
        ],
    }
