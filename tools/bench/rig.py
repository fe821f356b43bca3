"""Devices of the laboratory with a peer or a worker on each: what the benchmark asks."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from msgspec import structs

from astra_mesh.client.inputs import UseName
from astra_mesh.limits import LOST_S
from tools.bench.baselines.variants import SINGLE
from tools.bench.shifts import Codes
from tools.bench.sizes import CONFIGS, random_picture, random_tokens
from tools.lab.client import Asker, AskError
from tools.lab.house import House
from tools.lab.scenario import Device, Options, Request, Scenario
from tools.lab.system import LabError, stop

PEER_PORT: Final = 7475
WORKER_PORT: Final = 7600
START_S: Final = 600.0  # to load a model in every process, on a share of a core
ANSWER_S: Final = 600.0
MEET_S: Final = 60.0
UNPLUGGED_S: Final = LOST_S + 1.0  # then links are given up
SETTLE_S: Final = 300.0
_POLL_S: Final = 0.25
_SETTLED_S: Final = 0.5  # so long idle
_IDLE: Final = 0.03  # of a core and device: heartbeats


class RigError(LabError):
    """A process of the rig did not do what it was asked."""


class Rig:
    """Devices "d0", "d1", ... for one model; a context. :meth:`start` before asking.

    Args:
        model: name of :data:`tools.bench.sizes.CONFIGS`.
        folder: of its files.
        count: devices.
        cores: of each.
        threads: of torch in each process.
        dtype: that all compute in.
        delay_ms: of all that a device sends.
        options: of the peers, beside those that all measurements have.
        say: told what is going on.
    """

    def __init__(
        self,
        model: str,
        folder: Path,
        count: int,
        *,
        cores: float,
        threads: int = 1,
        dtype: str = "fp32",
        delay_ms: float = 0.0,
        options: Sequence[str] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self._folder, self._threads, self._dtype = model, folder, threads, dtype
        self.devices = [f"d{i}" for i in range(count)]
        device = Device(
            cpu=cores,
            threads=threads,
            # No pulse: the workers share its processor.
            options=("--dtype", dtype, "--no-pulse", *options),
            delay_ms=delay_ms or None,
            start=False,
        )
        self._house = House(
            Scenario(
                devices=dict.fromkeys(self.devices, device),
                offer=(str(self._bundle),),
                meet_s=START_S,
            ),
            say,
            timelines=False,
        )
        self._members: list[str] = []  # devices whose peers run
        self._processes: list[subprocess.Popen[str]] = []
        self._workers: list[Asker] = []
        self._number = 0

    def __enter__(self) -> Self:
        self._house.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_workers()
        self._house.close()

    @property
    def _bundle(self) -> Path:
        return self._folder / self.model

    def logs(self) -> str:
        """The last lines that the processes wrote."""
        found = []
        for path in sorted(self._house.folder.glob("*/log")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            found.append("\n".join([f"--- {path.parent.name}", *lines]))
        return "\n".join(found)

    # --- starting ---------------------------------------------------------------------------------

    def start(self, peers: int, workers: int, mbps: float) -> None:
        """End what runs; then start peers on the first devices, and workers, and await them.

        Links have a rate of ``mbps`` from the beginning.
        """
        self._stop_workers()
        stop([self._house.peers[device].process for device in self._members])
        self._members = self.devices[:peers]
        self._shape(mbps)
        for index, device in enumerate(self._members):
            more = [f"--peer={self._house.lan.address(one)}:{PEER_PORT}" for one in self.devices]
            self._house.start(device, f"--port={PEER_PORT}", "--no-discovery", *more[:index])
        self._start_workers(workers)
        for worker in self._workers:
            worker.ask({"timeout_s": START_S})
        if self._members:
            self._house.meet()
            self._measured()

    def _start_workers(self, count: int) -> None:
        devices = self.devices[:count]
        addresses = ",".join(f"{self._house.lan.address(one)}:{WORKER_PORT}" for one in devices)
        for rank, device in enumerate(devices):
            argv: list[str | Path] = [sys.executable, "-m", "tools.bench.baselines.worker"]
            argv += ["--rank", str(rank), "--addresses", addresses]
            argv += ["--threads", str(self._threads), "--dtype", self._dtype]
            argv += ["--bundle", self._bundle, "--astra", self._folder / "astra"]
            pipe = subprocess.PIPE
            process = self._house.popen(device, argv, stdin=pipe, stdout=pipe, text=True)
            self._processes.append(process)
            self._workers.append(Asker(process))

    def _stop_workers(self) -> None:
        stop(self._processes)
        for worker in self._workers:
            worker.join()
        self._workers.clear()

    def _measured(self) -> None:
        """Wait until all peers are linked to all others, and know how fast the links are."""
        deadline = time.monotonic() + MEET_S
        while not all(self._knows(device) for device in self._members):
            if time.monotonic() > deadline:
                raise RigError(f"the peers' links were not measured within {MEET_S:g} s")
            time.sleep(_POLL_S)

    def _knows(self, device: str) -> bool:
        rates = [one["send_bps"] for one in self._house.view(device) if not one["self"]]
        return len(rates) == len(self._members) - 1 and None not in rates

    # --- what happens -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until the devices are idle: after new kinds of requests peers make tables."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            before = self._used_s()
            time.sleep(_SETTLED_S)
            if self._used_s() - before < _IDLE * _SETTLED_S * len(self.devices):
                return
        raise RigError(f"the devices were still busy {SETTLE_S:g} s after the last answer")

    def _used_s(self) -> float:
        return sum(one.used_s for one in self._house.usage().values())

    def pids(self) -> tuple[list[int], list[int]]:
        """Of the peers, and of the workers, that run."""
        peers = [self._house.peers[device].pid for device in self._members]
        return peers, [one.pid for one in self._processes]

    def set_rate(self, mbps: float) -> None:
        """All links to this rate. Links of peers are made anew, so that they measure it: a few
        bytes of codes say nothing about it."""
        lan = self._house.lan
        self._shape(mbps)
        if len(self._members) < 2:
            return
        for device in self._members:
            lan.unplug(device)
        time.sleep(UNPLUGGED_S)
        for device in self._members:
            lan.plug(device)
        self._measured()

    def _shape(self, mbps: float) -> None:
        for device in self.devices:
            self._house.lan.set_rate(device, mbps)

    def ask_mesh(self, tokens: int, members: int, codes: Codes) -> dict[str, Any]:
        """An answer of the ``members`` fastest peers, or of those that the planner likes best;
        RigError where there is none."""
        use: UseName = "solo" if members == 1 else codes.use
        options = Options(use=use, max_peers=members, codec=codes.codec, rate=codes.rate)
        try:
            found = told(self._house.ask(self._request(tokens, options)))
        except AskError as error:
            raise RigError(str(error)) from error
        if use != "auto" and len(found["peers"]) != members:
            raise RigError(f"{len(found['peers'])} peers answered, not {members}")
        return found

    def _request(self, tokens: int, options: Options) -> Request:
        config, device = CONFIGS[self.model], self.devices[0]
        if "image_size" in config:
            path = self._house.folder / "picture.jpeg"
            path.write_bytes(random_picture(config["image_size"]))
            return Request(
                device=device,
                model=self.model,
                task="classify",
                image=str(path),
                options=options,
                timeout_s=ANSWER_S,
            )
        return Request(
            device=device,
            model=self.model,
            tokens=tuple(random_tokens(config["vocab_size"], tokens)),
            options=structs.replace(options, max_new_tokens=1),
            timeout_s=ANSWER_S,
        )

    def ask_baseline(self, name: str, tokens: int, members: int) -> dict[str, Any]:
        """An answer of the first ``members`` workers; of the first one, if one is to do it."""
        members = 1 if name == SINGLE else members
        self._number += 1
        task = {"timeout_s": ANSWER_S, "number": self._number, "variant": name, "members": members}
        try:
            found = self._workers[members - 1].ask(task | self._inputs(tokens))
        except AskError as error:
            raise RigError(f"{name}: {error}") from error
        return {key: found[key] for key in ("seconds", "best", "peers")}

    def _inputs(self, tokens: int) -> dict[str, Any]:
        config = CONFIGS[self.model]
        if "image_size" in config:
            return {"image": base64.b64encode(random_picture(config["image_size"])).decode()}
        return {"tokens": random_tokens(config["vocab_size"], tokens)}


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What the results keep of an answer of the mesh."""
    planned, report = answer["planned"], answer["report"]
    spent = ("tokens", "compute_s", "encode_s", "decode_s", "wait_s", "finished_s")
    return {
        "seconds": report["actual_s"],
        # From the client's question until it has the result.
        "asked_s": report["took_s"] - report["loading_s"],
        "predicted_s": report["predicted_s"],
        "solo_predicted_s": None if planned is None else planned["solo_s"],
        "bits": report["bits_per_token"],
        "notes": report["notes"],
        "peers": [
            {name: one[name] for name in spent} | {"sent_bytes": sum(one["sent_bytes"].values())}
            for one in report["peers"]
        ],
    }
