"""Reading a request's body: capped in bytes and time, then JSON of a known shape."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from astra_mesh import limits
from astra_mesh.web.errors import ApiError, bad, busy
from astra_mesh.web.jsons import repeated
from astra_mesh.web.wanted import as_it_came, sentence

T = TypeVar("T")

_JSON: Final = "application/json"
_PICTURE: Final = "image/"
_FORM: Final = "multipart/"
_CHUNK_BYTES: Final = 64 * limits.KIB
# Half of a pair of escapes that stand for one character, after whole ones and all other text.
_HALF: Final = re.compile(
    rb"(?:[^\\]|\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?!u[dD][89a-fA-F]).))*+"
    rb"(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})",
    re.DOTALL,
)
_SHOWN: Final = 200  # characters of a field's name
_CODING_CHARS: Final = 20
_CODINGS: Final = ("", "identity", "gzip")  # of a body
_PLACE: Final = re.compile(r"^(?P<what>.*?)(?: - at `(?P<where>[^`]*)`)?$", re.DOTALL)


class Budget:
    """The bytes of all bodies that are held at once."""

    def __init__(self, size: int = limits.API_BODIES_BYTES) -> None:
        self._left = size

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold so many bytes; ApiError (429) where others hold too many."""
        if size > self._left:
            raise busy("other requests hold as much data as this peer takes; try again later")
        self._left -= size
        try:
            yield
        finally:
            self._left += size


def check_kind(request: web.Request, kinds: tuple[str, ...]) -> None:
    """ApiError (415) for a body that is neither JSON nor of one of the ``kinds``."""
    if request.content_type.startswith((_JSON, *kinds)):
        return
    able = " or ".join([_JSON, *(f"{kind}*" if kind.endswith("/") else kind for kind in kinds)])
    text = f"send the header Content-Type: {able}"
    if _PICTURE in kinds:
        is_form = request.content_type.startswith(_FORM)
        what = "no form, but the file itself" if is_form else "a file"
        address = f"http://{request.host}{request.path}?model=NAME"
        text += (
            f", and {what} like this: curl '{address}' -H 'Content-Type: image/jpeg' "
            "--data-binary @photo.jpg"
        )
    raise ApiError(415, text, "unsupported_media_type")


def check_coding(request: web.Request) -> None:
    """ApiError (415) for a body that is compressed in a way that is not taken."""
    if request.headers.get("Content-Encoding", "").strip().lower() not in _CODINGS:
        raise unknown_coding()


def unknown_coding() -> ApiError:
    """What is said of such a body; aiohttp finds some of them before there is a request."""
    text = (
        "the body of the request is compressed in a way that is not taken, as its header "
        "Content-Encoding says: compress it with gzip, or send it as it is and leave that header "
        "out"
    )
    able = {"Accept-Encoding": "gzip", "Connection": "close"}
    return ApiError(415, text, "unsupported_encoding", headers=able)


def expected_bytes(request: web.Request, limit: int) -> int:
    """The body's size as announced, ``limit`` where it is not; ApiError (413) past the limit."""
    size = request.content_length
    if size is not None and size > limit:
        raise _too_large(limit)
    return limit if size is None else size


async def read_body(request: web.Request, limit: int, within_s: float) -> bytes:
    """All bytes of the body.

    Raises:
        ApiError: It is too large, or comes too slowly.
    """
    parts: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout(within_s):
            while part := await request.content.read(_CHUNK_BYTES):
                parts.append(part)
                total += len(part)
                if total > limit:
                    raise _too_large(limit)
    except TimeoutError:
        text = f"the body of the request did not come within {within_s:g} s; send it again"
        raise ApiError(408, text, "timeout", headers={"Connection": "close"}) from None
    except web.RequestPayloadError as error:
        raise _broken(request, error) from None
    except ValueError:  # the chunked encoding or compression is broken
        raise bad("the body of the request is malformed HTTP; send it again") from None
    return b"".join(parts)


def _broken(request: web.Request, error: web.RequestPayloadError) -> ApiError:
    """Why a body could not be read to its end."""
    if not isinstance(error.__cause__, ContentEncodingError):
        return bad("the body of the request ended too early; send it again")
    coding = request.headers.get("Content-Encoding", "")[:_CODING_CHARS]
    return bad(
        f"the body of the request is not {coding!a}, as its header Content-Encoding says: leave "
        "that header out, or compress the body",
        code="invalid_encoding",
    )


def decode(data: bytes, kind: type[T]) -> T:
    """JSON as a struct.

    Raises:
        ApiError: It is no JSON, or has a field twice or of a wrong type or range; it is named.
    """
    try:
        found = _decode(data, kind)
        if field := repeated(data):
            shown = field[:_SHOWN]
            text = f"{shown} comes twice in the JSON of the request: send it once"
            raise bad(text, shown, "repeated")
        return found
    except msgspec.ValidationError as error:
        raise _invalid(str(error), data, kind) from None
    except RecursionError:
        raise bad("the JSON of the request is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = f"the body must be a JSON object: {_no_json(data, error)}"
        raise bad(text, code="invalid_json") from None


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    return msgspec.convert(_whole(msgspec.json.decode(data)), kind)


def _whole(value: Any) -> Any:
    """The value with 3.0 as 3: JSON has one kind of number, and many programs write the point."""
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_json(data: bytes, error: Exception) -> str:
    """Why bytes are no JSON."""
    if not data.strip():
        return "it is empty"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if ("surrogate" in str(error) or "truncated" in str(error)) and (half := _half(data)):
        return half
    if "truncated" in str(error):
        return "it ends too early"
    found = re.search(r"\(byte (\d+)\)", str(error))
    return f"it is no JSON{f' from its byte {found[1]} on' if found else ''}"


def _half(data: bytes) -> str:
    """Where a character is written by half of its two escapes; "" if nowhere, or at the end."""
    match = _HALF.match(data)
    if match is None or match.end() == len(data):
        return ""
    return (
        f"{match['half'].decode()} at its byte {match.start('half')} is half of a surrogate pair: "
        "write both halves, or the character itself"
    )


def _invalid(text: str, data: bytes, kind: type) -> ApiError:
    """``Expected `int`, got `str` - at `$.n``` as the field and a sentence."""
    match = _PLACE.match(text)
    what, where = (match["what"], match["where"] or "") if match else (text, "")
    field = where.removeprefix("$").removeprefix(".")[:_SHOWN]
    missing = re.search(r"missing required field `(\w+)`", what)
    unknown = re.search(r"unknown field `(.*)`", what, re.DOTALL)
    if missing:
        field = f"{field}.{missing[1]}".removeprefix(".")
        return bad(f"{field} is missing", field, "missing")
    if unknown:
        field = f"{field}.{unknown[1][:100]}".removeprefix(".")
        return bad(f"there is no field {field!a}; /docs lists those that there are", field)
    text = sentence(kind, as_it_came(data), where)
    return bad(text, field.removesuffix("[...]") or None, "invalid_type")


def _too_large(limit: int) -> ApiError:
    text = f"the body of the request is larger than the {limit / limits.MIB:.3g} MiB taken here"
    return ApiError(413, text, "too_large", headers={"Connection": "close"})
