"""Getting a model from the peers that hold it: in pieces, from all of them at once.

The model's id is a hash over the hashes of its config and weights, so a listing that does not fit
the id is refused before anything else comes. Pieces that came are kept in the staging folder.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from astra_mesh import limits
from astra_mesh.bundle import Bundle
from astra_mesh.bundle.hashing import file_sha256
from astra_mesh.bundle.install import check_room, explained, publish, staging_folder
from astra_mesh.bundle.store import id_of_listed, user_models_path
from astra_mesh.client.holders import Holder, Holders
from astra_mesh.errors import BadBundleError, MeshError
from astra_mesh.mesh.connect import TLS_NAME, show_address
from astra_mesh.peer.share import PATH, Listing, SharedFile, listing_of
from astra_mesh.wire.messages import ModelId

_JOURNAL: Final = ".pieces.json"
_LISTING_BYTES: Final = limits.MIB
_FAILURES: Final = 3  # in a row; then a peer is asked no more
_PAUSE_S: Final = 0.5


class Fetch:
    """One model on its way: :meth:`look`, then :meth:`run`.

    Args:
        holders: Who has it.
        name: What it will be called here; "" for its name over there.
        piece_bytes: Asked for at once.
    """

    def __init__(
        self, holders: Holders, name: str = "", piece_bytes: int = limits.SHARE_PIECE_BYTES
    ) -> None:
        self.holders, self.name = holders, name or holders.name
        self.size_bytes = self.done_bytes = 0
        self._piece = piece_bytes
        self._listing = Listing("", "", [])
        self._folder = Path()
        self._came: dict[str, set[int]] = {}  # SHA-256 -> pieces that are there

    def wanted(self, listing: Listing) -> list[SharedFile]:
        """Those of the listed files that are to come."""
        return listing.files

    async def look(self) -> None:
        """Ask what there is, and what is here already.

        Raises:
            MeshError: No peer gives a listing that fits the model.
            ModelError: The disk is full.
        """
        async with _session() as http:
            self._listing = await self._ask_all(http)
        await asyncio.to_thread(self._prepare)

    async def _ask_all(self, http: aiohttp.ClientSession) -> Listing:
        problems = []
        for holder in self.holders.peers:
            try:
                async with asyncio.timeout(limits.SHARE_PIECE_S):
                    url = _url(holder, self.holders.model)
                    async with http.get(url, **_tls(holder)) as answer:
                        answer.raise_for_status()
                        data = await answer.content.read(_LISTING_BYTES)
                listing = listing_of(data)
                if _id_of(listing) == self.holders.model:
                    return Listing(listing.model, listing.name, self.wanted(listing))
                problems.append(f"{holder.name} lists other files than the model's")
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                problems.append(f"{holder.name}: {_why(error)}")
        raise MeshError(
            f"no peer gives {self.holders.name}: {'; '.join(problems)[:400]}. Look on one of these "
            "devices whether the model is whole (`astra-mesh models`) and its peer runs, then try "
            "again"
        )

    def _prepare(self) -> None:
        self._folder = self.staging()
        self.size_bytes = sum(one.size for one in self._listing.files)
        self._came = self._read_journal()
        self.done_bytes = sum(self._have(one) for one in self._listing.files)
        check_room(self._folder, self.size_bytes - self.done_bytes)

    def staging(self) -> Path:
        """Where the files gather."""
        return staging_folder(self.name)

    def beside_models(self, what: str) -> Path:
        """A folder beside the person's models, as a model's own folder may lie anywhere."""
        folder = user_models_path() / f".{self.holders.model[:16]}-{what}.partial"
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _have(self, file: SharedFile) -> int:
        """Bytes of a file that are here."""
        if (self._folder / file.name).exists():
            return file.size
        if not self._part(file).exists():
            self._came.pop(file.sha256, None)
        came = self._came.get(file.sha256, set())
        return sum(self._bounds(file, piece)[1] for piece in came)

    async def run(self) -> Bundle:
        """Get what is missing, compare it, and put the model in its place.

        Cancelling it keeps what came.

        Raises:
            MeshError: The peers went away before all was there.
            BadBundleError: What they gave is not the model.
            ModelError: The disk is full.
        """
        async with _session() as http:
            for file in sorted(self._listing.files, key=lambda one: one.size):
                if not await asyncio.to_thread(self._is_whole, file):
                    await self._get(http, file)
        return await asyncio.to_thread(self._finish)

    def _is_whole(self, file: SharedFile) -> bool:
        path = self._folder / file.name
        return path.exists() and file_sha256(path) == file.sha256

    async def _get(self, http: aiohttp.ClientSession, file: SharedFile) -> None:
        """One file from all peers; if it is not what it should be, from each alone."""
        await self._get_from(http, file, self.holders.peers)
        if await asyncio.to_thread(self._settle, file):
            return
        gave = []
        for holder in self.holders.peers if len(self.holders.peers) > 1 else ():
            try:
                await self._get_from(http, file, (holder,))
            except MeshError:  # it has not this file, or went away: another one may give it
                await asyncio.to_thread(self._forget, file)
                continue
            if await asyncio.to_thread(self._settle, file):
                return
            gave.append(holder)
        names = ", ".join(holder.name for holder in gave or self.holders.peers)
        raise BadBundleError(
            f"{file.name} as {names} gives it is not the model's: its SHA-256 differs; verify the "
            "model there (`astra-mesh models verify`)"
        )

    async def _get_from(
        self, http: aiohttp.ClientSession, file: SharedFile, holders: Sequence[Holder]
    ) -> None:
        came = self._came.setdefault(file.sha256, set())
        count = -(-file.size // self._piece)
        missing = deque(piece for piece in range(count) if piece not in came)
        with explained(self._folder):
            await asyncio.to_thread(self._part(file).touch)
        problems: dict[Holder, str] = {}
        while missing and len(problems) < len(holders):
            try:
                async with asyncio.TaskGroup() as group:
                    for holder in holders:
                        if holder not in problems:
                            group.create_task(self._take(http, file, holder, missing, problems))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if missing:
            raise MeshError(
                f"{file.name} did not come whole: {'; '.join(problems.values())[:300]}. What came "
                "is kept: run it again to go on"
            )

    async def _take(
        self,
        http: aiohttp.ClientSession,
        file: SharedFile,
        holder: Holder,
        missing: deque[int],
        problems: dict[Holder, str],
    ) -> None:
        """Pieces from one peer, until none is missing or it failed too often."""
        failures = 0
        while missing and failures < _FAILURES:
            piece = missing.popleft()
            first, size = self._bounds(file, piece)
            try:
                data = await _range(http, holder, self.holders.model, file, first, size)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                missing.append(piece)
                failures = _FAILURES if _has_not(error) else failures + 1
                if failures == _FAILURES:
                    problems[holder] = f"{holder.name}: {_why(error)}"
                    return
                await asyncio.sleep(_PAUSE_S * failures)
                continue
            failures = 0
            await asyncio.to_thread(self._keep, file, piece, data)
            self.done_bytes += size

    def _bounds(self, file: SharedFile, piece: int) -> tuple[int, int]:
        """First byte and size of a piece."""
        first = piece * self._piece
        return first, min(self._piece, file.size - first)

    # --- files, in threads ------------------------------------------------------------------------

    def _part(self, file: SharedFile) -> Path:
        return self._folder / f".{file.sha256}.part"

    def _keep(self, file: SharedFile, piece: int, data: bytes) -> None:
        with explained(self._folder), self._part(file).open("r+b") as stream:
            stream.seek(piece * self._piece)
            stream.write(data)
        self._came[file.sha256].add(piece)
        journal = {
            "piece": self._piece,
            "came": {sha: sorted(pieces) for sha, pieces in self._came.items()},
        }
        beside = self._folder / f"{_JOURNAL}.{piece}"
        with explained(self._folder):
            beside.write_bytes(msgspec.json.encode(journal))
            beside.replace(self._folder / _JOURNAL)

    def _read_journal(self) -> dict[str, set[int]]:
        try:
            found = msgspec.json.decode((self._folder / _JOURNAL).read_bytes())
            if found["piece"] != self._piece:
                return {}
            known = {one.sha256: -(-one.size // self._piece) for one in self._listing.files}
            return {
                sha: {int(piece) for piece in pieces if 0 <= int(piece) < known[sha]}
                for sha, pieces in found["came"].items()
                if sha in known
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, msgspec.DecodeError):
            return {}

    def _settle(self, file: SharedFile) -> bool:
        """Give a file its name if it is what it should be; else forget it."""
        part = self._part(file)
        with explained(self._folder):
            if file_sha256(part) == file.sha256:
                part.replace(self._folder / file.name)
                return True
        self._forget(file)
        return False

    def _forget(self, file: SharedFile) -> None:
        """What came of a file is not what it should be, or is not known to be."""
        self.done_bytes -= self._have(file)
        with explained(self._folder):
            self._part(file).unlink()
        self._came.pop(file.sha256, None)

    def _finish(self) -> Bundle:
        with explained(self._folder):
            for path in self._folder.iterdir():
                if path.name.startswith("."):
                    path.unlink()
        return self.publish()

    def publish(self) -> Bundle:
        """All is there: put it in its place."""
        bundle = publish(self._folder, self.name)
        if bundle.model_id != self.holders.model:
            raise BadBundleError(
                f"{self.name} in {bundle.path} is another model than was asked for"
            )
        return bundle


def _has_not(error: Exception) -> bool:
    """Whether a peer has not that file, and so will not give it: its copy may have others."""
    return isinstance(error, aiohttp.ClientResponseError) and error.status == HTTPStatus.NOT_FOUND


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"it does not answer at {show_address((error.host, error.port or 0))}"
    if isinstance(error, aiohttp.ClientResponseError):
        if _has_not(error):
            return "it does not have its files any more"
        return f"it answered with status {error.status}"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return str(error) or type(error).__name__


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5))


def _url(holder: Holder, model: ModelId, file: SharedFile | None = None) -> str:
    scheme = "http" if holder.secure is None else "https"
    return f"{scheme}://{show_address(holder.address)}{PATH}/{model}" + (
        f"/{file.sha256}" if file else ""
    )


def _tls(holder: Holder) -> dict[str, Any]:
    """Only members get an answer; that it is the right one, its hash says."""
    if holder.secure is None:
        return {}
    return {"ssl": holder.secure.tls, "server_hostname": TLS_NAME}


async def _range(
    http: aiohttp.ClientSession,
    holder: Holder,
    model: ModelId,
    file: SharedFile,
    first: int,
    size: int,
) -> bytes:
    """Exactly these bytes of a file."""
    headers = {"Range": f"bytes={first}-{first + size - 1}", "Accept-Encoding": "identity"}
    url = _url(holder, model, file)
    async with (
        asyncio.timeout(limits.SHARE_PIECE_S),
        http.get(url, headers=headers, **_tls(holder)) as answer,
    ):
        answer.raise_for_status()
        if answer.status != 206 or answer.content_length != size:
            raise ValueError("it gave another part than was asked for")
        return await answer.content.readexactly(size)


def _id_of(listing: Listing) -> ModelId:
    return id_of_listed({one.name: one.sha256 for one in listing.files})
