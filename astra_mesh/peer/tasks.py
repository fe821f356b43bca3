"""The one place where the tasks of a peer are made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

log = logging.getLogger(__name__)

P = ParamSpec("P")

Work = Callable[P, Coroutine[Any, Any, None]]


def start(
    group: asyncio.TaskGroup, name: str, work: Work[P], *args: P.args, **kwargs: P.kwargs
) -> asyncio.Task[None]:
    """A task of ``group`` that cannot bring the others down: its errors are logged and end it."""
    return group.create_task(_guarded(name, work, *args, **kwargs), name=name)


def start_main(name: str, work: Work[P], *args: P.args, **kwargs: P.kwargs) -> asyncio.Task[None]:
    """A task of its own, for whoever keeps, cancels and awaits it."""
    return asyncio.create_task(work(*args, **kwargs), name=name)


async def _guarded(name: str, work: Work[P], *args: P.args, **kwargs: P.kwargs) -> None:
    try:
        await work(*args, **kwargs)
    except Exception:
        log.exception("%s ended by an error of this peer", name)
