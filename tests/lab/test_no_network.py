"""A machine whose only interface is loopback, as a namespace of the kernel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.timings import patient

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)"),
]

LOOK = """
import asyncio, json
from astra_mesh.mesh.discovery import Discovery

async def look():
    found = []
    one = Discovery("a" * 64, "one", 7100, on_found=lambda *_: None, on_gone=lambda _: None)
    two = Discovery("b" * 64, "two", None, on_found=lambda *a: found.append(a[0]),
                    on_gone=lambda _: None)
    tasks = [asyncio.create_task(each.run()) for each in (one, two)]
    for _ in range(200):
        if one.problem and (found or two.problem != one.problem):
            break
        await asyncio.sleep(0.05)
    print(json.dumps([one.problem, found == ["a" * 64]]))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

asyncio.run(look())
"""


def test_discovery_tells_that_there_is_no_network() -> None:
    command = f"ip link set lo up && exec {sys.executable} -c '{LOOK}'"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=True,
    )
    problem, met = json.loads(done.stdout)
    assert problem == "this machine is in no network"
    assert met, "peers of this machine find each other"
    assert "no other device can be found" in done.stderr
