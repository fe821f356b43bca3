"""What a run of the laboratory leaves: one JSON document. docs/lab.md describes it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from astra_mesh._version import __version__
from tools.lab.house import House
from tools.lab.system import LabError

FORMAT = 1  # of the document
SETTLE_S = 2.0  # for the others' files: they are written when the answer is out
LOOK_S = 0.05


def versions() -> dict[str, str]:
    """Of what computes."""
    packages = ("torch", "numpy", "aiohttp", "msgspec")
    found = {name: importlib.metadata.version(name) for name in packages}
    about = {"astra_mesh": __version__, "python": platform.python_version()}
    return {**about, **found, "kernel": platform.release()}


def machine() -> dict[str, Any]:
    """What the laboratory runs on, and how busy it is now."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()


def devices(house: House) -> dict[str, Any]:
    """What each device did in all: CPU and traffic since it was made."""
    usage = house.usage()
    found: dict[str, Any] = {}
    for device in house.scenario.devices:
        one: dict[str, Any] = dict(house.lan.traffic(device))
        if device in usage:
            used = usage[device]
            one |= {"cpu_s": used.used_s, "throttled_s": round(used.throttled_s, 3)}
        found[device] = one
    return found


def attach_timelines(house: House, requests: list[dict[str, Any]], zero: float) -> None:
    """Give each request its ``attempts``: one for each plan that was tried, normally one.

    Args:
        house: whose peers wrote down the times of their blocks.
        requests: with ``from``, ``began_s`` and ``wall_s``.
        zero: what these times are relative to, monotonic seconds.
    """
    deadline = time.monotonic() + SETTLE_S
    files: dict[str, dict[str, Any]] = {}
    while True:
        _read_files(house, files)
        for request in requests:
            found = [same for same in files.values() if _is_of(same, request, zero)]
            request["attempts"] = [_attempt(same, zero) for same in found]
        whole = all(len(same) == _holders(same) for same in files.values())
        if whole and all("error" in one or one["attempts"] for one in requests):
            return
        if time.monotonic() > deadline:
            return
        time.sleep(LOOK_S)


def _read_files(house: House, found: dict[str, dict[str, Any]]) -> None:
    """What is new, by request id and device."""
    for device in house.scenario.devices:
        for path in sorted((house.folder / device / "record").glob("[0-9a-f]*.json")):
            if device not in found.setdefault(path.stem, {}):
                found[path.stem][device] = json.loads(path.read_text())


def _holders(same: dict[str, Any]) -> int:
    """Peers that have tokens of a request."""
    return sum(first < stop for first, stop in next(iter(same.values()))["bounds"])


def _is_of(same: dict[str, Any], request: dict[str, Any], zero: float) -> bool:
    """Whether the peer that was asked began it while the request ran."""
    own = same.get(request["from"])
    if own is None or not own["answering"]:
        return False
    began_s = own["began_ns"] / 1e9 - zero
    return bool(request["began_s"] <= began_s <= request["began_s"] + request["wall_s"])


def _attempt(same: dict[str, Any], zero: float) -> dict[str, Any]:
    """All peers' times on one clock, ns after the first of them began."""
    start = min(one["began_ns"] for one in same.values())
    ordered = sorted(same.items(), key=lambda item: item[1]["shard"])
    names = {one["shard"]: device for device, one in ordered}
    return {
        "request": next(iter(same.values()))["request"],
        "began_s": round(start / 1e9 - zero, 6),
        "peers": [_shifted(device, one, one["began_ns"] - start, names) for device, one in ordered],
    }


def _shifted(device: str, one: dict[str, Any], by: int, names: dict[int, str]) -> dict[str, Any]:
    first, stop = one["bounds"][one["shard"]]
    return {
        "device": device,
        "shard": one["shard"],
        "tokens": [first, stop],
        "began_ns": by,
        "blocks": [_shift_block(block, by, names) for block in one["blocks"]],
    }


def _shift_block(block: dict[str, Any], by: int, names: dict[int, str]) -> dict[str, Any]:
    shifted = {k: v + by for k, v in block.items() if k.endswith("_ns")}
    parts = [
        {"from": names.get(int(shard), shard)} | {k: v + by for k, v in times.items()}
        for shard, times in sorted(block.get("parts", {}).items(), key=lambda item: int(item[0]))
    ]
    return {"block": block["block"], **shifted, **({"parts": parts} if parts else {})}


def write(document: dict[str, Any], path: Path) -> None:
    """Write a result, whole or not at all; LabError if that fails."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        beside.replace(path)
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror or error}") from error
