"""The client's view of a mesh."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.client.addresses import parse_address
from astra_mesh.client.answers import Classification, Embedding, ModelEntry, models_of
from astra_mesh.client.elapsed import Elapsed
from astra_mesh.client.finding import Target, find_line
from astra_mesh.client.generation import Generation, with_note
from astra_mesh.client.inputs import (
    Given,
    LateName,
    UseName,
    check_model,
    check_prompt,
    check_text,
    make_options,
    make_sampling,
    read_picture,
)
from astra_mesh.client.line import Line, new_request
from astra_mesh.client.way import Way, may_go_on
from astra_mesh.errors import DeadlineError, MeshError, PeerLostError
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.timings import Timings
from astra_mesh.wire.messages import (
    Ask,
    Event,
    Hello,
    ListPeers,
    Options,
    PeerInfo,
    Peers,
    Planned,
    Result,
    Subscribe,
    Task,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_LIST_S: Final = 5.0  # a peer answers from memory; more is a peer that hangs
_LOOK_S: Final = 0.1  # between two looks for other peers
_SETTLE_S: Final = 0.3  # after the first was found: the others of the room are about to be


def connect(
    address: str | Address | None = None,
    *,
    peers: Sequence[str] = (),
    wait_s: float = limits.DISCOVERY_WAIT_S,
) -> Mesh:
    """A mesh to ask: ``async with astra_mesh.connect() as mesh:`` (or ``await``, and ``close()``).

    Args:
        address: Of the peer to ask, "host:port". None: the environment's ASTRA_MESH_PEER, else a
            peer of this user on this machine, else a peer inside this process, which finds others.
        peers: Addresses for the peer inside this process to start from, where multicast is
            dropped. With them no other peer of this machine is looked for.
        wait_s: How long the peer inside this process looks for others, seconds.
    """
    return Mesh(address, peers=peers, wait_s=wait_s)


class Mesh:
    """A mesh, seen through one of its peers. Made by :func:`connect`."""

    def __init__(
        self,
        address: str | Address | None = None,
        *,
        peers: Sequence[str] = (),
        wait_s: float = limits.DISCOVERY_WAIT_S,
        timings: Timings | None = None,
        window_bytes: int = limits.WINDOW_BYTES,
        trust_dir: Path | None = None,
        stays: bool = False,
    ) -> None:
        self.embedded = False  # whether the peer runs inside this process
        self._target = Target(
            address=parse_address(address) if isinstance(address, str) else address,
            typed=tuple(parse_address(text) for text in peers),
            timings=timings if timings is not None else Timings(),
            window_bytes=window_bytes,
            trust_dir=trust_dir,
        )
        self._wait_s, self._stays = wait_s, stays  # stays: with the peer that it found
        self._way: Way | None = None
        self._stack = AsyncExitStack()

    # --- opening and closing ----------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect. Cancelling it, or an error, leaves nothing behind.

        Raises:
            NoPeerError: Nobody answers at the address.
            NotPairedError: Its device and this one are not paired.
            VersionMismatchError: The peer speaks another version of the protocol.
            MeshError: The peer refused, or went away.
        """
        if self._way is not None:
            raise RuntimeError("this mesh is open already")
        async with AsyncExitStack() as stack:
            stack.callback(self._forget_way)
            line, self.embedded = await find_line(stack, self._target)
            stays = self._stays or self.embedded
            self._way = Way(self._stack, line, self._target, stays=stays)
            if self.embedded:
                await self._wait_for_others()
            self._stack.push_async_exit(stack.pop_all())
        return self

    async def close(self) -> None:
        """Say goodbye; stop the peer inside this process, if there is one."""
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[object, None, Self]:
        return self.open().__await__()

    @property
    def peer(self) -> Hello:
        """The peer that is asked, as it introduced itself."""
        return self._open_line().hello

    @property
    def peer_address(self) -> Address:
        """Where that peer is reached."""
        return parse_address(self._open_line().address)

    @property
    def is_open(self) -> bool:
        """Whether requests can be made: it was opened, and the peer is still there."""
        return self._way is not None and self._way.line.is_open

    # --- asking -----------------------------------------------------------------------------------

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        use: UseName = "auto",
        max_peers: int = 0,
        codec: str = "",
        rate: int = 0,
        max_loss: float | None = None,
        late: LateName = "wait",
        stay: bool = False,
    ) -> Generation:
        """Continue a text (or token ids): an async iterator of tokens. See :class:`Generation`.

        Args:
            model: Name, or the first digits of the id.
            prompt: What is continued.
            max_new_tokens: It ends earlier at the model's end token, or where its context is full.
            temperature: 0 takes the most probable token each time; above it is sampled.
            top_k: Sample from so many most probable tokens; 0 from all.
            top_p: Sample from the most probable tokens that make up this much probability.
            seed: The same seed, plan and prompt give the same text.
            use: "auto": the plan with the shortest predicted time; "all": every peer that holds
                the model; "solo": only the peer that is asked.
            max_peers: At most so many peers; 0: no limit.
            codec: "vq", "astra", "fp32", "fp16", "int8" or "int4"; "" for the model's own.
            rate: Bits per token and block; 0 for the fastest within ``max_loss``.
            max_loss: What the codes may cost in quality, as ``astra-mesh eval --save`` measured it
                (0.02: 2 % more perplexity); None for the limit that was stored with it.
            late: "wait" for codes that come late; "adapt": send fewer bits over links that became
                slower; "degrade": that too, and go on with what is predicted from earlier blocks
                for codes that are late all the same. The report's notes say where that happened.
            stay: With "auto", the asked peer makes the new tokens, also if another one is much
                faster at that.

        Raises:
            InputError: Something given cannot be used; other errors come from the iterator.
        """
        ask = Ask(
            request=new_request(),
            task=Task.GENERATE,
            model=check_model(model),
            sampling=make_sampling(max_new_tokens, temperature, top_k, top_p, seed),
            options=make_options(use, max_peers, codec, rate, max_loss=max_loss, late=late),
            may_refer=use == "auto" and not stay,
            **check_prompt(prompt),
        )
        return Generation(self._open_way(), ask)

    async def classify(
        self,
        model: str,
        image_or_text: bytes | str | os.PathLike[str] | Image,
        *,
        top: int = 5,
        use: UseName = "auto",
        max_peers: int = 0,
        codec: str = "",
        rate: int = 0,
        max_loss: float | None = None,
        class_token: str = "",
        late: LateName = "wait",
    ) -> Classification:
        """Label an image (a path, a file's bytes, a PIL image) or a text (``str``, never a path).

        ``top``: at most so many labels. ``class_token``: "single" (on one peer) or "distributed" (a
        copy on each, averaged at the end); empty: what the model was adapted for. The other
        arguments are those of :meth:`generate`. Cancelling it ends the request.
        """
        if top < 1:
            top = limits.LABELS
        options = make_options(use, max_peers, codec, rate, class_token, max_loss, late)
        if isinstance(image_or_text, str):
            given = check_text(image_or_text)
        else:
            given = await asyncio.to_thread(read_picture, image_or_text)
        planned, result = await self._answer(Task.CLASSIFY, model, given, options)
        return Classification(result.labels[:top], planned, result.report)

    async def embed(
        self,
        model: str,
        text: str | Sequence[int],
        *,
        normalize: bool = True,
        use: UseName = "auto",
        max_peers: int = 0,
        codec: str = "",
        rate: int = 0,
        max_loss: float | None = None,
        class_token: str = "",
        late: LateName = "wait",
    ) -> Embedding:
        """One vector for a text (or token ids), (D,) float32, of length 1 if ``normalize``.

        The other arguments are those of :meth:`classify`. Cancelling it ends the request.
        """
        options = make_options(use, max_peers, codec, rate, class_token, max_loss, late)
        planned, result = await self._answer(Task.EMBED, model, check_prompt(text), options)
        import numpy as np  # a tenth of what a command takes until its first token

        vector = np.frombuffer(result.vector, dtype="<f4").astype(np.float32)
        if normalize:
            vector /= max(float(np.linalg.norm(vector)), 1e-12)
        return Embedding(vector, planned, result.report)

    # --- looking ----------------------------------------------------------------------------------

    async def peers(self) -> list[PeerInfo]:
        """The peers of the mesh, the asked one first.

        Raises:
            DeadlineError: The peer did not answer in time.
        """
        return (await self._view()).peers

    async def strangers(self) -> list[str]:
        """Names of peers near whose devices are not paired with the asked one's, as far as it saw.

        Raises:
            DeadlineError: The peer did not answer in time.
        """
        return (await self._view()).strangers

    async def _view(self) -> Peers:
        conversation = self._open_line().start(ListPeers(request=new_request()))
        try:
            async with asyncio.timeout(_LIST_S):
                return await conversation.expect(Peers)
        except TimeoutError:
            raise DeadlineError(
                f"the peer {self.peer.name} did not list its mesh within {_LIST_S:g} s: it is "
                "overloaded or hangs"
            ) from None
        finally:
            conversation.close()

    async def models(self) -> list[ModelEntry]:
        """The models of the mesh, by name, and who holds each."""
        return models_of(await self.peers())

    async def events(self) -> AsyncGenerator[Event, None]:
        """What happens from now on: peers that come and go, requests that start and end.

        It ends where this mesh is closed; leave the loop to end it sooner. Who reads too slowly
        loses the oldest events.

        Raises:
            PeerLostError: The peer went away.
        """
        line = self._open_line()
        conversation = line.start(Subscribe(request=new_request()))
        try:
            while True:
                yield await conversation.expect(Event)
        except PeerLostError:
            if not line.closed_here:
                raise
        finally:
            conversation.close()

    # --- inside -----------------------------------------------------------------------------------

    def _forget_way(self) -> None:
        self._way = None

    async def _wait_for_others(self) -> None:
        """Wait until the peer inside this process knows another one, ``wait_s`` at most."""
        end = asyncio.get_running_loop().time() + self._wait_s
        while asyncio.get_running_loop().time() < end:
            if len(await self.peers()) > 1:
                await asyncio.sleep(_SETTLE_S)
                return
            await asyncio.sleep(_LOOK_S)

    async def _answer(
        self, task: Task, model: str, given: Given, options: Options
    ) -> tuple[Planned | None, Result]:
        ask = Ask(
            request=new_request(), task=task, model=check_model(model), options=options, **given
        )
        way, moved, elapsed = self._open_way(), "", Elapsed()
        while True:
            line, started = way.line, False
            try:
                planned, result = None, None
                conversation = line.start(ask)
                started = True
                way.look_around()
                try:
                    while result is None:
                        message = await conversation.next()
                        if isinstance(message, Planned):
                            planned = message
                            way.learn(message)
                        elif isinstance(message, Result):
                            result = message
                finally:
                    conversation.close()
                result = replace(result, report=elapsed.told(result.report))
                return planned, with_note(result, moved)
            except MeshError as error:
                if moved or not may_go_on(line, error):
                    raise
                moved = await way.onward(line, error, again=not started)
                elapsed.lost()
                ask = replace(ask, request=new_request())

    def _open_way(self) -> Way:
        if self._way is None:
            raise RuntimeError("the mesh is not open: use `async with connect() as mesh`")
        return self._way

    def _open_line(self) -> Line:
        return self._open_way().line
