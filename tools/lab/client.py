"""Questions to a program on a device, from any thread: one line of JSON there, one back.

The program is :mod:`tools.lab.asker`, which asks the device's peer, or one that answers likewise:
the question's ``id`` comes back with the answer, or with an ``error``.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from tools.lab.system import LabError

SLACK_S = 10.0  # beyond a question's own deadline: the program's start, a busy machine


class AskError(LabError):
    """A question that was not answered; ``code`` as in docs/protocol.md."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Asker:
    """One running program. Whoever started the process ends it; then ``join``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._ids = itertools.count()
        self._open: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="lab-asker", daemon=True)
        self._reader.start()

    def ask(self, document: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question.

        Raises:
            AskError: it answered with an error, did not answer in ``timeout_s``, or is gone.
        """
        number, future = next(self._ids), Future[dict[str, Any]]()
        with self._lock:
            self._open[number] = future
            try:
                self._write({"id": number, **document})
            except OSError as error:
                raise AskError("asker", f"the program on the device is gone: {error}") from error
        try:
            found = future.result(document["timeout_s"] + SLACK_S)
        except TimeoutError:
            raise AskError("asker", "the program on the device does not answer") from None
        if "error" in found:
            raise AskError(found["error"]["code"], found["error"]["message"])
        return found

    def _write(self, document: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(document) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError, OSError):  # closed by the owner
            for line in self._process.stdout:
                found = json.loads(line)
                with self._lock:
                    future = self._open.pop(found.pop("id"))
                future.set_result(found)
        with self._lock:
            for future in self._open.values():
                future.set_exception(AskError("asker", "the program on the device is gone"))

    def join(self) -> None:
        """Wait for the thread; the process has ended."""
        self._reader.join()
