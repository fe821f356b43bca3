"""Ctrl-C ends a command soon, and what it kept is said."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from astra_mesh.cli import ending
from astra_mesh.cli.ending import ending_soon, telling


def test_who_ends_in_order_is_left_to_it() -> None:
    left: list[int] = []
    with pytest.raises(KeyboardInterrupt), ending_soon(left.append):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not left


def test_who_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_ORDERLY_S", 0.0)
    over = threading.Event()
    left: list[int] = []

    def leave(status: int) -> None:
        left.append(status)
        over.set()

    with ending_soon(leave):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert over.wait(10.0)  # an import in a thread goes on meanwhile, say
    assert left == [130]


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_what_is_kept_is_said(
    error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error), telling(lambda: "what came is kept"):
        raise error
    with pytest.raises(error), telling(lambda: ""):
        raise error
    with pytest.raises(ValueError, match="other"), telling(lambda: "never"):
        raise ValueError("other")
    assert capsys.readouterr().err == "what came is kept\n"
