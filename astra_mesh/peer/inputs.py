"""From what a client or a proposal carries to what a model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from msgspec.structs import replace

from astra_mesh.errors import EmptyPromptError, InputError
from astra_mesh.families import ModelInput
from astra_mesh.peer.models import Loaded
from astra_mesh.wire.messages import Ask, Inputs, Task

_TOKEN_BYTES = 3  # of an id above 255 in msgpack


@dataclass(frozen=True)
class Read:
    """What a client asks, as this peer read it."""

    inputs: Inputs
    given: ModelInput
    tokens: int
    pack: Callable[[], bytes] | None = None  # makes the image smaller for others, without loss

    def for_others(self) -> Inputs:
        """What all peers of a plan are told. Slow: runs in the compute thread."""
        return self.inputs if self.pack is None else Inputs(image=self.pack())


def read_ask(loaded: Loaded, ask: Ask) -> Read:
    """What a client asks. An image is decoded once, and made smaller only if others get it. New
    tokens that another peer gave follow the prompt. Slow for long texts: runs in the compute
    thread.

    Raises:
        InputError: and its kin, where the input cannot be used.
    """
    image = _checked(loaded, ask)
    if image is not None:
        assert loaded.processor is not None
        pixels, pack = loaded.processor.with_packer(image)
        found = ModelInput(pixels=pixels)
        return Read(Inputs(image=image), found, loaded.model.count_tokens(found), pack)
    inputs = _tokens_of(loaded, ask)
    return Read(inputs, *read_inputs(loaded, inputs))


def _with_answered(ask: Ask, inputs: Inputs) -> Inputs:
    if not ask.answered:
        return inputs
    if ask.task is not Task.GENERATE:
        raise InputError("only a text that is continued has tokens that were answered")
    types = inputs.token_types and [*inputs.token_types, *[0] * len(ask.answered)]
    return replace(inputs, tokens=[*inputs.tokens, *ask.answered], token_types=types)


def input_bytes(inputs: Inputs) -> int:
    """About as many as they are on the wire."""
    return _TOKEN_BYTES * len(inputs.tokens) + len(inputs.token_types) + len(inputs.image)


def _checked(loaded: Loaded, ask: Ask) -> bytes | None:
    """The image, if it is one that is given and the model takes it."""
    loaded.model.require(ask.task.value)
    given = [value for value in (ask.text, ask.tokens, ask.image) if value is not None]
    if len(given) != 1:
        raise InputError("give exactly one of a text, token ids and an image")
    name = loaded.bundle.name
    if ask.image is not None and loaded.processor is None:
        raise InputError(f"{name} reads text; give a text, not an image")
    if ask.image is None and loaded.processor is not None:
        raise InputError(f"{name} reads images; give an image file")
    if ask.image is not None and ask.answered:
        raise InputError("only a text that is continued has tokens that were answered")
    return ask.image


def _tokens_of(loaded: Loaded, ask: Ask) -> Inputs:
    if ask.tokens is not None:
        return _with_answered(ask, Inputs(tokens=ask.tokens))
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.bundle.name} has no tokenizer.json, so it takes token ids but no text: copy "
            "the model's tokenizer.json into its folder; it is taken within seconds"
        )
    tokens, types = loaded.tokenizer.encode_full(ask.text or "")
    if not tokens or (ask.task is Task.GENERATE and not (ask.text or "")):
        raise EmptyPromptError("the input is empty; give at least one token of text")
    return _with_answered(ask, Inputs(tokens=tokens, token_types=types if any(types) else []))


def read_inputs(loaded: Loaded, inputs: Inputs) -> tuple[ModelInput, int]:
    """What the model reads, and its number of tokens.

    Raises:
        InputError: and its kin, where the input does not fit the model.
    """
    found = ModelInput()
    if inputs.image:
        if loaded.processor is None:
            raise InputError(f"{loaded.bundle.name} reads text; give a text, not an image")
        found = ModelInput(pixels=loaded.processor(inputs.image))
    elif loaded.processor is not None:
        raise InputError(f"{loaded.bundle.name} reads images; give an image file")
    else:
        found = ModelInput(
            tokens=torch.tensor(inputs.tokens, dtype=torch.int64),
            token_types=torch.tensor(inputs.token_types, dtype=torch.int64)
            if inputs.token_types
            else None,
        )
    return found, loaded.model.count_tokens(found)
