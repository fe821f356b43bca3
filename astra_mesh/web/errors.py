"""Every error as OpenAI's clients expect it: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiohttp import web

from astra_mesh import errors, limits
from astra_mesh.errors import AstraMeshError
from astra_mesh.web.jsons import json_response

log = logging.getLogger(__name__)

INTERNAL: Final = "the peer met an error of its own; its log says more"
_BY_STATUS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# The first class that fits counts.
_STATUS: Final[tuple[tuple[type[AstraMeshError], int], ...]] = (
    (errors.InputError, 400),
    (errors.UnknownModelError, 404),
    (errors.CodebookError, 400),  # the codec that the request names
    (errors.BusyError, 429),
    (errors.DeadlineError, 504),
    (errors.PeerLostError, 503),
    (errors.NoPeerError, 503),
    (errors.RefusedError, 503),
    (errors.CancelledRequestError, 503),
    (errors.PairingError, 409),
    (errors.UnsupportedModelError, 500),
    (errors.BadBundleError, 500),
)
# Although it is a fault of this side: the sentence says what to do there.
_TOLD: Final = (errors.UnsupportedModelError, errors.BadBundleError)
_CODES: Final = {"unknown-model": "model_not_found", "prompt-too-long": "context_length_exceeded"}
# The field to blame, where the error tells it.
_PARAMS: Final[tuple[tuple[type[AstraMeshError], str], ...]] = (
    (errors.UnknownModelError, "model"),
    (errors.WrongTaskError, "model"),
    (errors.CodecError, "x_astra_mesh.codec"),
    (errors.CodebookError, "x_astra_mesh.codec"),
    (errors.RateError, "x_astra_mesh.rate"),
)


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: a sentence that a person can act on.
        code: a stable word.
        param: the field of the request that is to blame.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _BY_STATUS.get(self.status, fallback)
        about = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": about}

    def response(self) -> web.Response:
        """The whole answer."""
        return json_response(self.body(), status=self.status, headers=self.headers)


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """The caller's mistake."""
    return ApiError(400, message, code, param)


def busy(message: str, retry_s: float = limits.API_RETRY_S) -> ApiError:
    """Come back later."""
    return ApiError(429, message, "busy", headers={"Retry-After": str(math.ceil(retry_s))})


def api_error(error: BaseException, field: str | None = None) -> ApiError:
    """What a caller is told about any error; what is no sentence for people goes to the log.

    ``field`` holds what the model reads: it is to blame for an input that cannot be used.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AstraMeshError):
        return _of_mesh(error, field)
    if isinstance(error, web.HTTPException):
        return _of_http(error)
    log.error("a request of the API failed", exc_info=error)
    return ApiError(500, INTERNAL, "internal")


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Raise errors of the mesh as ApiError, which names that field if its value cannot be used."""
    try:
        yield
    except AstraMeshError as error:
        raise api_error(error, field) from None


def _of_mesh(error: AstraMeshError, field: str | None) -> ApiError:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500 and not isinstance(error, _TOLD):
        log.error("a request of the API failed: %s", error.message)
        return ApiError(500, INTERNAL, "internal")
    if isinstance(error, errors.BusyError):
        return busy(error.message, error.retry_s)
    code = _CODES.get(error.code, error.code.replace("-", "_"))
    input_field = field if isinstance(error, errors.InputError) else None
    param = next((name for kind, name in _PARAMS if isinstance(error, kind)), input_field)
    return ApiError(status, error.message, code, param)


def _of_http(error: web.HTTPException) -> ApiError:
    if isinstance(error, web.HTTPNotFound):
        text = "there is nothing at this address; /docs lists what there is"
        return ApiError(404, text, "unknown_url")
    if isinstance(error, web.HTTPMethodNotAllowed):
        able = ", ".join(sorted(error.allowed_methods))
        text = f"this address takes {able}, not {error.method[:20]!a}"
        return ApiError(405, text, "method_not_allowed", headers={"Allow": able})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ApiError(413, "the body of the request is too large", "too_large")
    if isinstance(error, web.HTTPUpgradeRequired):
        return ApiError(error.status, error.reason, "upgrade_required")
    return ApiError(error.status, error.reason, "http")
