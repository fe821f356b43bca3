"""Python programs as processes that need not import torch: forks of one that has done so.

A process of ``astra_mesh`` computes for two seconds before it says its first word, nearly all of it
imports. ``[*python(), "-m", "astra_mesh", ...]`` is such a process without them: another one
with its own signals, descriptors, environment and status, in the network namespace of who asks. Of
what a program imports, how soon, and what imports print, only ``sys.executable`` tells. All forks
have of their server the seed of hashes, umask, limits, ignored signals, control group and other
namespaces, and variables that Python or torch read once (PYTHONWARNINGS, OMP_NUM_THREADS). A module
that uses this asks for the fixture ``forks``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
_sockets: list[str] = []


def python() -> tuple[str, ...]:
    """The words that stand for ``python`` in a command with ``-m`` or ``-c``."""
    if not _sockets:  # this system has no pidfd_open: macOS
        return (sys.executable,)
    return (sys.executable, "-I", "-S", str(HERE / "fork_client.py"), _sockets[-1])


@contextmanager
def serving() -> Iterator[None]:
    """While this lasts, :func:`python` means forks; the first ones wait for the imports."""
    if not hasattr(os, "pidfd_open"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:
        path = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            number = listener.fileno()
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(number)],
                cwd=HERE.parent,
                stdin=subprocess.PIPE,
                pass_fds=[number],
            )
        _sockets.append(path)
        try:
            yield
        finally:
            _sockets.pop()
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
