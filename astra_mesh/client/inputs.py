"""What a caller gives, checked before it is sent, so that a mistake is named where it was made."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypedDict

from astra_mesh import limits
from astra_mesh.errors import (
    BadImageError,
    CodecError,
    EmptyPromptError,
    InputError,
    PromptTooLongError,
    RateError,
    UnknownModelError,
)
from astra_mesh.wire.messages import Late, Options, Sampling, Use

if TYPE_CHECKING:
    from PIL.Image import Image

LateName: TypeAlias = Literal["wait", "adapt", "degrade"]
UseName: TypeAlias = Literal["auto", "all", "solo"]
Picture: TypeAlias = "bytes | os.PathLike[str] | Image"

_SEED_MODULUS: Final = 2**63


class Given(TypedDict, total=False):
    """The input fields of an ``Ask``."""

    text: str
    tokens: list[int]
    image: bytes


def check_model(name: str) -> str:
    """A model's name that can be sent.

    Raises:
        UnknownModelError: No model can have that name.
    """
    if not 1 <= len(name) <= limits.NAME_CHARS or not name.isprintable():
        raise UnknownModelError(
            f"no model is called {name[: limits.NAME_CHARS]!a}: a name has 1 to "
            f"{limits.NAME_CHARS} printable characters; `astra-mesh models` lists those here"
        )
    return name


def check_text(text: str) -> Given:
    """A text as the input of a request.

    Raises:
        InputError: It is empty, too long, or cannot be written in UTF-8.
    """
    if not text:
        raise EmptyPromptError("the text is empty: give at least one character")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError("the text holds bytes that are no UTF-8 text") from None
    if size > limits.TEXT_BYTES:
        raise PromptTooLongError(
            f"the text is longer than the {limits.TEXT_BYTES / limits.MIB:.3g} MiB that can be "
            "sent: shorten it"
        )
    return {"text": text}


def check_prompt(prompt: str | Sequence[int]) -> Given:
    """A text, or token ids, as the input of a request.

    Raises:
        InputError: As :func:`check_text`; or something that is no token id.
    """
    if isinstance(prompt, str):
        return check_text(prompt)
    if not len(prompt):
        raise EmptyPromptError("the input has no token: give at least one")
    if len(prompt) > limits.PROMPT_TOKENS:
        raise PromptTooLongError(
            f"the input has {len(prompt)} tokens; at most {limits.PROMPT_TOKENS} can be sent"
        )
    try:
        tokens = [int(token) for token in prompt]
    except (TypeError, ValueError):
        raise InputError("a prompt is a text, or a sequence of token ids (integers)") from None
    if min(tokens) < 0 or max(tokens) >= 2**31:
        raise InputError("a token id is negative or too large")
    return {"tokens": tokens}


def read_picture(picture: Picture) -> Given:
    """The bytes of an image file, read or made. Blocks: belongs into a thread.

    Raises:
        BadImageError: It cannot be read, or is too large.
    """
    if isinstance(picture, os.PathLike):
        data = _read(Path(picture))
    elif isinstance(picture, bytes):
        data = picture
    else:
        data = _write(picture)
    if not data:
        raise BadImageError("the image is empty")
    if len(data) > limits.IMAGE_BYTES:
        raise BadImageError(
            f"the image file is larger than {limits.IMAGE_BYTES // limits.MIB} MiB: make it smaller"
        )
    return {"image": data}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.IMAGE_BYTES + 1)
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise BadImageError(f"the image {str(path)[-200:]!a} cannot be read: {why}") from None


def _write(picture: Image) -> bytes:
    """PNG, which loses nothing; JPEG where that is too large."""
    try:
        rgb = picture.convert("RGB")
        data = _saved(rgb, "PNG")
        return data if len(data) <= limits.IMAGE_BYTES else _saved(rgb, "JPEG", quality=95)
    except (AttributeError, OSError, ValueError) as exc:
        raise BadImageError(f"the image cannot be read: {exc}") from None


def _saved(picture: Image, form: str, **settings: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=form, **settings)
    return file.getvalue()


def make_sampling(
    max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int | None
) -> Sampling:
    """How new tokens are chosen.

    Raises:
        InputError: A number is out of its range.
    """
    checks = {
        f"max_new_tokens must lie in 1..{limits.NEW_TOKENS}": (
            1 <= max_new_tokens <= limits.NEW_TOKENS
        ),
        "temperature must be 0 (greedy) or more": math.isfinite(temperature) and temperature >= 0,
        "top_k must be 0 (all) or more": 0 <= top_k < 2**31,
        "top_p must be above 0 and at most 1": 0 < top_p <= 1,
    }
    for sentence, fine in checks.items():
        if not fine:
            raise InputError(sentence)
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=float(temperature),
        top_k=top_k,
        top_p=float(top_p),
        seed=None if seed is None else seed % _SEED_MODULUS,
    )


def make_options(
    use: str,
    max_peers: int,
    codec: str,
    rate: int,
    class_token: str = "",
    max_loss: float | None = None,
    late: LateName = "wait",
) -> Options:
    """Which peers and which codes a request may use, and where its class token lives.

    Raises:
        InputError: A value is out of its range.
    """
    if use not in {member.value for member in Use}:
        raise InputError(f"use must be auto, all or solo, not {use[:40]!a}")
    if late not in {member.value for member in Late}:
        raise InputError(f"late must be wait, adapt or degrade, not {late[:40]!a}")
    if not 0 <= max_peers <= limits.PEERS_PER_PLAN:
        raise InputError(f"max_peers must lie in 0..{limits.PEERS_PER_PLAN} (0: no limit)")
    if not 0 <= rate < 2**31:
        raise RateError("rate is a number of bits per token and block, 0 for the model's own")
    if len(codec) > 32 or not codec.isprintable():
        raise CodecError(
            "codec must be vq, astra, fp32, fp16, int8, int4 or the name of a codebook"
        )
    if class_token not in ("", "single", "distributed"):
        raise InputError("class_token must be single or distributed")
    if max_loss is not None and not 0 <= max_loss <= 1:
        raise InputError("max_loss must lie in 0..1: 0.02 is 2 %")
    return Options(
        use=Use(use),
        max_peers=max_peers,
        codec=codec,
        rate=rate,
        class_token=class_token,
        max_loss=None if max_loss is None else float(max_loss),
        late=Late(late),
    )
