"""The OpenAPI description of the API, made from the structs that read the requests."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec

from astra_mesh._version import __version__
from astra_mesh.client.addresses import PATTERN
from astra_mesh.web.answers import (
    ChatAnswer,
    ClassifyAnswer,
    CompletionAnswer,
    EmbeddingAnswer,
    ErrorAnswer,
    HealthAnswer,
    JoinedAnswer,
    LeftAnswer,
    MeshAnswer,
    ModelAnswer,
    ModelsAnswer,
    OpenedAnswer,
    PairingAnswer,
    QualityAnswer,
)
from astra_mesh.web.query import API
from astra_mesh.web.requests import (
    IGNORED,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    JoinRequest,
    NothingRequest,
    UnpairRequest,
)
from astra_mesh.web.unsupported import ALLOWED

_REF: Final = "#/components/schemas/{name}"
_JSON: Final = "application/json"
_REFUSALS: Final = {
    400: "The request cannot be used; `param` names the field, if one is to blame.",
    401: "The peer wants its API token.",
    403: "A page of another site, or a name that is not this machine's.",
    404: "There is no such model, or device.",
    408: "The body came too slowly.",
    409: "The other device did not take the code, or it cannot be paired with; or this one has no "
    "mesh to leave.",
    413: "The body is too large.",
    415: "The body is of a kind that this address does not take, or compressed by something else "
    "than gzip; the sentence says which.",
    429: "The peer has as many requests as it takes; Retry-After says when to ask again.",
    500: "The peer met an error of its own; its log says more.",
    503: "A peer that took part went away, or the peer has stopped.",
    504: "The request was not complete before its deadline.",
}
_OF_ALL: Final = (401, 403, 429, 500)
_OF_ASKING: Final = (400, 404, 408, 413, 415, 503, 504)
# One event holds one chunk; OpenAPI 3.1 has no words for that.
_STREAM: Final[dict[str, Any]] = {"text/event-stream": {"schema": {}}}
_LABELS: Final = (
    "`image` is the file in base64. Or send the file itself, with its own Content-Type "
    "(image/jpeg, ...), and name the model in the address: `?model=NAME&top=5`."
)
_OF_MODEL: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "model",
            "in": "path",
            "required": True,
            "description": "Its name, or the first digits of its id.",
            "schema": {"type": "string", "minLength": 1},
        }
    ]
}
# Address, method, title, request, answer, more of the operation.
_TABLE: Final[tuple[tuple[str, str, str, Any, Any, dict[str, Any]], ...]] = (
    ("/v1/mesh", "get", "The peers of the mesh, and their links", None, MeshAnswer, {}),
    ("/v1/models", "get", "The models that can be asked for here", None, ModelsAnswer, {}),
    ("/v1/models/{model}", "get", "One model", None, ModelAnswer, _OF_MODEL),
    (
        "/v1/models/{model}/quality",
        "get",
        "What the codes cost a model in quality, by bits",
        None,
        QualityAnswer,
        _OF_MODEL,
    ),
    (
        "/v1/completions",
        "post",
        "Continue a text",
        CompletionRequest,
        CompletionAnswer,
        {},
    ),
    ("/v1/chat/completions", "post", "Answer in a conversation", ChatRequest, ChatAnswer, {}),
    ("/v1/embeddings", "post", "Vectors of texts", EmbeddingRequest, EmbeddingAnswer, {}),
    (
        "/v1/images/classify",
        "post",
        "Label a picture",
        ClassifyRequest,
        ClassifyAnswer,
        {"description": _LABELS},
    ),
    ("/v1/pairing", "get", "The devices of the mesh", None, PairingAnswer, {}),
    (
        "/v1/pairing/open",
        "post",
        "Let a device in: the only answer with the code",
        NothingRequest,
        OpenedAnswer,
        {},
    ),
    (
        "/v1/pairing/close",
        "post",
        "Let no device in any more",
        NothingRequest,
        PairingAnswer,
        {},
    ),
    (
        "/v1/pairing/join",
        "post",
        "Use the code of another device",
        JoinRequest,
        JoinedAnswer,
        {},
    ),
    (
        "/v1/pairing/unpair",
        "post",
        "Shut a device out, everywhere",
        UnpairRequest,
        PairingAnswer,
        {},
    ),
    (
        "/v1/pairing/leave",
        "post",
        "Take this device out of its mesh",
        NothingRequest,
        LeftAnswer,
        {},
    ),
    ("/health", "get", "Whether the peer runs", None, HealthAnswer, {}),
    ("/metrics", "get", "Figures for Prometheus", None, None, {}),
)
_WITH_IGNORED: Final = ("CompletionRequest", "ChatRequest", "EmbeddingRequest", "ClassifyRequest")
_TOGETHER: Final = {  # what is refused without another field
    "stream_options": "With `stream: true` only.",
    "top_logprobs": "With `logprobs: true` only.",
}
_TEXT: Final[dict[str, Any]] = {"type": "string", "minLength": 1}
_TOKEN: Final[dict[str, Any]] = {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**31}
_OPEN: Final = frozenset({"/health"})
_NEEDS_PEER: Final = frozenset({"/health", "/v1/pairing"})


@cache
def description() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    kinds = [kind for row in _TABLE for kind in row[3:5] if kind is not None]
    _, schemas = msgspec.json.schema_components([*kinds, ErrorAnswer], ref_template=_REF)
    for name in ("CompletionRequest", "ChatRequest", "EmbeddingRequest"):
        _say_more(schemas[name]["properties"])
    for name in _WITH_IGNORED:
        schemas[name]["properties"] = _in_order(schemas[name])
    schemas["JoinRequest"]["properties"]["at"]["items"]["pattern"] = PATTERN
    paths: dict[str, Any] = {}
    for path, method, title, asked, answer, more in _TABLE:
        paths[path] = {method: _operation(path, title, asked, answer) | more}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "astra_mesh",
            "version": __version__,
            "description": "One peer of a mesh, asked in the manner of OpenAI's API.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _say_more(fields: dict[str, Any]) -> None:
    """What the types do not say: values that are refused, and lists that hold one kind only."""
    for name in fields.keys() & ALLOWED.keys():
        allowed, sentence = ALLOWED[name]
        fields[name] = {"enum": [None, *allowed], "description": sentence}
    fields.pop("best_of", None)
    for name, sentence in _TOGETHER.items():
        if name in fields:
            fields[name] = {**fields[name], "description": sentence}
    if "dimensions" in fields:
        fields["dimensions"] = {"enum": [None], "description": "The model decides."}
    for name in fields.keys() & {"prompt", "input"}:
        fields[name] = {"anyOf": [_TEXT, _list(_TEXT), _list(_TOKEN), _list(_list(_TOKEN))]}


def _in_order(schema: dict[str, Any]) -> dict[str, Any]:
    """The fields: those that are needed first, then those that change something, then those that
    are refused, then those that change nothing."""
    fields = schema["properties"]

    def rank(name: str) -> int:
        if name in IGNORED:
            return 3
        return 0 if name in schema["required"] else 2 if name in ALLOWED else 1

    for name in fields.keys() & IGNORED:
        fields[name] = {**fields[name], "description": "Changes nothing here."}
    return {name: fields[name] for name in sorted(fields, key=rank)}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def _operation(path: str, title: str, asked: Any, answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": path.strip("/").translate(str.maketrans("/{}", "___")),
        "summary": title,
        "responses": _responses(path, asked, answer),
        # Without a token the API answers this machine only, and asks for none.
        "security": [{}] if path in _OPEN else [{}, {"token": []}],
    }
    if asked is not None:
        content = {_JSON: {"schema": _ref(asked)}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _responses(path: str, asked: Any, answer: Any) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    if answer is not None:
        content = {_JSON: {"schema": _ref(answer)}}
    if asked in (CompletionRequest, ChatRequest):
        content |= _STREAM
    found: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    codes = [*_OF_ALL, *(_OF_ASKING if asked is not None else ())]
    codes += [400] if path.startswith(API) else []  # at least for what follows a question mark
    codes += [404] if "{" in path else []
    codes += [503] if path in _NEEDS_PEER else []
    codes += [409] if asked is JoinRequest or path.endswith("/leave") else []
    error = {_JSON: {"schema": _ref(ErrorAnswer)}}
    for code in sorted(set(codes)):
        found[str(code)] = {"description": _REFUSALS[code], "content": error}
    return found


def _ref(kind: Any) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
