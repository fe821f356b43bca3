"""What messages cost: until a block's codes are where they are needed, and until the first token.

    python -m tools.bench.wire [--answers 20] [--rounds 20]

Codes: two peers on the loopback interface, one thread each, GPT-2 124M of random weights in bf16,
1,024 tokens, 128 bits. Both write down when they had encoded a block's tokens and when the last
code of the other's came (one clock: it is one machine; of two cores none is left for the event
loops). In between lie the hand-over to the event loop, packing, TLS, WebSocket, the kernel, and all
of that the other way round.

First token: two to four devices of the laboratory (needs root) and tiny-gpt2; what the devices send
is delayed by 0 and by 25 ms in turns. What the delay adds, in round trips.

Command line: from the start of `astra-mesh run` until its first character, two peers of this
machine with tiny-gpt2 that know each other and have the model loaded; and what of it is the
program's own start (`astra-mesh run --help`).

Results go to docs/data/wire.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import astra_mesh
from tools.bench import command
from tools.bench.decode import peer
from tools.bench.sizes import default_cache, ensure, random_tokens
from tools.lab import options
from tools.lab.house import House
from tools.lab.scenario import Device, Network, Options, Request, Scenario
from tools.models.common import REPO_ROOT

OUT: Final = REPO_ROOT / "docs" / "data" / "wire.json"
MODEL: Final = "gpt2-124m"
DTYPE: Final = "bf16"
VOCABULARY: Final = 50_257
TOKENS: Final = 1024
SMALL: Final = REPO_ROOT / "models" / "tiny-gpt2"
DELAY_MS: Final = 25.0
DEVICES: Final = (2, 3, 4)
MEET_S: Final = 60.0
PROMPT: Final = "Once upon a time there was a peer. " * 4
QUIET_S: Final = 8.0  # until pings have told a link's round trip


async def codes(answers: int) -> tuple[float, list[float]]:
    """Milliseconds: a ping's round trip while nothing runs, and from encoded to arrived, of each
    block and answer but the first one."""
    folder = ensure(MODEL, default_cache()) / MODEL
    with tempfile.TemporaryDirectory(prefix="astra-mesh-wire-", ignore_cleanup_errors=True) as name:
        records = [Path(name) / "one", Path(name) / "two"]
        async with (
            two_peers(folder, DTYPE, Path(name), records) as address,
            astra_mesh.connect(address) as mesh,
        ):
            idle_s = max(one.round_trip_s or 0.0 for one in await mesh.peers())
            prompt = random_tokens(VOCABULARY, TOKENS)
            for number in range(answers + 1):
                async for _ in mesh.generate(
                    MODEL, prompt, max_new_tokens=1, use="all", codec="vq", rate=128
                ):
                    pass
                if not number:  # it loads, and tables are made after it
                    await asyncio.sleep(10)
        names = sorted(records[0].iterdir(), key=lambda path: path.stat().st_mtime_ns)
        pairs = [[json.loads((one / path.name).read_text()) for one in records] for path in names]
    return 1e3 * idle_s, [ms for pair in pairs[1:] for ms in waits(*pair)]


@asynccontextmanager
async def two_peers(
    folder: Path, dtype: str, home: Path, records: Sequence[Path] = ()
) -> AsyncIterator[str]:
    """The address of one of two peers with a model that know each other."""
    os.environ["ASTRA_MESH_TRUST"] = str(home / "trust")  # a device of its own
    one, other = [["--record", str(record)] for record in records] or [[], []]
    async with (
        peer(folder, dtype, 1, home, *one) as first,
        peer(folder, dtype, 1, home, *other, "--peer", first) as second,
    ):
        async with astra_mesh.connect(second) as mesh:
            await meet(mesh)
            await asyncio.sleep(QUIET_S)
        yield second


async def typed(rounds: int) -> dict[str, list[float]]:
    """Seconds from the start of a command until its first character: a question, and help."""
    with tempfile.TemporaryDirectory(prefix="astra-mesh-wire-", ignore_cleanup_errors=True) as name:
        async with two_peers(SMALL, "fp32", Path(name)) as address:
            run = ["run", SMALL.name, PROMPT, "--connect", address, "--use", "all", "-n", "1"]
            commands = {"run": run, "help": ["run", "--help"]}
            found = {of: list[float]() for of in commands}
            for number in range(rounds + 2):
                for of, argv in commands.items():
                    took_s = await first_character(argv)
                    if number > 1:
                        found[of].append(took_s)
    return found


async def first_character(argv: Sequence[str]) -> float:
    """Seconds until a command of the program writes something; RuntimeError where it fails."""
    began = time.perf_counter()
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "astra_mesh", *argv, stdout=pipe, stderr=pipe
    )
    assert process.stdout is not None
    character = await process.stdout.read(1)
    took_s = time.perf_counter() - began
    _, told = await process.communicate()
    if process.returncode or not character:
        raise RuntimeError(f"astra-mesh {argv[0]} failed: {told.decode(errors='replace')}")
    return took_s


async def meet(mesh: astra_mesh.Mesh) -> None:
    """Wait until the asked peer sees the other one."""
    async with asyncio.timeout(MEET_S):
        while len(await mesh.peers()) < 2:  # noqa: ASYNC110 (of another process)
            await asyncio.sleep(0.1)


def waits(one: dict[str, Any], other: dict[str, Any]) -> Iterator[float]:
    """Of each block whose codes went from one record's peer to the other's, milliseconds."""
    for sender, receiver in ((one, other), (other, one)):
        encoded = {
            block["block"]: sender["began_ns"] + block["encoded_ns"]
            for block in sender["blocks"]
            if "encoded_ns" in block
        }
        for block in receiver["blocks"]:
            part = block.get("parts", {}).get(str(sender["shard"]), {})
            if "arrived_ns" in part and block["block"] in encoded:
                arrived = receiver["began_ns"] + part["arrived_ns"]
                yield (arrived - encoded[block["block"]]) / 1e6


def first_tokens(count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds until the first token over so many devices, without and with delay."""
    names = [f"d{i}" for i in range(count)]
    device = Device(options=("--no-pulse", "--dtype", "fp32"))
    scenario = Scenario(
        devices=dict.fromkeys(names, device),
        offer=(str(SMALL),),
        network=Network(delay_ms=DELAY_MS),
    )
    request = Request(
        device=names[0],
        model=SMALL.name,
        tokens=tuple(random_tokens(64, 48)),
        options=Options(use="all", max_new_tokens=1),
        timeout_s=60.0,
    )
    found: dict[str, list[float]] = {"0": [], f"{DELAY_MS:g}": []}
    with House(scenario, command.say, timelines=False) as house:
        for number in range(rounds + 2):
            for delay, times in found.items():
                for name in names:
                    house.lan.set_delay(name, float(delay))
                answer = house.ask(request)
                if number > 1:
                    times.append(answer["first_s"])
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted or unsorted values, the nearest one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit statuses of :func:`tools.bench.command.measured`."""
    parser = command.parser(__doc__, OUT)
    parser.add_argument("--answers", type=options.within(int, 1), default=20)
    parser.add_argument("--rounds", type=options.within(int, 1), default=20)
    args = parser.parse_args(argv)
    return command.measured(
        args, lambda save: _measure_all(args.answers, args.rounds, save), lab=True
    )


def _measure_all(answers: int, rounds: int, save: command.Save) -> None:
    found: dict[str, Any] = {"model": MODEL, "dtype": DTYPE, "tokens": TOKENS}
    idle, milliseconds = asyncio.run(codes(answers))
    middle, worst = quantile(milliseconds, 0.5), quantile(milliseconds, 0.99)
    command.say(f"a ping while nothing runs: {idle:.2f} ms there and back")
    command.say(f"codes of a block: {middle:.2f} ms, 99 % within {worst:.2f} ({len(milliseconds)})")
    found |= {"idle_round_trip_ms": idle, "codes_ms": milliseconds}
    save(found)
    found["command_s"] = asyncio.run(typed(rounds))
    run, start = (statistics.median(found["command_s"][of]) for of in ("run", "help"))
    command.say(
        f"astra-mesh run: {run:.3f} s until the first character; its start takes {start:.3f}"
    )
    found["first"] = {}
    for count in DEVICES:
        times = first_tokens(count, rounds)
        without, late = (statistics.median(one) for one in times.values())
        trips = (late - without) / (2e-3 * DELAY_MS)
        found["first"][str(count)] = {"seconds": times, "round_trips": trips}
        command.say(
            f"{count} devices: {1e3 * without:.1f} ms until the first token, "
            f"{1e3 * late:.1f} with {DELAY_MS:g} ms each way: {trips:.2f} round trips"
        )
        save(found)


if __name__ == "__main__":
    sys.exit(main())
