"""A LAN with a real peer on each device: what a scenario describes, running.

    with House(load_scenario(path)) as house:
        answer = house.ask(Request(device="left", model="tiny-gpt2", text="ROMEO:"))
        house.apply(Kill(device="right", at_s=0))
        house.cli("left", "peers")

When it is entered the peers have met.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tools.lab import cpu, network
from tools.lab.client import Asker, AskError
from tools.lab.network import Lan
from tools.lab.process import DevicePeer, environment_of, within
from tools.lab.scenario import (
    Event,
    Go,
    Kill,
    Leave,
    Pause,
    Plug,
    Request,
    Scenario,
    ScenarioError,
    SetDelay,
    SetLoss,
    SetMedium,
    SetRate,
    Start,
    Unplug,
    mbps_of,
    rates_of,
)
from tools.lab.system import LabError, orphans, stop, undisturbed

LOOK_S = 0.2  # between two looks at who has met
LEAVE_S = 30.0  # for a goodbye, also with little CPU or on a busy machine
CLI_S = 60.0
USAGE = 2  # exit status of a program that does not know an option

Say = Callable[[str], None]  # takes a line of progress


class House:
    """Devices with peers for as long as the context lasts. Single-use.

    :meth:`ask` may be called from several threads; the rest from one at a time.

    Args:
        scenario: its requests and events are not run here, see :mod:`tools.lab.runner`.
        say: told what is going on.
        timelines: whether peers write down the times of their blocks.
        python: what stands for ``python`` in commands of this project's programs; where that makes
            forks (tests/forks.py), no device has a quota.

    Raises:
        LabUnavailableError: on entering, where this machine cannot do what the scenario needs.
        LabError: on entering, a peer ended or did not meet the others; with its log.
    """

    def __init__(
        self,
        scenario: Scenario,
        say: Say = lambda text: None,
        *,
        timelines: bool = True,
        python: Sequence[str] = (sys.executable,),
    ) -> None:
        self.scenario, self._say, self.timelines = scenario, say, timelines
        self.python = tuple(python)
        if self.python != (sys.executable,) and any(x.cpu for x in scenario.devices.values()):
            raise ValueError("only processes of their own have a device's quota")
        self.lan = Lan(
            list(scenario.devices),
            delayed=scenario.delayed(),
            medium=scenario.network.medium_mbps is not None,
            seed=scenario.seed,
        )
        self.folder = Path(tempfile.gettempdir()) / f"{self.lan.stem}-house"
        self.peers: dict[str, DevicePeer] = {}
        self._groups: dict[str, cpu.CpuGroup] = {}
        self._askers: dict[str, tuple[subprocess.Popen[str], Asker]] = {}
        self._namesakes: dict[str, subprocess.Popen[Any]] = {}
        self._asker_lock = threading.Lock()

    # --- life -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        sweep()
        self._warn()
        self.folder.mkdir(mode=0o700)
        try:
            self.lan.__enter__()
            self._shape()
            for device, settings in self.scenario.devices.items():
                if settings.start:
                    self.start(device)
            if self.peers:
                self.meet()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop and remove everything. May be called again."""
        with undisturbed(), ExitStack() as steps:  # the last one first, also where one fails
            steps.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for group in self._groups.values():
                steps.callback(group.close)
            steps.callback(self.lan.close)
            steps.callback(self._askers.clear)
            steps.callback(self.hush)
        self._groups.clear()

    def hush(self) -> None:
        """End the clients on the devices: whoever waits for an answer gets an AskError."""
        stop([process for process, _ in self._askers.values()])
        for _, asker in self._askers.values():
            asker.join()

    def _warn(self) -> None:
        """What makes the quotas less than they say."""
        wanted = sum(device.cpu or 0.0 for device in self.scenario.devices.values())
        cores = len(os.sched_getaffinity(0))
        if wanted > cores:
            self._say(f"warning: quotas of {wanted:g} cores in all, and this machine has {cores}")

    def _shape(self) -> None:
        """What the cables and processors are like at the beginning."""
        lan, network = self.lan, self.scenario.network
        if network.medium_mbps is not None:
            lan.set_medium(mbps_of(network.medium_mbps), queue_ms=network.queue_ms)
        for device, settings in self.scenario.devices.items():
            up, down = rates_of(settings)
            if up is not None or down is not None:
                lan.set_rates(device, up, down, queue_ms=network.queue_ms)
            if loss := self.scenario.loss_of(device):
                lan.set_loss(device, loss)
            if any(delay := self.scenario.delay_of(device)):
                lan.set_delay(device, *delay)
            if settings.cpu is not None:
                self._groups[device] = cpu.make_group(lan.stem, device, settings.cpu)

    # --- programs ---------------------------------------------------------------------------------

    def device_folder(self, device: str) -> Path:
        """Where what belongs to a device lies: its home, its log, its peer's files."""
        folder = self.folder / device
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def trust_folder(self) -> Path:
        """All devices share one, so that they trust each other without being paired first."""
        return self.folder / "trust"

    def popen(
        self, device: str, argv: Sequence[str | Path], **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a program on a device, within its quota; its messages go to the device's log.

        It is stopped with the laboratory. ``options``: as for :class:`subprocess.Popen`.
        """
        folder, group = self.device_folder(device), self._groups.get(device)
        lead = [] if group is None else within(folder, group)
        environment = environment_of(self, device)
        with (folder / "log").open("ab") as log:
            return self.lan.popen(device, [*lead, *argv], env=environment, stderr=log, **options)

    # --- peers ------------------------------------------------------------------------------------

    def start(self, device: str, *more: str) -> None:
        """Start the peer of a device, with more options than the scenario's.

        Raises:
            LabError: it runs.
        """
        if device in self.peers and self.peers[device].runs:
            raise LabError(f"the peer on {device} runs already")
        self.peers[device] = DevicePeer.start(self, device, more)

    def meet(self, devices: Collection[str] | None = None) -> None:
        """Wait until these see each other and nobody else; None: all that run.

        Raises:
            LabError: a peer ended, or ``meet_s`` passed.
        """
        wanted = set(devices) if devices is not None else self.running()
        deadline = time.monotonic() + self.scenario.meet_s
        said = ""
        while True:
            seen = {device: self._seen(device) for device in sorted(wanted)}
            if all(one == wanted for one in seen.values()):
                return
            counts = _counts(seen, wanted)
            if counts != said and len(wanted) > 1:
                self._say(f"looking for each other: {counts}")
            said = counts
            if time.monotonic() > deadline:
                text = f"the peers did not meet within {self.scenario.meet_s:g} s: {counts}"
                raise LabError(f"{text}\n{self.log_text()}")
            time.sleep(LOOK_S)

    def running(self) -> set[str]:
        """Devices whose peers were started and have not ended."""
        return {device for device, peer in self.peers.items() if peer.runs}

    def _seen(self, device: str) -> set[str]:
        peer = self.peers[device]
        if not peer.runs:
            text = f"the peer on {device} ended: {peer.log()[-2000:]}"
            if peer.process.returncode == USAGE:
                raise ScenarioError(f"device.{device}.options: {text}")
            raise LabError(text)
        if peer.port is None:
            return set()
        try:
            return self.names(device)
        except AskError:
            return set()

    def names(self, device: str) -> set[str]:
        """Who is here, as the peer of a device sees it; raises as :meth:`ask`."""
        return {one["name"] for one in self.view(device)}

    def view(self, device: str) -> list[dict[str, Any]]:
        """Who is here, and what the peer of a device knows of them; raises as :meth:`ask`."""
        found = self._question(device, {"task": "peers", "timeout_s": 5.0})
        seen: list[dict[str, Any]] = found["peers"]
        return seen

    # --- asking -----------------------------------------------------------------------------------

    def ask(self, request: Request) -> dict[str, Any]:
        """One answer: ``wall_s``, ``planned``, ``report`` and what the task gives.

        Raises:
            AskError: the mesh answered with an error, or not in time.
        """
        return self._question(
            request.device,
            {
                "task": request.task,
                "model": request.model,
                "text": request.text,
                "image": request.image,
                "tokens": request.tokens,
                "options": request.arguments(),
                "timeout_s": request.timeout_s,
            },
        )

    def _question(self, device: str, document: dict[str, Any]) -> dict[str, Any]:
        port = self.peers[device].port if device in self.peers else None
        if port is None:
            raise AskError("no-peer", f"no peer runs on {device}")
        return self._asker(device).ask({**document, "port": port})

    def _asker(self, device: str) -> Asker:
        with self._asker_lock:
            if device not in self._askers:
                process = self._start_asker(device)
                self._askers[device] = process, Asker(process)
            return self._askers[device][1]

    def _start_asker(self, device: str) -> subprocess.Popen[str]:
        with (self.device_folder(device) / "log").open("ab") as log:
            return self.lan.popen(
                device,
                [*self.python, "-m", "tools.lab.asker"],
                env=environment_of(self, device),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def cli(self, device: str, *argv: str, timeout_s: float = CLI_S) -> list[Any]:
        """Run `astra-mesh ARGV --json` on a device: the documents that it prints.

        Raises:
            LabError: it failed; with its messages and the peers' logs.
            subprocess.TimeoutExpired: it took longer.
        """
        done = self.lan.run(
            device,
            [*self.python, "-m", "astra_mesh", *argv, "--json"],
            env=environment_of(self, device),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode != 0:
            raise LabError(f"astra-mesh {argv[0]}: {done.stderr}\n{self.log_text()}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]

    # --- changing ---------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Do what an event says, now. LabError if it cannot be done."""
        queue_ms = self.scenario.network.queue_ms
        if isinstance(event, SetMedium):
            self.lan.set_medium(mbps_of(event.mbps), queue_ms=queue_ms)
        elif isinstance(event, SetRate):
            up, down = mbps_of(event.up_mbps), mbps_of(event.down_mbps)
            self.lan.set_rates(event.device, up, down, queue_ms=queue_ms)
        elif isinstance(event, SetLoss):
            self.lan.set_loss(event.device, event.percent)
        elif isinstance(event, SetDelay):
            self.lan.set_delay(event.device, event.delay_ms, event.jitter_ms)
        elif isinstance(event, Unplug):
            self.lan.unplug(event.device)
        elif isinstance(event, Plug):
            self.lan.plug(event.device)
        elif isinstance(event, Start):
            self.start(event.device)
        else:
            self._signal(event)

    def start_namesake(self, device: str) -> None:
        """Start a second peer on a device, with the name of the first."""
        argv = [*self.python, "-m", "astra_mesh", "peer", "--name", device, "--no-api"]
        argv += [
            "--stop-with-stdin",
            "--no-preload",
            *(x for name in self.scenario.offer for x in ("--model", name)),
        ]
        argv += self.scenario.devices[device].options
        self._namesakes[device] = self.popen(
            device, argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def stop_namesake(self, device: str) -> None:
        """End that again, with a goodbye."""
        process = self._namesakes.pop(device)
        process.send_signal(signal.SIGTERM)
        process.wait(LEAVE_S)

    def forget(self, device: str) -> None:
        """Remove all that a device's peer knows, its identity too; it must not run."""
        shutil.rmtree(self.device_folder(device) / "home", ignore_errors=True)

    def _signal(self, event: Kill | Leave | Pause | Go) -> None:
        peer = self.peers.get(event.device)
        if peer is None or not peer.runs:
            raise LabError(f"no peer runs on {event.device}")
        with suppress(ProcessLookupError):  # it is ending by itself
            if isinstance(event, Pause):
                peer.halt()
            elif isinstance(event, Go):
                peer.go_on()
        if isinstance(event, Kill | Leave):
            peer.process.send_signal(signal.SIGKILL if isinstance(event, Kill) else signal.SIGTERM)
            peer.wait(LEAVE_S)

    # --- looking ----------------------------------------------------------------------------------

    def usage(self) -> dict[str, cpu.Usage]:
        """What the devices with a quota used."""
        return {device: group.usage() for device, group in self._groups.items()}

    def logs(self) -> dict[str, str]:
        """The end of each peer's log."""
        return {device: peer.log() for device, peer in self.peers.items()}

    def log_text(self) -> str:
        """The logs as one text."""
        return "\n".join(f"--- {device}\n{log}" for device, log in self.logs().items())


def _counts(seen: dict[str, set[str]], wanted: set[str]) -> str:
    others = len(wanted) - 1
    if not others:
        return f"{min(wanted)} is not ready"
    return ", ".join(
        f"{device} sees {len(names & wanted - {device})} of {others}"
        for device, names in seen.items()
    )


def sweep() -> list[str]:
    """Removes what killed laboratories left, with the processes in it; returns the names.

    Raises:
        LabUnavailableError: this machine or user can have no laboratory.
    """
    network.require_lab()
    names = [*network.sweep(), *cpu.sweep()]
    for folder in orphans(Path(tempfile.gettempdir())):
        if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)
            names.append(folder.name)
    return names
