"""Bodies, errors and the guard, without a socket."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_mesh import errors, limits
from astra_mesh.bundle.quality import Measured, Recommended, TaskQuality
from astra_mesh.errors import InputError
from astra_mesh.web.answers import QualityAnswer
from astra_mesh.web.body import Budget, decode
from astra_mesh.web.config import ApiConfig
from astra_mesh.web.errors import INTERNAL, ApiError, api_error, bad, blaming
from astra_mesh.web.guard import Guard
from astra_mesh.web.openapi import description
from astra_mesh.web.page import page
from astra_mesh.web.pictures import picture_bytes
from astra_mesh.web.quality import _of_task
from astra_mesh.web.requests import ChatRequest, CompletionRequest
from astra_mesh.web.server import make_app
from astra_mesh.web.side import side_by_side
from astra_mesh.web.templates import plain_message
from astra_mesh.web.texts import prompts_of
from astra_mesh.web.unsupported import check_supported

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_other_bytes_are_refused_by_a_sentence(data: bytes) -> None:
    for kind in (CompletionRequest, ChatRequest):
        with pytest.raises(ApiError) as error:  # none of these is a request by chance
            decode(data, kind)
        assert error.value.status == 400
        assert error.value.message


def test_whole_numbers_may_have_a_point() -> None:
    asked = decode(b'{"model": "a", "prompt": [1.0, 2], "max_tokens": 3.0}', CompletionRequest)
    assert (asked.prompt, asked.max_tokens) == ([1, 2], 3)
    with pytest.raises(ApiError, match=r"max_tokens must be a whole number"):
        decode(b'{"model": "a", "prompt": "b", "max_tokens": 3.5}', CompletionRequest)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ('{"prompt": "a"}', "model is missing", "model"),
        ('{"model": "a", "prompt": "a", "x": 1}', "there is no field 'x'", "x"),
        ('{"model": "a", "prompt": "a", "stop": [1]}', r"stop\[0\] must be a text", "stop[0]"),
        ('{"model": "a", "prompt": "b", "prompt": "c"}', "prompt comes twice in", "prompt"),
        ('{"model": "a", "prompt": "b", "\\u0070rompt": "c"}', "prompt comes twice", "prompt"),
        (
            '{"model": "a", "prompt": "b", "x_astra_mesh": {"use": "all", "use": "solo"}}',
            "use comes twice",
            "x_astra_mesh.use",
        ),
        ("", "it is empty", None),
        ("[]", "the body must be an object, but an empty list came", None),
        ('{"model": "a"', "it ends too early", None),
    ],
)
def test_the_field_to_blame_is_named(body: str, message: str, param: str | None) -> None:
    with pytest.raises(ApiError, match=message) as error:
        decode(body.encode(), CompletionRequest)
    assert error.value.param == param


def test_a_field_that_comes_twice_is_named_wherever_it_is() -> None:
    one = '{"role": "user", "content": "a"%s}'
    body = '{"model": "a", "messages": [%s, %s]}'
    with pytest.raises(ApiError) as error:
        decode((body % (one % "", one % ', "role": "system"')).encode(), ChatRequest)
    assert (error.value.param, error.value.code) == ("messages[1].role", "repeated")
    decode((body % (one % "", one % "")).encode(), ChatRequest)  # the same field of two objects


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{}]}, "tools"),
        ({"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True, "top_logprobs": 2}, None),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 0}, "top_logprobs"),
        ({"logprobs": False, "frequency_penalty": 0, "logit_bias": {}}, None),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {"include_usage": False}, "stream": False}, "stream_options"),
        ({"stream_options": None}, None),
        ({"stream_options": {"include_usage": True}, "stream": True}, None),
    ],
)
def test_what_asks_for_nothing_passes(fields: dict[str, Any], param: str | None) -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": "b"}], **fields}
    asked = decode(json.dumps(body).encode(), ChatRequest)
    if param is None:
        check_supported(asked)
        return
    with pytest.raises(ApiError) as error:
        check_supported(asked)
    assert error.value.param == param


def test_messages_that_are_no_text_are_refused() -> None:
    body = {
        "model": "a",
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
        ],
    }
    asked = decode(json.dumps(body).encode(), ChatRequest)
    with pytest.raises(ApiError, match="'image_url'") as error:
        plain_message(0, asked.messages[0])
    assert error.value.param == "messages[0].content[0]"


def test_prompts() -> None:
    assert prompts_of("a", "input") == ["a"]
    assert prompts_of([1, 2], "input") == [[1, 2]]
    assert prompts_of(["a", [1]], "input") == ["a", [1]]
    with pytest.raises(ApiError, match="not both") as error:
        prompts_of(["a", 1], "input")
    assert error.value.param == "input"


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.EmptyPromptError("empty"), 400, "empty_prompt"),
        (errors.PromptTooLongError("long"), 400, "context_length_exceeded"),
        (errors.BadImageError("bad"), 400, "bad_image"),
        (errors.UnknownModelError("none"), 404, "model_not_found"),
        (errors.CodebookError("none"), 400, "codebook"),
        (errors.BusyError("full"), 429, "busy"),
        (errors.PeerLostError("gone"), 503, "peer_lost"),
        (errors.RefusedError("no"), 503, "refused"),
        (errors.NoPeerError("no"), 503, "no_peer"),
        (errors.DeadlineError("late"), 504, "deadline"),
        (errors.ProtocolError("bytes"), 500, "internal"),
        (errors.BadBundleError("words/model.safetensors is cut off"), 500, "bad_bundle"),
        (errors.InternalError("trace"), 500, "internal"),
        (RuntimeError("trace"), 500, "internal"),
    ],
)
def test_errors_have_their_status(error: Exception, status: int, code: str) -> None:
    found = api_error(error)
    assert (found.status, found.code) == (status, code)
    assert found.message == (INTERNAL if code == "internal" else str(error))
    assert (found.headers.get("Retry-After") == "1") == (status == 429)
    assert set(found.body()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("error", "param"),
    [
        (errors.EmptyPromptError("empty"), "input"),
        (errors.PromptTooLongError("long"), "input"),
        (errors.InputError("a token id"), "input"),
        (errors.BadImageError("bad"), "input"),
        (errors.WrongTaskError("vit"), "model"),
        (errors.UnknownModelError("none"), "model"),
        (errors.CodecError("none"), "x_astra_mesh.codec"),
        (errors.CodebookError("none"), "x_astra_mesh.codec"),
        (errors.RateError("none"), "x_astra_mesh.rate"),
        (errors.PeerLostError("gone"), None),
        (errors.BusyError("full"), None),
        (errors.InternalError("trace"), None),
        (bad("other", "n"), "n"),
    ],
)
def test_an_error_of_the_mesh_names_the_field_to_blame(error: Exception, param: str | None) -> None:
    assert api_error(error, "input").param == param
    with pytest.raises(ApiError) as raised, blaming("input"):
        raise error
    assert raised.value.param == param


# --- who may ask ----------------------------------------------------------------------------------


def test_a_token_must_not_be_guessable() -> None:
    for token in ("", "short", "with space in the middle", "\u00e9" * 20, "x" * 15):
        with pytest.raises(InputError, match="secrets"):
            ApiConfig(token=token)
    ApiConfig(token="x" * limits.API_TOKEN_CHARS)


def test_a_name_of_this_machine_may_be_added() -> None:
    with pytest.raises(ApiError):
        Guard(ApiConfig()).check("/v1/models", {"Host": "kitchen.lan:7476"})
    Guard(ApiConfig(hosts=("Kitchen.lan",))).check("/v1/models", {"Host": "kitchen.lan:7476"})


LINK = {
    "Host": "127.0.0.1:7476",
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
}


@pytest.mark.parametrize(
    ("path", "change", "passes"),
    [
        ("/", {}, True),
        ("/docs", {}, True),
        ("/v1/models", {}, False),
        ("/metrics", {}, False),
        ("/page/app.js", {}, False),
        ("/live", {}, False),
        ("/", {"Sec-Fetch-Dest": "iframe"}, False),
        ("/", {"Sec-Fetch-Dest": "object"}, False),
        ("/", {"Sec-Fetch-Mode": "no-cors"}, False),
        ("/", {"Origin": "https://evil.example"}, False),
        ("/", {"Host": "evil.example"}, False),
    ],
)
def test_a_link_of_another_site_leads_to_the_page_only(
    path: str, change: dict[str, str], passes: bool
) -> None:
    guard = Guard(ApiConfig())
    if passes:
        guard.check(path, LINK | change)
        return
    with pytest.raises(ApiError) as error:
        guard.check(path, LINK | change)
    assert error.value.status == 403


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_headers_pass_or_are_refused(host: str, token: str) -> None:
    guard = Guard(ApiConfig(token="t" * 20))
    with pytest.raises(ApiError) as error:
        guard.check("/v1/models", {"Host": host, "Authorization": f"Bearer {token}"})
    assert error.value.status in (401, 403)


def test_the_budget_comes_back() -> None:
    budget = Budget(10)
    with budget.reserve(6):
        with pytest.raises(ApiError) as error, budget.reserve(6):
            pass
        assert error.value.status == 429
        with budget.reserve(4):
            pass
    with budget.reserve(10):
        pass


# --- the rest -------------------------------------------------------------------------------------


def test_pictures_in_base64() -> None:
    assert picture_bytes("aGVs\nbG8=") == b"hello"
    assert picture_bytes("data:image/png;base64,aGVsbG8=") == b"hello"
    for text in ("aGVsbG8", "data:image/png,abc", "data:", "file:///etc/passwd", "\u00e9"):
        with pytest.raises(ApiError, match="image"):
            picture_bytes(text)


async def test_side_by_side_keeps_the_order_and_raises_the_error_itself() -> None:
    async def double(x: int) -> int:
        if x > 5:
            raise InputError("too much")
        return 2 * x

    assert await side_by_side(double, [1, 2, 3], 2) == [2, 4, 6]
    with pytest.raises(InputError, match="too much"):
        await side_by_side(double, [1, 9, 3], 2)


def test_the_page_has_every_address_and_loads_nothing() -> None:
    text = page()
    for path in description()["paths"]:
        assert path in text
    assert "http://" not in text.replace("http://127.0.0.1", "")
    assert "<script" not in text
    assert "src=" not in text


def test_every_address_of_the_api_is_described() -> None:
    state: Any = SimpleNamespace(config=ApiConfig(), peer=None, envelopes=None)
    app = make_app(state, [])
    served = {
        (one.resource.canonical, one.method.lower())
        for one in app.router.routes()
        if one.resource is not None and one.resource.canonical.startswith("/v1/")
    }
    paths = description()["paths"]
    told = {(path, one) for path in paths for one in paths[path] if path.startswith("/v1/")}
    assert {one for one in served if one[1] != "head"} == told


def test_a_models_quality_is_as_described() -> None:
    best = Recommended("astra", "ab" * 32, 2, 16, 4, 0.01)
    row = Measured("astra", "ab" * 32, 0, 2, 16, 4, {"nats_increase": 0.01})
    run = TaskQuality(
        data="valid.txt",
        sequences=9,
        tokens=900,
        class_token="none",
        shards="even",
        measure="perplexity",
        limit=0.02,
        baseline={"perplexity": 5.0},
        definitions={},
        measured=[row],
    )
    best_of = msgspec.structs.replace(run, recommended=best)
    tasks = {"generate": _of_task(best_of), "embed": _of_task(run)}
    answer = {"object": "quality", "model": "words", "tasks": tasks}
    assert msgspec.to_builtins(msgspec.convert(answer, QualityAnswer)) == answer


def test_the_description_tells_which_addresses_may_refuse_a_field() -> None:
    for path, methods in description()["paths"].items():
        for operation in methods.values():
            assert ("400" in operation["responses"]) == path.startswith("/v1/"), path


def test_what_changes_nothing_stands_last_and_is_said_to() -> None:
    schemas = description()["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest", "EmbeddingRequest", "ClassifyRequest"):
        fields = schemas[name]["properties"]
        order = list(fields)
        assert set(order[: len(schemas[name]["required"])]) == set(schemas[name]["required"])
        idle = [one for one in order if fields[one].get("description") == "Changes nothing here."]
        assert order[-len(idle) :] == idle
        assert {"user", "metadata", "store"} <= set(idle)
        assert "x_astra_mesh" not in idle
    assert page().index("<code>prompt</code>") < page().index("<code>user</code>")
    assert "Changes nothing here." in page()


def test_every_address_to_pair_at_has_its_pattern() -> None:
    at = description()["components"]["schemas"]["JoinRequest"]["properties"]["at"]
    assert re.search(at["items"]["pattern"], "kitchen:7475")
    assert not re.search(at["items"]["pattern"], "kitchen:0")


def test_every_reference_of_the_description_resolves() -> None:
    schemas = description()["components"]["schemas"]
    text = json.dumps(description())
    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(schemas)
