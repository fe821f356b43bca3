"""What ``astra-mesh doctor`` looks at: each check says how it is, and what to do."""

from __future__ import annotations

import asyncio
import enum
import importlib.metadata
import logging
import os
import platform
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from astra_mesh import limits
from astra_mesh._version import __version__
from astra_mesh.client.addresses import DEFAULT_PORT
from astra_mesh.client.clocks import compare
from astra_mesh.client.keys import mend_modes
from astra_mesh.client.reach import Reach, who_answers
from astra_mesh.errors import AstraMeshError, PortInUseError
from astra_mesh.mesh import discovery
from astra_mesh.mesh.connect import Address, forgotten, over, show_address
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.identity import DEVICE_FILE_NAME
from astra_mesh.mesh.interfaces import Outside, is_loopback, outside
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.listening import close_all, listen
from astra_mesh.mesh.trust import Trust, trust_folder
from astra_mesh.naming import Names, device_name
from astra_mesh.peer.local import LocalPeer, local_peers
from astra_mesh.wire.messages import DeviceId, PeerId

PACKAGES: Final = ("torch", "aiohttp", "cryptography", "zeroconf", "msgspec", "msgpack", "uvloop")
_BORN: Final = 1_735_689_600  # 2025: a clock before it was never set
_MULTICAST_S: Final = 5.0
_OTHERS_S: Final = 1.5  # they answer within 0.12 s (RFC 6762, 6), and are looked up then
_PAIRS: Final = 15  # of products that are compared: 0.05 s on a laptop
_FASTER: Final = 4 / 3  # less is not noticed
_MUCH_SLOWER: Final = 0.4  # the processor lacks it: then 1/5 and less
_SHOWN: Final = 6  # addresses, or interfaces
_LOW_MEMORY: Final = 512 * limits.MIB
_FIREWALLS: Final = {
    "ufw": (Path("/etc/ufw/ufw.conf"), "ENABLED=yes", f"ufw allow {DEFAULT_PORT}/tcp"),
    "firewalld": (
        Path("/run/firewalld/pid"),
        "",
        f"firewall-cmd --add-port={DEFAULT_PORT}/tcp --add-service=mdns",
    ),
}

T = TypeVar("T")


class Level(enum.Enum):
    """How a check came out."""

    FINE = "fine"
    NOTE = "note"  # works, with less than it could
    BAD = "bad"  # something will not work


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    level: Level
    text: str


async def examine(tell: Callable[[Finding], None], state: Path | None = None) -> list[Finding]:
    """All checks, one after the other; ``tell`` hears of each at once.

    Args:
        tell: Takes each finding.
        state: A state folder of peers that do not run (those of others are known).
    """
    found: list[Finding] = []
    with _quiet(discovery.log):
        for check in (_versions, _clock, _interfaces, _multicast, _port, _firewall):
            found += await _guarded(check, tell)
        found += await _guarded(_keys, tell, state)
        found += await _guarded(_pairing, tell)
        found += await _guarded(_numbers, tell)
        found += await _guarded(_memory, tell)
        found += await _guarded(_members, tell)
    return found


@contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    """Without warnings: the findings say the same, once."""
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


async def _guarded(
    check: Callable[..., Awaitable[list[Finding]]],
    tell: Callable[[Finding], None],
    *given: object,
) -> list[Finding]:
    try:
        found = await check(*given)
    except AstraMeshError as error:
        found = [_bad(check.__name__.strip("_"), error.message)]
    for one in found:
        tell(one)
    return found


def _fine(name: str, text: str) -> Finding:
    return Finding(name, Level.FINE, text)


def _note(name: str, text: str) -> Finding:
    return Finding(name, Level.NOTE, text)


def _bad(name: str, text: str) -> Finding:
    return Finding(name, Level.BAD, text)


