"""Decoding steps of several requests, taken together.

A step of one text reads every weight to multiply one row by it; a step of several reads them once.
While one batch is computed, the others' next steps gather and become the next batch, so nobody
waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.decode import Decoder, step_all
from astra_mesh.limits import BATCHED_STEPS


@dataclass(eq=False)
class _Step:
    """One text's next token. The compute thread fills it in."""

    decoder: Decoder
    done: bool = False
    token: int | None = None
    error: Exception | None = None


class StepQueue:
    """The steps of one model's texts."""

    def __init__(self) -> None:
        self._waiting: list[_Step] = []
        self._turn = asyncio.Lock()

    async def step(self, compute: ComputeThread, decoder: Decoder) -> int | None:
        """As :meth:`Decoder.step`, together with the steps that wait meanwhile.

        Cancelling it takes the step back, unless it is being computed; the others' go on.
        """
        step = _Step(decoder)
        self._waiting.append(step)
        try:
            async with self._turn:
                if step in self._waiting:
                    batch = self._waiting[:BATCHED_STEPS]
                    del self._waiting[: len(batch)]
                    await compute(_run, batch)
                elif not step.done:  # whoever started it was cancelled: the thread ends it first
                    await compute(int)
        finally:
            if step in self._waiting:
                self._waiting.remove(step)
        if step.error is not None:
            raise step.error
        return step.token


def _run(batch: Sequence[_Step]) -> None:
    """In the compute thread. An error is everybody's: who caused it cannot be told."""
    try:
        tokens = step_all([step.decoder for step in batch])
        for step, token in zip(batch, tokens, strict=True):
            step.token = token
    except Exception as error:
        for step in batch:
            step.error = error
    for step in batch:
        step.done = True
