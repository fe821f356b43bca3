"""What stands after the question mark of an address: refused where it would mean nothing."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from astra_mesh.web.errors import bad

API: Final = "/v1/"
JSON: Final = "application/json"
CLASSIFY: Final = "/v1/images/classify"
_SHOWN: Final = 100  # characters of a name


def takes_picture(request: web.Request) -> bool:
    """Whether the body is a picture itself, so that the address says what is asked."""
    return request.path == CLASSIFY and request.content_type.startswith("image/")


def check_query(request: web.Request) -> None:
    """ApiError for a field that an address of the API does not take: it may be a slip.

    Other addresses take what monitors and browsers add, and ignore it.
    """
    if not request.path.startswith(API) or request.match_info.http_exception is not None:
        return
    is_file = request.path == CLASSIFY and not request.content_type.startswith(JSON)
    known = ("model", "top") if is_file else ()
    for name in request.query:
        if name not in known:
            raise bad(_sentence(request, name[:_SHOWN], known), name[:_SHOWN])


def _sentence(request: web.Request, name: str, known: tuple[str, ...]) -> str:
    if known:
        return f"there is no field {name!a} in this address; it takes {' and '.join(known)}"
    text = f"this address takes no fields after a question mark, but {name!a} came"
    return f"{text}: put it into the JSON of the body" if request.method == "POST" else text
