"""One worker of the baselines: a process on each device, told what to do over standard input.

    python -m tools.bench.baselines.worker --rank 0 --addresses 10.77.0.1:7600,10.77.0.2:7600 \
        --bundle FOLDER --astra FOLDER --threads 1

A line on the standard input of worker ``members`` - 1 (a :class:`Task` in JSON) starts a run; the
answer is one line of JSON with the same ``id`` (:mod:`tools.lab.client` is the other end). Lines
are read once all workers are connected, and one without a variant only asks for that. As in the
mesh the clock runs from the moment at which the inputs are handed to the other members until the
head's output is there; reading the own inputs is not in it, reading them on the others is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.cli.console import run_async
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.families.precision import PRECISIONS, convert
from astra_mesh.memory import give_back
from astra_mesh.peer.precision import pack_if_faster
from tools.bench.baselines.group import Address, Group, GroupError, Traffic
from tools.bench.baselines.run import TAGS_PER_RUN, Baseline, Run, answer
from tools.bench.baselines.variants import SINGLE, make

LINE_BYTES: Final = 4 << 20  # of standard input: a picture in base64
REPORT_TAG: Final = TAGS_PER_RUN - 1


class Task(msgspec.Struct, frozen=True):
    """One run, as it goes to the members. Exactly one of ``tokens`` and ``image`` is set."""

    id: int
    number: int = 0  # no other run of the group has it
    variant: str = ""
    members: int = 1
    tokens: list[int] = []
    image: bytes = b""


class Worker:
    """Runs tasks one after the other."""

    def __init__(self, group: Group, model: Model, processor: ImageProcessor | None, astra: Path):
        self._group, self._model, self._processor = group, model, processor
        self._astra = astra
        self._compute = ComputeThread()
        self._baselines: dict[str, Baseline] = {}

    def close(self) -> None:
        """Stop the compute thread."""
        self._compute.close()

    async def follow(self, leader: int) -> None:
        """Take part in the tasks of one leader until it is gone."""
        turn = 0
        while True:
            try:
                data = await self._group.receive(leader, start_tag(turn))
            except GroupError:
                return
            turn += 1
            task = msgspec.msgpack.decode(data, type=Task)
            inputs = await self._compute(self._read, task)
            run, _ = await self._go(task, inputs)
            report = msgspec.msgpack.encode(self._report(run))
            self._group.send(leader, task.number * TAGS_PER_RUN + REPORT_TAG, report)

    async def lead(self, task: Task, turns: dict[int, int]) -> dict[str, Any]:
        """Start a task on all its members and answer it.

        Args:
            task: on ranks 0 to ``members`` - 1, the last of which is this one.
            turns: tasks that each other worker was given by this one so far; counted up.
        """
        inputs = await self._compute(self._read, task)
        others = range(0 if task.variant == SINGLE else task.members - 1)
        began = time.perf_counter()
        for other in others:
            self._group.send(other, start_tag(turns.get(other, 0)), msgspec.msgpack.encode(task))
            turns[other] = turns.get(other, 0) + 1
        run, row = await self._go(task, inputs)
        assert row is not None
        logits = await self._compute(run.timed, "compute_s", answer, self._model, row)
        seconds = time.perf_counter() - began
        own, reports = self._report(run), list[dict[str, Any]]()
        for other in others:
            tag = task.number * TAGS_PER_RUN + REPORT_TAG
            reports.append(msgspec.msgpack.decode(await self._group.receive(other, tag)))
        return {"seconds": seconds, "best": int(logits.argmax()), "peers": [*reports, own]}

    async def _go(self, task: Task, inputs: ModelInput) -> tuple[Run, Tensor | None]:
        if task.variant not in self._baselines:
            self._baselines[task.variant] = make(task.variant, self._model, self._astra)
        self._group.traffic = Traffic()
        run = Run(self._model, inputs, self._group, task.members, self._compute, number=task.number)
        return run, await self._baselines[task.variant](run)

    def _read(self, task: Task) -> ModelInput:
        if task.image:
            assert self._processor is not None
            return ModelInput(pixels=self._processor(task.image))
        return ModelInput(tokens=torch.tensor(task.tokens, dtype=torch.int64))

    def _report(self, run: Run) -> dict[str, Any]:
        spent = {name: value for name, value in asdict(run.spent).items() if name != "started"}
        traffic = run.group.traffic
        return spent | {"wait_s": traffic.wait_s, "sent_bytes": traffic.sent_bytes}


def start_tag(turn: int) -> int:
    """Of the message that starts a leader's task number ``turn`` on a follower."""
    return (1 << 63) + turn


def task_of(line: bytes) -> Task:
    """The task in a line of JSON: the fields of :class:`Task`, the image in base64."""
    return msgspec.json.decode(line, type=Task)


async def _serve(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    bundle = open_bundle(args.bundle)
    model = build_model(bundle.config, load_weights(bundle))
    convert(model, args.dtype)
    pack_if_faster(model)
    give_back()  # as peers do
    processor = ImageProcessor.from_bundle(bundle) if not model.spec.vocab_size else None
    group = await Group.join(args.rank, addresses_of(args.addresses), patience_s=300.0)
    worker = Worker(group, model, processor, args.astra)
    try:
        async with asyncio.TaskGroup() as tasks:
            for leader in range(args.rank + 1, group.size):
                tasks.create_task(worker.follow(leader))
            await _obey(worker)
            await group.close()
    finally:
        await group.close()
        worker.close()


async def _obey(worker: Worker) -> None:
    """Lines of standard input, until it ends."""
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    turns: dict[int, int] = {}
    while line := await reader.readline():
        task = task_of(line)
        found = await worker.lead(task, turns) if task.variant else {}
        print(json.dumps({"id": task.id, **found}), flush=True)


def addresses_of(text: str) -> Sequence[Address]:
    """Of "host:port,host:port"."""
    pairs = (one.rsplit(":", 1) for one in text.split(","))
    return [(host, int(port)) for host, port in pairs]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--addresses", required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--astra", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=PRECISIONS, default=PRECISIONS[0])
    run_async(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
