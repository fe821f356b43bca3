"""A text that is being generated."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.client.answers import Token
from astra_mesh.client.elapsed import Elapsed
from astra_mesh.client.line import Conversation, Line, new_request
from astra_mesh.client.way import Way, continued, may_go_on
from astra_mesh.errors import MeshError
from astra_mesh.wire import messages as wire
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import Ask, Planned, Refer, Report, RequestId, Result


class _Progress:
    """What is known of one generation. It refers neither to the generation nor to its stream, so
    that a loop that is left frees the stream at once."""

    def __init__(self, way: Way, ask: Ask) -> None:
        self.way = way
        self.ask = ask
        self.conversation: Conversation | None = None
        self.planned: Planned | None = None
        self.report: Report | None = None
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.referred: Line | None = None  # to the peer that answers, if the first sent us there
        self.moves = 0  # to other peers after a loss
        self.notes: list[str] = []  # for the report: a sentence for each move and referral
        self.used = False  # its stream was handed out


class Generation:
    """New tokens as they come: ``async for token in generation``, once.

    The request starts with the first step. Leaving the loop ends it on all peers: a plain ``break``
    or an exception within the next turns of the event loop, ``async with generation:`` and
    ``contextlib.aclosing`` (or :meth:`aclose`) before the next line runs.

    If another peer would answer much sooner, it is asked instead. If the one that answers is lost,
    another one goes on after the tokens that came. The report says so.
    """

    def __init__(self, way: Way, ask: Ask) -> None:
        self._progress = _Progress(way, ask)
        self._stepped: AsyncGenerator[Token, None] | None = None

    @property
    def request(self) -> RequestId:
        """The id by which the asked peer knows the request."""
        return self._progress.ask.request

    @property
    def planned(self) -> Planned | None:
        """The plan; None until it is made. A request that is planned anew has a new one."""
        return self._progress.planned

    @property
    def report(self) -> Report | None:
        """What the request cost; None before its end."""
        return self._progress.report

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._progress.texts)

    def __aiter__(self) -> AsyncGenerator[Token, None]:
        # A fresh generator that only the loop holds: leaving the loop finalises it, and then
        # asyncio closes it, which cancels the request.
        if self._stepped is not None:
            return self._stepped
        return self._open_stream()

    async def __anext__(self) -> Token:
        if self._stepped is None:
            self._stepped = self._open_stream()
        return await anext(self._stepped)

    async def aclose(self) -> None:
        """Cancel the request unless it is over. More calls do nothing."""
        self._progress.used = True
        if self._progress.conversation is not None:
            self._progress.conversation.close()
        if self._stepped is not None:
            await self._stepped.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _open_stream(self) -> AsyncGenerator[Token, None]:
        if self._progress.used:
            raise RuntimeError("a generation is iterated once; call generate() again")
        self._progress.used = True
        return _stream(self._progress)


async def _stream(progress: _Progress) -> AsyncGenerator[Token, None]:
    ask, way, elapsed = progress.ask, progress.way, Elapsed()
    while True:
        line, started, refer = progress.referred or way.line, False, None
        try:
            conversation = progress.conversation = line.start(ask)
            started = True
            way.look_around()
            try:
                while refer is None:
                    message = await conversation.next()
                    if isinstance(message, Planned):
                        progress.planned = message
                        way.learn(message)
                    elif isinstance(message, wire.Token):
                        if message.index < len(progress.ids):  # it began before what came already
                            continue
                        progress.ids.append(message.token)
                        progress.texts.append(message.text)
                        elapsed.token()
                        yield Token(message.token, message.text, message.index)
                        elapsed.heard()  # the caller took its time
                    elif isinstance(message, Refer):
                        refer = message
                    elif isinstance(message, Result):
                        for note in progress.notes:
                            message = with_note(message, note)
                        progress.report = elapsed.told(message.report)
                        return
            finally:
                conversation.close()
            await _follow(progress, refer)
            elapsed.heard()
        except MeshError as error:
            await _go_on(progress, line, error, again=not started)
            elapsed.lost()
        ask = _rest(progress)


async def _follow(progress: _Progress, refer: Refer) -> None:
    """Ask the peer that would answer sooner from now on, if it can be reached."""
    progress.ask = replace(progress.ask, may_refer=False)
    try:
        progress.referred = await progress.way.referred(refer)
    except MeshError as error:
        name = sanitise(refer.name)
        progress.notes.append(f"{name} would answer sooner, but cannot be asked: {error.message}")
    else:
        progress.notes.append(f"answered by {sanitise(refer.name)}: {sanitise(refer.reason)}")


async def _go_on(progress: _Progress, line: Line, error: MeshError, *, again: bool) -> None:
    """Whom to ask after an error; it is raised if nobody can help."""
    count, way = len(progress.ids), progress.way
    after = f" after {count} token{'s' * (count > 1)}" if count else ""
    if line is progress.referred and (not count or may_go_on(line, error)):
        progress.referred = None  # back to the first one
        progress.notes.append(continued(way.line, error, after))
        return
    if progress.moves >= limits.CLIENT_MOVES or not may_go_on(line, error):
        raise error
    progress.moves += 1
    progress.notes.append(await way.onward(line, error, after=after, again=again))


def _rest(progress: _Progress) -> Ask:
    """The request for another peer: it goes on after the tokens that came.

    Where all came and only the end was lost, the last is asked for once more.
    """
    ask, answered = progress.ask, progress.ids
    if ask.sampling is not None and len(answered) >= ask.sampling.max_new_tokens:
        answered = answered[:-1]
    return replace(ask, request=new_request(), answered=list(answered))


def with_note(result: Result, note: str) -> Result:
    """The result with one more sentence in its report; an empty one changes nothing."""
    if not note:
        return result
    notes = [*result.report.notes, note][-limits.NOTES :]
    return replace(result, report=replace(result.report, notes=notes))
