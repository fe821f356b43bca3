"""The one thread in which torch works, so that the event loop never waits for arithmetic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class ComputeThread:
    """Runs functions one after the other in one thread, without gradients.

    Cancelling a call drops its result; the function itself runs to its end in the thread.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="astra-mesh-compute")

    async def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result; its exceptions are raised here."""
        return await self.submit(function, *args, **kwargs)

    def submit(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]:
        """Queue a function behind those that wait already."""
        work = partial(_without_gradients, function, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    def post(self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """The same for a function that raises nothing and whose end nobody waits for: the event
        loop is not woken by it."""
        self._pool.submit(partial(_without_gradients, function, *args, **kwargs))

    def close(self) -> None:
        """Let the running function end and stop the thread; queued ones are dropped, so that
        pipelines end first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _without_gradients(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    with torch.inference_mode():
        return function(*args, **kwargs)