# --- this machine ---------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """What is installed."""
    found = {"astra-mesh": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


async def _versions() -> list[Finding]:
    text = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [_fine("versions", f"{text}; {platform.system()} {platform.machine()}")]


async def _clock() -> list[Finding]:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
    if now < _BORN:
        text = f"it says {shown}: memberships for a limited time and join keys do not end as meant"
        return [_note("clock", f"{text}. Set it, or let the board ask a time server")]
    return [_fine("clock", f"{shown}: set")]


async def _interfaces() -> list[Finding]:
    return [networks(outside())]


def networks(found: Mapping[str, Outside]) -> Finding:
    """What the interfaces are connected to. An address stays where the cable is pulled."""
    here = [ip for one in found.values() if one.connected for ip in one.addresses]
    idle = {name: one for name, one in found.items() if not one.connected}
    shown = ", ".join(str(ip) for ip in here[:_SHOWN])
    if here:
        also = f"; not connected: {', '.join(list(idle)[:_SHOWN])}" if idle else ""
        return _fine("interfaces", f"{shown}{also}")
    text = "this machine is in no network"
    if not idle:
        return _bad("interfaces", f"{text}; join the Wi-Fi of the others")
    why = [_why_idle(name, one) for name, one in list(idle.items())[:_SHOWN]]
    return _bad("interfaces", f"{text}: {'; '.join(why)}")


def _why_idle(name: str, one: Outside) -> str:
    address = f"{name} has the address {one.addresses[0]}"
    if not one.is_up:
        return f"{address} but is switched off (`ip link set {name} up` as root switches it on)"
    return f"{address} but is not connected: plug in its cable, or join the Wi-Fi of the others"


async def _multicast() -> list[Finding]:
    """Whether an announcement of this machine comes back to it, whom else it hears, and whether
    the peers that run here look for others.
    """
    one, two = (PeerId(secrets.token_hex(32)) for _ in range(2))
    own, heard = asyncio.Event(), set[PeerId]()

    def on_found(peer: PeerId, name: str, addresses: list[Address]) -> None:
        heard.add(peer)
        if peer == one:
            own.set()

    speaker = Discovery(one, "doctor", 9, on_found=lambda *_: None, on_gone=lambda peer: None)
    listener = Discovery(two, "doctor", None, on_found=on_found, on_gone=lambda peer: None)
    tasks = [asyncio.create_task(each.run()) for each in (listener, speaker)]
    try:
        async with asyncio.timeout(_MULTICAST_S):
            await own.wait()
        if listener.problem is None:
            await asyncio.sleep(_OTHERS_S)
    except TimeoutError:
        why = speaker.problem or listener.problem or "its own announcement did not come back"
        text = (
            f"does not work here ({why}); pair by address, which is kept: astra-mesh pair CODE "
            "--at HOST:PORT"
        )
        return [_note("multicast", text)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    peers = await asyncio.to_thread(local_peers)
    others = len(heard - {one} - {peer.id for peer in peers})
    if listener.problem is not None:
        text = f"this machine hears itself and nobody else: {listener.problem}"
        return [_note("multicast", text), *map(searching, peers)]
    return [_fine("multicast", heard_of(others)), *map(searching, peers)]


def heard_of(others: int) -> str:
    """What was heard, and what that proves."""
    if others:
        return f"this machine hears itself and {others} peer{'s' * (others > 1)} of other devices"
    return (
        "this machine hears its own announcements, and no other device's: whether the network "
        "carries them shows once a peer runs on another one"
    )


def searching(peer: LocalPeer) -> Finding:
    """Whether a peer that runs here looks for others, as it says itself."""
    if peer.problem is None:
        text = (
            f"the peer {peer.name} has just started and does not know yet whether it finds others"
        )
        return _note("discovery", f"{text}: ask again in some seconds")
    if peer.problem:
        text = f"the peer {peer.name} finds no others by itself: {peer.problem}"
        return _note("discovery", text)
    return _fine("discovery", f"the peer {peer.name} looks for others")


async def _port() -> list[Finding]:
    peers = await asyncio.to_thread(local_peers)
    if peers:
        ports = ", ".join(_listens_on(peer) for peer in peers)
        text = f"a peer of this user listens on {ports}"
        if all(is_loopback(peer.listen) for peer in peers):
            return [_note("port", f"{text}, where no other device reaches it (--listen)")]
        return [_fine("port", text)]
    try:
        close_all(await listen(None, DEFAULT_PORT))
    except PortInUseError:
        text = f"{DEFAULT_PORT} is taken by another program; a peer will take any other one"
        return [_note("port", text)]
    return [_fine("port", f"{DEFAULT_PORT} is free")]


def _listens_on(peer: LocalPeer) -> str:
    return show_address((peer.listen, peer.port)) if peer.listen else str(peer.port)


async def _firewall() -> list[Finding]:
    found = await asyncio.to_thread(_active_firewalls)
    if not found:
        return [_fine("firewall", "none of those known here is active")]
    text = "; ".join(f"{name} is active: `{command}` lets peers in" for name, command in found)
    return [_note("firewall", text)]


def _active_firewalls() -> list[tuple[str, str]]:
    found = []
    for name, (path, sign, command) in _FIREWALLS.items():
        with suppress(OSError):
            if sign in path.read_text(errors="replace"):
                found.append((name, command))
    return found


async def _keys(state: Path | None = None) -> list[Finding]:
    return await asyncio.to_thread(_look_at_keys, state)


def _look_at_keys(state: Path | None = None) -> list[Finding]:
    chosen = [Path(peer.state) for peer in local_peers() if peer.state]
    modes = mend_modes([*chosen, *([state] if state else [])])  # before loading, which mends too
    found = [_bad("keys", text) for text in modes.failed]
    if modes.mended:
        advice = "If others use this machine, delete the keys and pair anew: they may have copies"
        found.append(_note("keys", f"{'; '.join(modes.mended)}. {advice}"))
    found += [_note("keys", text) for text in modes.noted]
    trust = Trust.open()
    key = trust.folder / DEVICE_FILE_NAME
    mode, owner = (status := key.stat()).st_mode & 0o777, status.st_uid
    if os.name == "posix" and (mode & 0o077 or owner != os.getuid()):
        found.append(_bad("keys", f"{key} has mode {mode:04o}: `chmod 600` it, and pair anew"))
    text = f"only this user can read {key}; device {trust.device.id[:8]}"
    return found or [_fine("keys", text)]


async def _pairing() -> list[Finding]:
    return await asyncio.to_thread(_look_at_invitations)


def _look_at_invitations() -> list[Finding]:
    """Whether what is open to pairing can be read."""
    folder = trust_folder()
    if not folder.is_dir():  # why stands at the keys
        return []
    ways_in = Invitations(folder).still_open()
    text = f"{len(ways_in)} open: astra-mesh pair --list" if ways_in else "nothing is open"
    return [_fine("pairing", text)]


async def _numbers() -> list[Finding]:
    return await asyncio.to_thread(_time_formats)


def _time_formats() -> list[Finding]:
    """How fast products are in each number format, relative to fp32."""
    import torch

    plain, kinds = torch.ones(256, 256), {}
    for name in ("bfloat16", "float16"):
        with suppress(RuntimeError):
            kinds[name] = speed_beside(plain, plain.to(getattr(torch, name)), _timed)
    text = ", ".join(f"{name} {about(ratio)}" for name, ratio in kinds.items())
    kind = torch.backends.cpu.get_cpu_capability()  # type: ignore[no-untyped-call, unused-ignore]
    return [_fine("number formats", f"{kind}; products beside those of float32: {text}")]


def speed_beside(plain: T, other: T, timed: Callable[[T], float]) -> float:
    """How many times as fast one thing is as a plain one: the median of pairs in turns, so that
    what else the machine does hits both. The first of each is not counted.
    """
    ratios = [timed(plain) / timed(other) for _ in range(_PAIRS + 1)]
    return statistics.median(ratios[1:])


def about(ratio: float) -> str:
    """Whether a format pays. Digits are noise: on a busy machine they differ by a third."""
    if ratio > _FASTER:
        return "faster"
    return "no faster" if ratio > _MUCH_SLOWER else "much slower"


def _timed(a: object) -> float:
    began = time.perf_counter()
    a @ a  # type: ignore[operator]
    return time.perf_counter() - began


async def _memory() -> list[Finding]:
    free = await asyncio.to_thread(free_bytes)
    if free is None:
        return [_note("memory", "cannot be read on this system")]
    text = f"{free / limits.MIB:,.0f} MiB free"
    if free < _LOW_MEMORY:
        return [_note("memory", f"{text}: larger models will not fit; close other programs")]
    return [_fine("memory", text)]


def free_bytes() -> int | None:
    """Memory that programs can still get; None where the system does not say."""
    if sys.platform != "linux":
        return None
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


# --- the others -----------------------------------------------------------------------------------


async def _members() -> list[Finding]:
    """Whether every device of the mesh answers: where it announces itself, where it was paired by
    address, or where a peer of this machine has a link to it. And how their clocks go.
    """
    trust = await asyncio.to_thread(Trust.open)
    others = {key: entry.name for key, entry in trust.members().items() if key != trust.device.id}
    if others and trust.book.ended:
        return [_bad("devices", over(trust.book.ended))]
    if not others:
        return [_note("devices", "this device is paired with no other: astra-mesh pair")]
    reach = await who_answers(trust)
    others = {key: device_name(name, reach.names.get(key, ())) for key, name in others.items()}
    names = Names({str(device): name for device, name in others.items()})
    ahead = {names(key): one.ahead_s for key, one in reach.answered.items() if key in others}
    return [*reached(others, reach), clocks(ahead)]


def reached(others: Mapping[DeviceId, str], reach: Reach) -> list[Finding]:
    """How each device of the mesh answered: one that is off is no fault while another answers."""
    there, found = reach.answered, []
    for device, name in others.items():
        shown = f"{name} ({device[:8]})"
        if device in there:
            after_ms = 1000 * there[device].after_s
            found.append(_fine("devices", f"{shown} answers after {after_ms:.0f} ms"))
        elif device in reach.ended:
            found.append(_bad("devices", forgotten(shown)))
        else:
            silent = _note if there.keys() & others.keys() else _bad
            found.append(silent("devices", f"{shown} does not answer: {why_silent(outside())}"))
    return found


def why_silent(found: Mapping[str, Outside]) -> str:
    """What to look at where a device does not answer."""
    if not any(one.connected for one in found.values()):
        return "this machine is in no network"  # what to do stands at the interfaces
    return (
        "is `astra-mesh peer` running there, in this network? Where multicast is dropped, pair by "
        "address once: astra-mesh pair CODE --at HOST:PORT"
    )


def clocks(ahead: Mapping[str, float | None]) -> Finding:
    """Whether this device's clock goes as those of others, by how much theirs are ahead."""
    alike, text = compare({name: by for name, by in ahead.items() if by is not None})
    return _fine("clocks", text) if alike else _note("clocks", text)
