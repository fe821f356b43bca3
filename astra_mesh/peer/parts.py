"""Long work for the compute thread in parts, so that a request waits for one of them at most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from astra_mesh.engine.compute import ComputeThread

T = TypeVar("T")

Parts: TypeAlias = Generator[None, None, T]  # it yields between two parts, and returns the result


@dataclass(frozen=True)
class _Ended(Generic[T]):
    result: T


def whole(parts: Parts[T]) -> T:
    """All parts at once."""
    while True:
        if (ended := _advance(parts)) is not None:
            return ended.result


async def in_turns(
    compute: ComputeThread, parts: Parts[T], between: Callable[[], Awaitable[None]]
) -> T:
    """All parts, each a turn of the compute thread; ``between`` is awaited between two.

    Cancelling it, or an error of ``between``, ends the work after the part that runs.
    """
    while True:
        ended = await compute(_advance, parts)
        if ended is not None:
            return ended.result
        await between()


async def at_once() -> None:
    """Between two parts of what somebody waits for: others may have a turn of the thread."""
    await asyncio.sleep(0)


def _advance(parts: Parts[T]) -> _Ended[T] | None:
    """One part; a future cannot hold the StopIteration that ends a generator."""
    try:
        next(parts)
    except StopIteration as end:
        return _Ended(end.value)
    return None
