"""A LAN with a peer and a worker on each device, and one client: what the benchmark asks."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tools.bench.quota import Quotas
from tools.bench.sizes import CONFIGS, random_picture, random_tokens
from tools.lab.network import Lan
from tools.models.common import REPO_ROOT

PEER_PORT: Final = 7475
WORKER_PORT: Final = 7600
START_S: Final = 600.0  # to load a model in every process, on a share of a core
ANSWER_S: Final = 600.0
MEET_S: Final = 60.0
UNPLUGGED_S: Final = 5.5  # more than the silence after which a link is given up
_POLL_S: Final = 0.25
_READ_BYTES: Final = 1 << 16


class RigError(RuntimeError):
    """A process of the rig did not do what it was asked."""


class Talker:
    """A process that answers lines of JSON with lines of JSON."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process, self._name = process, name
        self._rest = b""

    def tell(self, document: dict[str, Any]) -> None:
        """One line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(document).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, patience_s: float) -> dict[str, Any]:
        """The next line from it.

        Raises:
            RigError: none came in time, or the process ended.
        """
        assert self._process.stdout is not None
        out, deadline = self._process.stdout.fileno(), time.monotonic() + patience_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(out, _READ_BYTES) if ready else b""
            if not more:
                what = "ended" if ready else f"said nothing for {patience_s:g} s"
                raise RigError(f"{self._name} {what}")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def ask(self, document: dict[str, Any], patience_s: float = ANSWER_S) -> dict[str, Any]:
        """A line to it, and its reply."""
        self.tell(document)
        return self.hear(patience_s)


class Rig:
    """Devices "d0", "d1", ... for one model; a context.

    Args:
        model: name of :data:`tools.bench.sizes.CONFIGS`.
        folder: of its files.
        count: devices.
        cores: of each.
        threads: of torch in each process.
        work: folder for logs and homes.
        mesh: whether peers run; without them only the baselines can be asked.
        workers: whether the baselines' workers run.
    """

    def __init__(
        self,
        model: str,
        folder: Path,
        count: int,
        *,
        cores: float,
        work: Path,
        threads: int = 1,
        mesh: bool = True,
        workers: bool = True,
    ) -> None:
        self.model, self._folder, self._work, self._threads = model, folder, work, threads
        self.devices = [f"d{i}" for i in range(count)]
        self._cores, self._with = cores, (mesh, workers)
        self._stack = ExitStack()
        self._lan = Lan(self.devices)
        self._number = 0
        self._workers: list[Talker] = []
        self._client: Talker | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._quotas = stack.enter_context(Quotas(self.devices, self._cores, self._work))
            stack.enter_context(self._lan)
            mesh, workers = self._with
            if mesh:
                self._start_peers()
            if workers:
                self._start_workers()
            for talker in self._workers:
                talker.hear(START_S)
            if mesh:
                self._meet()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    # --- starting ---------------------------------------------------------------------------------

    @property
    def _bundle(self) -> Path:
        return self._folder / self.model

    def _env(self, device: str) -> dict[str, str]:
        home = self._work / device
        home.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ASTRA_"))}
        threads = {"OMP_NUM_THREADS": str(self._threads), "OMP_WAIT_POLICY": "PASSIVE"}
        return kept | threads | {"HOME": str(home), "PYTHONPATH": str(REPO_ROOT)}

    def _popen(
        self, device: str, argv: Sequence[str | Path], **options: Any
    ) -> subprocess.Popen[bytes]:
        """A Python module on a device, within its quota; errors go to a log."""
        command = self._quotas.inside(device, [sys.executable, "-m", *argv])
        with (self._work / f"{device}.log").open("ab") as log:
            return self._lan.popen(
                device, command, env=self._env(device), cwd=self._work, stderr=log, **options
            )

    def _talker(self, device: str, argv: Sequence[str | Path]) -> Talker:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return Talker(self._popen(device, argv, **pipes), f"{argv[0]} on {device}")

    def _start_peers(self) -> None:
        for index, device in enumerate(self.devices):
            argv = ["astra_mesh", "peer", "--name", device, "--port", str(PEER_PORT)]
            argv += ["--threads", str(self._threads), "--model", str(self._bundle)]
            argv += ["--no-discovery"]
            for other in self.devices[:index]:
                argv += ["--peer", f"{self._lan.address(other)}:{PEER_PORT}"]
            self._popen(device, argv, stdout=subprocess.DEVNULL)
        self._client = self._talker(
            self.devices[0], ["tools.bench.asker", f"127.0.0.1:{PEER_PORT}"]
        )
        self._client.hear(START_S)

    def _start_workers(self) -> None:
        addresses = ",".join(f"{self._lan.address(one)}:{WORKER_PORT}" for one in self.devices)
        for rank, device in enumerate(self.devices):
            argv: list[str | Path] = ["tools.bench.baselines.worker", "--rank", str(rank)]
            argv += ["--addresses", addresses, "--threads", str(self._threads)]
            argv += ["--bundle", self._bundle, "--astra", self._folder / "astra"]
            self._workers.append(self._talker(device, argv))

    def _meet(self) -> None:
        """Wait until the asked peer is linked to all others, and knows how fast the links are."""
        assert self._client is not None
        deadline = time.monotonic() + MEET_S
        while True:
            found = self._client.ask({})
            if len(found.get("peers", [])) == len(self.devices) and None not in found["bps"]:
                return
            if time.monotonic() > deadline:
                raise RigError(f"the peers did not meet within {MEET_S:g} s: {found}")
            time.sleep(_POLL_S)

    # --- what happens -----------------------------------------------------------------------------

    def set_rate(self, mbps: float) -> None:
        """All links to this rate. Links of peers are made anew, so that they measure it: a few
        bytes of codes say nothing about it."""
        for device in self.devices:
            self._lan.set_rate(device, mbps)
        if self._client is None or len(self.devices) == 1:
            return
        for device in self.devices:
            self._lan.unplug(device)
        time.sleep(UNPLUGGED_S)
        for device in self.devices:
            self._lan.plug(device)
        self._meet()

    def ask_mesh(self, tokens: int, members: int, codec: str, rate: int) -> dict[str, Any]:
        """An answer of the first ``members`` fastest peers; RigError where there is none."""
        assert self._client is not None
        question = {"model": self.model, "members": members, "codec": codec, "rate": rate}
        found = self._client.ask(question | self._inputs(tokens))
        if "error" in found:
            raise RigError(str(found["error"]))
        if len(found["peers"]) != members:
            raise RigError(f"{len(found['peers'])} peers answered, not {members}")
        return found

    def ask_baseline(self, name: str, tokens: int, members: int) -> dict[str, Any]:
        """An answer of the first ``members`` workers."""
        self._number += 1
        task = {"number": self._number, "variant": name, "members": members}
        return self._workers[members - 1].ask(task | self._inputs(tokens))

    def _inputs(self, tokens: int) -> dict[str, Any]:
        config = CONFIGS[self.model]
        if "image_size" in config:
            return {"image": base64.b64encode(random_picture(config["image_size"])).decode()}
        return {"tokens": random_tokens(config["vocab_size"], tokens)}
