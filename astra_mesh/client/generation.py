"""A text that is being generated."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from astra_mesh.client.answers import Token
from astra_mesh.client.line import Conversation, Line
from astra_mesh.wire import messages as wire
from astra_mesh.wire.messages import Ask, Planned, Report, Result


class _Progress:
    """What is known of one generation. It refers neither to the generation nor to its stream, so
    that a loop that is left frees the stream at once."""

    def __init__(self, line: Line, ask: Ask) -> None:
        self.line = line
        self.ask = ask
        self.conversation: Conversation | None = None
        self.planned: Planned | None = None
        self.report: Report | None = None
        self.texts: list[str] = []
        self.used = False  # its stream was handed out


class Generation:
    """New tokens as they come: ``async for token in generation``, once.

    The request starts with the first step. Leaving the loop ends it on all peers: a plain ``break``
    or an exception within the next turns of the event loop, ``async with generation:`` and
    ``contextlib.aclosing`` (or :meth:`aclose`) before the next line runs.
    """

    def __init__(self, line: Line, ask: Ask) -> None:
        self._progress = _Progress(line, ask)
        self._stepped: AsyncGenerator[Token, None] | None = None

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
    conversation = progress.conversation = progress.line.start(progress.ask)
    try:
        while True:
            message = await conversation.next()
            if isinstance(message, Planned):
                progress.planned = message
            elif isinstance(message, wire.Token):
                progress.texts.append(message.text)
                yield Token(message.token, message.text, message.index)
            elif isinstance(message, Result):
                progress.report = message.report
                return
    finally:
        conversation.close()
