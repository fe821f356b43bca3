"""From what a client or a proposal carries to what a model reads."""

from __future__ import annotations

import torch
from msgspec.structs import replace

from astra_mesh.errors import EmptyPromptError, InputError
from astra_mesh.families import ModelInput
from astra_mesh.peer.models import Loaded
from astra_mesh.wire.messages import Ask, Inputs, Task

_TOKEN_BYTES = 3  # of an id above 255 in msgpack


def inputs_of_ask(loaded: Loaded, ask: Ask) -> Inputs:
    """Token ids, or an image no larger than it came; InputError and its kin if it cannot be used.

    Every peer of a plan gets them, and the same pixel values from fewer bytes. New tokens that
    another peer gave follow the prompt. Slow for long texts: runs in the compute thread.
    """
    inputs = _given(loaded, ask)
    if not ask.answered:
        return inputs
    if ask.task is not Task.GENERATE:
        raise InputError("only a text that is continued has tokens that were answered")
    types = inputs.token_types and [*inputs.token_types, *[0] * len(ask.answered)]
    return replace(inputs, tokens=[*inputs.tokens, *ask.answered], token_types=types)


def input_bytes(inputs: Inputs) -> int:
    """About as many as they are on the wire."""
    return _TOKEN_BYTES * len(inputs.tokens) + len(inputs.token_types) + len(inputs.image)


def _given(loaded: Loaded, ask: Ask) -> Inputs:
    loaded.model.require(ask.task.value)
    given = [value for value in (ask.text, ask.tokens, ask.image) if value is not None]
    if len(given) != 1:
        raise InputError("give exactly one of a text, token ids and an image")
    if ask.image is not None:
        if loaded.processor is None:
            raise InputError(f"{loaded.bundle.name} reads text; give a text, not an image")
        return Inputs(image=loaded.processor.shrunk(ask.image))
    if ask.tokens is not None:
        return Inputs(tokens=ask.tokens)
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.bundle.name} has no tokenizer.json: give token ids, or an image if it "
            "reads those"
        )
    tokens, types = loaded.tokenizer.encode_full(ask.text or "")
    if not tokens or (ask.task is Task.GENERATE and not (ask.text or "")):
        raise EmptyPromptError("the prompt is empty; give at least one token of text")
    return Inputs(tokens=tokens, token_types=types if any(types) else [])


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
