"""Finding peers by multicast DNS: announces this one, and tells who else is announced.

Everything that arrives is hostile: names and addresses are checked, tables are bounded, and without
multicast the peer goes on with typed addresses.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Final

from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, NotRunningException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from astra_mesh import limits
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.interfaces import (
    IPAddress,
    connected_interfaces,
    has_network,
    multicast_interfaces,
    own_addresses,
)
from astra_mesh.mesh.multicast_log import keep_short
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import PROTOCOL_VERSION, PeerId

log = logging.getLogger(__name__)

SERVICE: Final = "_astra-mesh._tcp.local."
_PEER_ID: Final = re.compile(r"[0-9a-f]{64}")
_NOT_IN_LABEL: Final = re.compile(r"[^A-Za-z0-9 _-]+")
_LABEL_CHARS: Final = 48  # of 63, with the id's first digits behind
_RESOLVERS: Final = 4  # names that are looked up at the same time
_START_S: Final = 3.0  # for its sockets: milliseconds, or they will never do
_LEAVE_S: Final = 1.0  # for the goodbyes
_LABEL_BYTES: Final = 63  # RFC 1035, 2.3.4
_NO_NETWORK: Final = "this machine is in no network"
_ODD_NAMES: Final = 16  # that are warned of: anybody in the network can announce any number

OnFound = Callable[[PeerId, str, list[Address]], None]
OnGone = Callable[[PeerId], None]
Addresses = Callable[[], list[IPAddress]]
Connected = Callable[[], frozenset[str]]


class Discovery:
    """Announces a peer and watches the announcements of others while :meth:`run` runs.

    Args:
        peer: Id of this peer; its own announcements are not reported.
        name: For people.
        port: Where this peer listens; None to watch only.
        on_found: Called with id, name and addresses, again when they change. Must not block.
        on_gone: Called when a peer withdraws its announcement, or it runs out.
        addresses: Lists this machine's addresses (replaced in tests).
        connected: Names the interfaces whose cable or Wi-Fi is connected (replaced in tests).
        has_network: Whether there is an interface to other machines (replaced in tests).
        poll_s: How often both are looked at, seconds.
        renew_s: How often the announcement is made again, seconds: whoever was not there when it
            was made last would learn of it by its own questions only, which become rare.
        pause_s: After an error of its own, before it starts again, seconds.
    """

    def __init__(
        self,
        peer: PeerId,
        name: str,
        port: int | None,
        *,
        on_found: OnFound,
        on_gone: OnGone,
        addresses: Addresses = own_addresses,
        connected: Connected = connected_interfaces,
        has_network: Callable[[], bool] = has_network,
        poll_s: float = limits.INTERFACE_POLL_S,
        renew_s: float = limits.ANNOUNCE_S,
        pause_s: float = limits.DISCOVERY_PAUSE_S,
    ) -> None:
        keep_short()
        self.problem: str | None = None  # why multicast does not work, for people
        self.has_tried = False  # until then that there is no problem says nothing
        self._peer = peer
        self._name = sanitise(name, limits.NAME_CHARS)
        self._port = port
        self._on_found = on_found
        self._on_gone = on_gone
        self._addresses, self._connected = addresses, connected
        self._has_network = has_network
        self._poll_s, self._renew_s, self._pause_s = poll_s, renew_s, pause_s
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._service: AsyncServiceInfo | None = None  # as announced
        self._own: set[str] = set()
        self._known: dict[str, PeerId] = {}  # instance name -> who announced it
        self._pending: dict[str, None] = {}  # names to look up, oldest first
        self._work = asyncio.Event()
        self._warned: set[str] = set()  # names whose version or records were complained about
        self._odd = 0  # names that no peer has
        self._error = ""  # of its own, that was logged last

    async def run(self) -> None:
        """Announce and watch until cancelled; then withdraw the announcement (goodbye). After an
        error of its own it starts again.
        """
        while True:
            try:
                await self._run()
            except Exception as error:
                problem = f"an error of this peer: {_what(error)}"
                if problem != self._error:
                    log.exception("discovery was ended by an error of this peer, and starts again")
                self.problem = self._error = problem
                self.has_tried = True
            await asyncio.sleep(self._pause_s)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_RESOLVERS):
                    group.create_task(self._resolve())
                await self._follow_interfaces()
        finally:
            await self._close()

    # --- this peer --------------------------------------------------------------------------------

    async def _follow_interfaces(self) -> None:
        """Start anew whenever the machine's addresses change (another Wi-Fi, a cable); announce and
        ask again when an interface is connected again, announce from time to time; try again then
        if it could not start.
        """
        last: list[IPAddress] | None = None
        before, renewed = frozenset[str](), time.monotonic()
        while True:
            current, connected = self._addresses(), self._connected()
            came, before = connected - before, connected
            again = came or time.monotonic() - renewed >= self._renew_s
            if current != last or (again and self._zeroconf is None):
                await self._close()
                await self._open(current)
                last, renewed = current, time.monotonic()
            elif again:
                await self._renew(ask=bool(came))
                renewed = time.monotonic()
            if self._zeroconf is not None:
                self._note_reach()
            self.has_tried = True
            await asyncio.sleep(self._poll_s)

    async def _open(self, addresses: list[IPAddress]) -> None:
        self._own = {str(address) for address in addresses}
        try:
            self._zeroconf = _open_sockets()
            await _started(self._zeroconf)
            self._browser = self._ask(self._zeroconf)
            if self._port is not None:
                info = self._info(self._port, addresses)
                # The name holds digits of the id: no need to probe for others that use it (0.7 s).
                await (
                    await self._zeroconf.async_register_service(info, cooperating_responders=True)
                )
                self._service = info
        except (OSError, ZeroconfError, RuntimeError) as exc:
            self._fail(exc)
            await self._close()

    def _note_reach(self) -> None:
        """It works; but where there is loopback only, or the cable is out, it reaches nobody."""
        alone = not self._has_network()
        if alone and self.problem != _NO_NETWORK:
            log.warning(
                "%s, so no other device can be found: join the Wi-Fi of the others, or plug in a "
                "cable",
                _NO_NETWORK,
            )
        self.problem = _NO_NETWORK if alone else None

    def _ask(self, zeroconf: AsyncZeroconf) -> AsyncServiceBrowser:
        return AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[self._on_change])

    async def _renew(self, *, ask: bool) -> None:
        """Announce this peer once more; with ``ask``, ask for the others once more."""
        zeroconf = self._zeroconf
        if zeroconf is None:
            return
        try:
            if ask and self._browser is not None:
                await self._browser.async_cancel()
                self._browser = self._ask(zeroconf)
            if self._service is not None:
                await (await zeroconf.async_update_service(self._service))
        except (OSError, ZeroconfError, RuntimeError) as exc:
            log.debug("could not announce this peer again: %s", exc)

    def _info(self, port: int, addresses: list[IPAddress]) -> AsyncServiceInfo:
        label = _NOT_IN_LABEL.sub("-", self._name)[:_LABEL_CHARS].strip(" -") or "peer"
        return AsyncServiceInfo(
            SERVICE,
            f"{label}-{self._peer[:8]}.{SERVICE}",
            port=port,
            addresses=[address.packed for address in addresses[: limits.DIAL_ADDRESSES]],
            properties={"id": self._peer, "v": str(PROTOCOL_VERSION), "name": self._name},
            server=f"astra-mesh-{self._peer[:16]}.local.",
        )

    def _fail(self, exc: Exception) -> None:
        problem = str(exc) or type(exc).__name__
        if problem != self.problem:
            log.warning(
                "cannot look for other devices on this network by itself (%s): pair by address "
                "(astra-mesh pair CODE --at HOST:PORT), or name them with --peer HOST:PORT",
                problem,
            )
        self.problem = problem

    async def _close(self) -> None:
        """Withdraw the announcement and close the sockets."""
        zeroconf, self._zeroconf = self._zeroconf, None
        browser, self._browser, self._service = self._browser, None, None
        self._pending.clear()
        if zeroconf is None:
            return
        closed = False
        try:
            if browser is not None:
                await browser.async_cancel()
            async with asyncio.timeout(_LEAVE_S):
                await zeroconf.async_close()
            closed = True
        except (TimeoutError, OSError, ZeroconfError) as exc:
            log.debug("multicast was not closed cleanly: %s", exc)
        finally:
            if not closed:  # the goodbyes were cut short, perhaps by a second cancellation
                zeroconf.zeroconf.close()

    # --- the others -------------------------------------------------------------------------------

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        del zeroconf, service_type
        if state_change is ServiceStateChange.Removed:
            self._pending.pop(name, None)
            self._forget(name)
        elif not is_instance(name):
            self._note_odd(name)
        elif name in self._pending or len(self._pending) < limits.CANDIDATES:
            self._pending[name] = None
            self._work.set()

    def _note_odd(self, name: str) -> None:
        level = logging.WARNING if self._odd < _ODD_NAMES else logging.DEBUG
        self._odd += 1
        log.log(level, "an announcement under a name that no peer has: %s", sanitise(name, 80))

    def _forget(self, name: str) -> None:
        peer = self._known.pop(name, None)
        self._warned.discard(name)
        if peer is not None and peer not in self._known.values():
            self._on_gone(peer)

    async def _resolve(self) -> None:
        """Look up names one after the other."""
        while True:
            while not self._pending or self._zeroconf is None:
                self._work.clear()
                await self._work.wait()
            name = next(iter(self._pending))
            del self._pending[name]
            zeroconf = self._zeroconf.zeroconf
            try:
                info = AsyncServiceInfo(SERVICE, name)
                if info.load_from_cache(zeroconf) or await info.async_request(
                    zeroconf, 1000 * limits.RESOLVE_TIMEOUT_S
                ):
                    self._report(name, info)
            except (OSError, ZeroconfError, RuntimeError) as exc:
                log.debug("cannot look up %s: %s", sanitise(name, 80), sanitise(str(exc), 200))
            except Exception as exc:  # what one stranger announces must not end the search for all
                self._warn(name, f"cannot be looked up ({_what(exc)})")

    def _report(self, name: str, info: AsyncServiceInfo) -> None:
        """Pass on an announcement if it is well-formed and speaks our version."""
        texts = info.decoded_properties
        peer = PeerId(texts.get("id") or "")
        if peer == self._peer:
            return
        if _PEER_ID.fullmatch(peer) is None:
            self._warn(name, "has no valid id")
            return
        if texts.get("v") != str(PROTOCOL_VERSION):
            version = sanitise(texts.get("v") or "?", 8)
            self._warn(name, f"speaks protocol version {version}, this one {PROTOCOL_VERSION}")
            return
        addresses = self._reachable(info)
        if not addresses or (name not in self._known and len(self._known) >= limits.CANDIDATES):
            return
        self._known[name] = peer
        shown = sanitise(texts.get("name") or "", limits.NAME_CHARS)
        self._on_found(peer, shown or peer[:8], addresses)

    def _reachable(self, info: AsyncServiceInfo) -> list[Address]:
        """Its addresses, without those that lead back to this peer (container bridges)."""
        port = info.port
        if not port:
            return []
        hosts = info.parsed_scoped_addresses(IPVersion.All)
        found = [(host, port) for host in hosts if "%" in host or not host.startswith("fe80:")]
        if port == self._port:
            found = [(host, p) for host, p in found if host.partition("%")[0] not in self._own]
        return found[: limits.DIAL_ADDRESSES]

    def _warn(self, name: str, what: str) -> None:
        if name not in self._warned and len(self._warned) < limits.CANDIDATES:
            self._warned.add(name)
            log.warning("the device announced as %s %s: ignored", sanitise(name, 80), what)


def is_instance(name: str) -> bool:
    """Whether a peer may be announced under a name: one printable label in front of the service's.
    Other names are well-formed for DNS, and the library takes some of them for its caller's error.
    """
    label = name.removesuffix(f".{SERVICE}")
    return (
        label != name
        and label.isprintable()
        and "." not in label
        and 0 < len(label.encode(errors="replace")) <= _LABEL_BYTES
    )


def _what(error: Exception) -> str:
    """An error in a few words; of a group the first of it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return sanitise(f"{type(error).__name__}: {error}", 120)


async def _started(zeroconf: AsyncZeroconf) -> None:
    """Wait until its sockets are in use. A browser waits too, but nobody would hear its error.

    Raises:
        OSError: They cannot be used: the interfaces went meanwhile, or are down.
    """
    try:
        await zeroconf.zeroconf.async_wait_for_start(_START_S)
    except NotRunningException as exc:
        raise OSError("no interface takes multicast now") from exc


def _open_sockets() -> AsyncZeroconf:
    interfaces = multicast_interfaces()
    try:
        return AsyncZeroconf(interfaces=interfaces)
    except OSError as exc:
        log.debug("no IPv6 multicast: %s", exc)
        return AsyncZeroconf(interfaces=[name for name in interfaces if isinstance(name, str)])
