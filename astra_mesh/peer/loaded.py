"""A model in memory, with its codebooks and what is known of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.quality import Quality, TaskQuality
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.errors import CodebookError, CodecError, RateError
from astra_mesh.families import Model, ModelSpec
from astra_mesh.memory import drop_pages
from astra_mesh.peer.code_times import CodeTimes
from astra_mesh.peer.precision import Chosen
from astra_mesh.peer.steps import StepQueue
from astra_mesh.quant.codebook import Codebook
from astra_mesh.quant.codecs import PLAIN, PlainCodec, VectorCodec, make_codec
from astra_mesh.wire.messages import CodebookId

AnyCodec = PlainCodec | VectorCodec


@dataclass
class Loaded:
    """A model in memory."""

    bundle: Bundle
    model: Model
    codebooks: dict[CodebookId, Codebook]
    tokenizer: TextTokenizer | None
    processor: ImageProcessor | None
    stop_ids: frozenset[int]
    words: Bundle  # whose tokenizer, stop tokens and chat template these are
    chosen: Chosen = field(default_factory=Chosen)  # number format
    problems: tuple[str, ...] = ()  # codebooks that are left out, and why
    quality: Quality | None = None  # what was measured and stored
    tables: bool = True  # whether codes may be decoded by them
    names: dict[CodebookId, str] = field(default_factory=dict)  # as `models` shows them
    steps: StepQueue = field(default_factory=StepQueue)  # of all texts that are being decoded
    times: dict[CodebookId, CodeTimes] = field(default_factory=dict)  # on this device
    _codecs: dict[tuple[str, CodebookId, str], AnyCodec] = field(default_factory=dict)
    _wanted: list[tuple[VectorCodec, int]] = field(default_factory=list)  # tables, of stages

    @property
    def spec(self) -> ModelSpec:
        """Sizes and kind."""
        return self.model.spec

    def task_quality(self, task: str) -> TaskQuality | None:
        """What was measured of a task."""
        return None if self.quality is None else self.quality.tasks.get(task)

    def codec(self, name: str, codebook: CodebookId, stages: int = 0) -> AnyCodec:
        """The codec of a plan, with the decoder that is the faster one here for so many stages.

        Raises:
            CodecError, CodebookError: there is none.
        """
        codec = self._codec(name, codebook)
        if not isinstance(codec, VectorCodec) or codebook not in self.times:
            return codec
        decoder = self.times[codebook].decoder.get(stages, codec.decoder)
        if decoder == codec.decoder:
            return codec
        key = (name, codebook, decoder)
        if key not in self._codecs:
            other = copy.copy(codec)  # its tables and coders are those of the first one
            other.decoder = decoder
            self._codecs[key] = other
        return self._codecs[key]

    def at_work(self, codec: AnyCodec, rates: Collection[int]) -> AnyCodec:
        """The codec for a request that starts now and receives codes of these numbers of stages.

        Making tables can take longer than the request: where some are missing it projects, and
        :meth:`next_table` has them for when there is time.
        """
        if not isinstance(codec, VectorCodec):
            return codec
        missing = [(codec, stages) for stages in sorted(set(rates)) if codec.unmade(stages)]
        self._wanted += [one for one in missing if one not in self._wanted]
        return codec.projecting() if missing else codec

    def next_table(self) -> Callable[[], object] | None:
        """Makes one block's table that a request went without; None: there is none to make."""
        while self._wanted:
            codec, stages = self._wanted[0]
            if blocks := codec.unmade(stages):
                return partial(codec.table, blocks[0], stages)
            del self._wanted[0]
        return None

    def drop_pages(self) -> None:
        """The files of codebooks leave memory. What coders and tables have of them stays."""
        books = [book for held in self.codebooks.values() for book in held.levels.values()]
        drop_pages(one.codewords[0] for level in books for one in level)

    def _codec(self, name: str, codebook: CodebookId) -> AnyCodec:
        key = (name, codebook, "")
        if name in PLAIN and codebook:
            raise CodebookError(f"{name} has no codebook")
        if key not in self._codecs:
            book = self.codebooks.get(codebook)
            if name not in PLAIN and book is None:
                raise CodebookError(
                    f"{self.bundle.name} has no codebook {codebook[:12] or name!r} on this device"
                )
            self._codecs[key] = make_codec(name, self.model, book, lean=not self.tables)
        return self._codecs[key]

    def named(self, name: str) -> dict[CodebookId, Codebook]:
        """The codebooks that a client may mean: of a codec, or the one of that name.

        Without a name all of them, ``vq`` before ``astra``.
        """
        if name not in ("", "vq", "astra"):
            return {key: one for key, one in self.codebooks.items() if self.names.get(key) == name}
        kinds = (name,) if name else ("vq", "astra")
        return {
            key: book
            for kind in kinds
            for key, book in self.codebooks.items()
            if book.codec == kind
        }

    def choose_codec(self, name: str) -> tuple[AnyCodec, CodebookId]:
        """The codec that a client named; "": the bundle's codebook, ``fp16`` without one."""
        if name in PLAIN:
            return self.codec(name, CodebookId("")), CodebookId("")
        for key, book in self.named(name).items():
            return self.codec(book.codec, key), key
        if name and self.problems:
            raise CodebookError(self.problems[0])
        if name and name not in ("vq", "astra") and self.names:
            known = ", ".join([*self.names.values(), *PLAIN])
            raise CodecError(f"{self.bundle.name} has no codes {name!r}; it has {known}")
        if name:
            return make_codec(name, self.model), CodebookId("")  # raises, saying what to do
        return self.codec("fp16", CodebookId("")), CodebookId("")


def choose_stages(codec: AnyCodec, rate: int) -> int:
    """Stages for a rate in bits per token and block; 0: the codebook's default.

    Raises:
        RateError: the codebook has no such rate.
    """
    if rate == 0:
        return codec.codebook.default_stages if isinstance(codec, VectorCodec) else codec.stages
    for stages in codec.able:
        if codec.rate(stages) == rate:
            return stages
    able = ", ".join(str(codec.rate(stages)) for stages in codec.able)
    raise RateError(f"{codec.name} has no rate of {rate} bits per token and block; it has {able}")
