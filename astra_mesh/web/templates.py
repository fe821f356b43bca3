"""Chat templates: how a model wants a conversation written, as its bundle says.

The template comes from ``chat_template.jinja``, else from ``tokenizer_config.json``. It is a
program of whoever made the model, so it runs in jinja2's sandbox, with caps on its size, time and
output.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from astra_mesh import limits
from astra_mesh.bundle import Bundle
from astra_mesh.bundle.configs import read_file
from astra_mesh.bundle.copies import SETTINGS, TEMPLATE
from astra_mesh.errors import BadBundleError, EmptyPromptError, PromptTooLongError, WrongTaskError
from astra_mesh.peer.loaded import Loaded
from astra_mesh.web.errors import ApiError, bad
from astra_mesh.web.requests import ChatMessage
from astra_mesh.web.sandbox import Template, TemplateFault, compile_template
from astra_mesh.wire.messages import ModelId

Stamp = tuple[tuple[str, int, int, int], ...]  # name, time, size and number of each file
_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


@dataclass(frozen=True)
class ChatTemplate:
    """The template of one model, and the tokens that it may write."""

    name: str  # of the model
    template: Template
    tokens: dict[str, str]

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The conversation as text, up to where the model answers. Blocks: belongs into a thread.

        Raises:
            ApiError: The template refuses the conversation, or fails.
        """
        try:
            return self.template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                strftime_now=_now,
                **self.tokens,
            )
        except TemplateFault as error:
            text = f"the chat template of {self.name} does not take these messages: {error}"
            raise bad(text, "messages", "chat_template") from None


class Templates:
    """The chat templates of a peer's models, each read again when its file is another one."""

    def __init__(self) -> None:
        self._known: dict[ModelId, tuple[Stamp, ChatTemplate]] = {}

    async def prompt(
        self, loaded: Loaded, messages: Sequence[ChatMessage], called: str
    ) -> list[int]:
        """The token ids of a conversation with the model that was ``called`` so.

        Raises:
            WrongTaskError: The model has no chat template, or takes no text.
            ApiError: The conversation cannot be written by it.
            InputError: It is too long, or empty.
        """
        loaded.model.require("generate")
        template = await asyncio.to_thread(self._template, loaded.words, called)
        plain = [plain_message(place, one) for place, one in enumerate(messages)]
        return await asyncio.to_thread(_encode, loaded, template, plain)

    def _template(self, bundle: Bundle, called: str) -> ChatTemplate:
        stamp = _stamp(bundle)
        known = self._known.get(bundle.model_id)
        if known is None or known[0] != stamp:
            known = self._known[bundle.model_id] = stamp, read_template(bundle, called)
        return known[1]


def _stamp(bundle: Bundle) -> Stamp:
    """Changes with the files that a template comes from."""
    found = []
    for name in (TEMPLATE, SETTINGS):
        with suppress(OSError):
            state = (bundle.path / name).stat()
            found.append((name, state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(found)


def _encode(loaded: Loaded, template: ChatTemplate, messages: list[dict[str, Any]]) -> list[int]:
    if loaded.tokenizer is None:
        raise WrongTaskError(
            f"{loaded.bundle.name} has no tokenizer.json, so it takes token ids only: use "
            "/v1/completions with a list of them as prompt"
        )
    # The template wrote the special tokens already.
    tokens, _ = loaded.tokenizer.encode_full(template.render(messages), special=False)
    if not tokens:
        raise EmptyPromptError("the conversation comes to no token; write something in it")
    if len(tokens) > limits.PROMPT_TOKENS:
        raise PromptTooLongError(
            f"the conversation has {len(tokens)} tokens; at most {limits.PROMPT_TOKENS} can be sent"
        )
    return tokens


def plain_message(place: int, message: ChatMessage) -> dict[str, Any]:
    """A message as templates know it: role and text.

    Raises:
        ApiError: It holds what is no text.
    """
    at = f"messages[{place}]"
    if message.tool_calls or message.function_call:
        raise bad("tools are not supported: leave tool_calls out", at, "unsupported_parameter")
    role = "system" if message.role == "developer" else message.role
    plain = {"role": role, "content": _text(at, message)}
    return plain if message.name is None else {**plain, "name": message.name}


def _text(at: str, message: ChatMessage) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    for place, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            text = f"models here read texts only, no {part.type[:40]!a}: give parts of type 'text'"
            raise bad(text, f"{at}.content[{place}]", "unsupported_content")
    return "".join(part.text or "" for part in message.content)


def read_template(bundle: Bundle, called: str) -> ChatTemplate:
    """The chat template of a bundle, for whoever called it so. Blocks: belongs into a thread.

    Raises:
        WrongTaskError: It has none.
        ApiError: It is no template.
    """
    config = bundle.optional_json(SETTINGS)
    source = _source(bundle, config)
    if source is None:
        raise WrongTaskError(
            f"{called} has no chat template: it continues texts but holds no conversations; "
            "use /v1/completions, or a model whose tokenizer_config.json has a chat_template"
        )
    tokens = {name: text for name in _SPECIAL if (text := _token(config.get(name))) is not None}
    try:
        return ChatTemplate(bundle.name, compile_template(source), tokens)
    except TemplateFault as error:
        text = f"the chat template of {bundle.name} cannot be used: {error}; use /v1/completions"
        raise ApiError(500, text, "chat_template") from None


def _source(bundle: Bundle, config: dict[str, Any]) -> str | None:
    if bundle.has(TEMPLATE):
        data = read_file(bundle.file(TEMPLATE), limits.CHAT_TEMPLATE_BYTES)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise BadBundleError(f"{bundle.name}/{TEMPLATE} is no UTF-8 text") from error
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _token(value: object) -> str | None:
    """A special token: its text, or an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _now(form: str) -> str:
    """The local time, for templates that write the date."""
    return datetime.now().astimezone().strftime(form[:100])
