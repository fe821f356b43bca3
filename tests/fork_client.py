"""Stands for a process of fork_server.py: hands it its descriptors and passes signals on."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(path: str, *arguments: str) -> int:
    """Runs a program to its end and returns its status."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    asked = json.dumps([arguments, dict(os.environ), str(Path.cwd())]).encode()
    network = os.open("/proc/self/ns/net", os.O_RDONLY)  # it may have been led into one
    socket.send_fds(server, [len(asked).to_bytes(8)], [0, 1, 2, network])
    server.sendall(asked)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # they are the program's now, which may close them
        os.dup2(nowhere, number)
    said = server.makefile("rb")
    pid = int(said.readline())

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    return int(said.readline())


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    if status < 0:
        if -status in PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
