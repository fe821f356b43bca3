"""A machine whose only interface is loopback, or whose cable is out: a namespace of the kernel."""

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


UNPLUG = """
import asyncio, json, logging, subprocess, sys
from astra_mesh.client import checks
from astra_mesh.mesh.discovery import Discovery

logging.basicConfig(format="%(name)s %(message)s")
said = []

async def until(done):
    for _ in range(400):
        if done():
            break
        await asyncio.sleep(0.05)

async def look():
    one = Discovery("a" * 64, "one", 7100, on_found=lambda *_: None, on_gone=lambda _: None,
                    poll_s=0.1, renew_s=0.3)
    assert not one.has_tried
    task = asyncio.create_task(one.run())
    await until(lambda: one.has_tried)
    said.append(one.problem)
    subprocess.run(sys.argv[1].split(), check=True)
    await until(lambda: one.problem)
    await asyncio.sleep(1.0)
    said.append(one.problem)
    said.extend(finding.text for finding in await checks._interfaces())
    subprocess.run(sys.argv[1].replace("down", "up").split(), check=True)
    await until(lambda: one.problem is None)
    said.append(one.problem)
    task.cancel()
    await asyncio.wait([task])

asyncio.run(look())
print(json.dumps(said))
"""
CABLE = (
    "ip link set lo up && ip link add eth0 type veth peer name far0 && "
    "ip link set eth0 addrgenmode none && ip link set far0 addrgenmode none && "
    "ip addr add 10.9.0.1/24 dev eth0 && ip link set eth0 up && ip link set far0 up"
)


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip(8)")
@pytest.mark.parametrize(
    ("what", "text"), [("eth0", "is switched off"), ("far0", "is not connected")]
)
def test_a_cable_that_is_out_is_no_network(what: str, text: str) -> None:
    """Its addresses stay; the peer, `doctor` and the log say it, the log once."""
    program = f"exec {sys.executable} -c '{UNPLUG}' 'ip link set {what} down'"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"{CABLE} && {program}"],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=True,
    )
    before, without, doctor, after = json.loads(done.stdout)
    assert before is None
    assert without == "this machine is in no network"
    assert f"eth0 has the address 10.9.0.1 but {text}" in doctor
    assert after is None
    lines = done.stderr.splitlines()
    assert len([line for line in lines if "no other device can be found" in line]) == 1
    assert len(lines) == 1, "the library says nothing by itself"
