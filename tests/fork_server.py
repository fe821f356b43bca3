"""Runs Python programs in forks of a process that has imported what takes them seconds.

:mod:`tests.forks` starts it with a listening socket; fork_client.py asks it. Of each program,
one fork is the program and another one waits for it, and kills it when the client is gone. The
server ends with its standard input.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path

HEAVY = ("torch", "astra_mesh.cli.app", "astra_mesh.peer.peer", "astra_mesh.web.server")
HEAVY_IF_THERE = ("pydantic", "uvloop")
CLONE_NEWNET = 0x40000000


def asked_for(listener: socket.socket) -> list[str]:
    """Waits, and returns what to run in a new process for it; returns ``[]`` at the end."""
    with closing(listener):
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if listener not in ready:
                return []
            asking, _ = listener.accept()
            with closing(asking):
                if os.fork() == 0:
                    listener.close()
                    return _program(asking)


def _program(asking: socket.socket) -> list[str]:
    """In a process of its own, which waits while another one runs what is asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, (*descriptors, network), _, _ = socket.recv_fds(asking, 8, 4)
    with asking.makefile("rb") as stream:
        arguments, environment, folder = json.loads(stream.read(int.from_bytes(head)))
    if (pid := os.fork()) == 0:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(folder)
        _enter(network)
        os.environ.clear()
        os.environ.update(environment)
        importlib.import_module("astra_mesh.families.packed").keep_few_kernels()
        return list(arguments)
    for descriptor in (0, 1, 2, *descriptors, network):
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program and the client hear of Ctrl-C
    ended = os.pidfd_open(pid)
    with suppress(OSError):  # the client is gone
        asking.sendall(b"%d\n" % pid)
        ready, _, _ = select.select([ended, asking.fileno()], [], [])
        if ended in ready:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            asking.sendall(b"%d\n" % status)
    with suppress(ProcessLookupError):  # it ended
        signal.pidfd_send_signal(ended, signal.SIGKILL)
    os._exit(0)


def _enter(network: int) -> None:
    """Into a network namespace, if it is another one: that of a device of a laboratory."""
    same = os.path.samestat(os.fstat(network), Path("/proc/self/ns/net").stat())
    if not same and ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(network)


def run(form: str, *rest: str) -> None:
    """As ``python -m MODULE``, ``python -c CODE`` and ``python FILE`` do."""
    if form == "-m":
        sys.argv = [*rest]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif form == "-c":
        sys.argv = [form, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [form, *rest]
        runpy.run_path(form, run_name="__main__")


if __name__ == "__main__":
    for name in HEAVY:
        importlib.import_module(name)
    for name in HEAVY_IF_THERE:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # the forks share these pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks what became of the forks
    if program := asked_for(socket.socket(fileno=int(sys.argv[1]))):
        run(*program)
