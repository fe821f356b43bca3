"""Sentences about fields that hold what they may not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_mesh import limits
from astra_mesh.web.body import decode
from astra_mesh.web.errors import ApiError
from astra_mesh.web.requests import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    JoinRequest,
)

BASE: dict[type, dict[str, Any]] = {
    CompletionRequest: {"model": "a", "prompt": "b"},
    ChatRequest: {"model": "a", "messages": [{"role": "user", "content": "b"}]},
    EmbeddingRequest: {"model": "a", "input": "b"},
    ClassifyRequest: {"model": "a", "image": "b"},
    JoinRequest: {"code": "b"},
}
MESH = "x_astra_mesh"
ROLES = 'one of "assistant", "developer", "function", "system", "tool", "user"'
STOPS = "a text of 1 to 256 characters or a list of up to 4 items or null"
SEEDS = f"a whole number from {-(2**63)} to {2**63 - 1} or null"
HALF = "is half of a surrogate pair: write both halves, or the character itself"
INPUTS = (
    f"a text of up to {limits.TEXT_BYTES} characters or a list of 1 to {limits.PROMPT_TOKENS} items"
)
USER = {"role": "user"}
# The fields, the one to blame, what was wanted, what came.
TEXT: list[tuple[dict[str, Any], str, str, str]] = [
    ({"n": "many"}, "n", "a whole number from 1 to 32 or null", '"many"'),
    ({"logprobs": 6}, "logprobs", "a whole number from 0 to 5 or null", "6"),
    ({"temperature": -0.5}, "temperature", "a number from 0 to 2 or null", "-0.5"),
    ({"top_p": 0}, "top_p", "a number above 0 and up to 1 or null", "0"),
    ({"best_of": 0}, "best_of", "a whole number of at least 1 or null", "0"),
    ({"stream": "yes"}, "stream", "true or false or null", '"yes"'),
    ({MESH: {"use": "some"}}, f"{MESH}.use", 'one of "all", "auto", "solo"', '"some"'),
    ({MESH: {"max_peers": 0}}, f"{MESH}.max_peers", "a whole number from 1 to 64 or null", "0"),
    ({MESH: "all"}, MESH, "an object", '"all"'),
    ({"stop": ["a", ""]}, "stop[1]", "a text of 1 to 256 characters", "an empty text"),
    ({"stop": ["a"] * 5}, "stop", STOPS, "a list of 5"),
    ({"prompt": [[1, -1]]}, "prompt[0][1]", "a whole number from 0 to 2147483647", "-1"),
    ({"seed": 10**400}, "seed", SEEDS, "a number of more than 19 digits"),
    ({"model": "m" * 65}, "model", "a text of 1 to 64 characters", "a text of 65 characters"),
]
CHAT: list[tuple[dict[str, Any], str, str, str]] = [
    ({"messages": [{"role": "robot"}]}, "messages[0].role", ROLES, '"robot"'),
    (
        {"messages": [USER | {"content": [{"type": 3}]}]},
        "messages[0].content[0].type",
        "a text",
        "3",
    ),
    ({"messages": ["hello"]}, "messages[0]", "an object", '"hello"'),
]
CASES = [
    *((CompletionRequest, *case) for case in TEXT),
    *((ChatRequest, *case) for case in CHAT),
    (EmbeddingRequest, {"input": {"text": "a"}}, "input", INPUTS, "an object"),
    (ClassifyRequest, {"top": 101}, "top", "a whole number from 1 to 100", "101"),
    (JoinRequest, {"at": ["a"] * 5}, "at", "a list of up to 4 items", "a list of 5"),
]


@pytest.mark.parametrize(
    ("kind", "fields", "param", "wanted", "came"),
    CASES,
    ids=[f"{case[0].__name__}-{case[2]}" for case in CASES],
)
def test_what_was_wanted_and_what_came(
    kind: type, fields: dict[str, Any], param: str, wanted: str, came: str
) -> None:
    with pytest.raises(ApiError) as error:
        decode(json.dumps(BASE[kind] | fields).encode(), kind)
    assert error.value.body()["error"] == {
        "message": f"{param} must be {wanted}, but {came} came",
        "type": "invalid_request_error",
        "param": param,
        "code": "invalid_type",
    }


def test_of_an_object_with_free_keys_no_value_is_named() -> None:
    with pytest.raises(ApiError) as error:
        decode(b'{"model": "a", "prompt": "b", "metadata": {"c": 1}}', CompletionRequest)
    assert error.value.message == "each value of metadata must be a text"
    assert error.value.param == "metadata"


def test_a_number_that_no_program_can_hold() -> None:
    with pytest.raises(ApiError) as error:
        decode(b'{"model": "a", "prompt": "b", "temperature": 1e999}', CompletionRequest)
    assert error.value.message == "temperature must be a number from 0 to 2 or null"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "it is empty"),
        (b'{"model": "a"', "it ends too early"),
        (b'{"model": NaN}', "it is no JSON from its byte 10 on"),
        (b'{"model": "\xff"}', "it is not UTF-8 text"),
        (rb'{"model": "\ud800"}', rf"\ud800 at its byte 11 {HALF}"),
        (rb'{"model": "\udc00"}', rf"\udc00 at its byte 11 {HALF}"),
        (rb'{"model": "\\ \ud83d\ude00 \uD83D and more"}', rf"\uD83D at its byte 27 {HALF}"),
        (rb'{"model": "\ud83d\ude00', "it ends too early"),
        (rb'{"model": "\ud83d', "it ends too early"),
        (rb'{"model": "\\ud800', "it ends too early"),
    ],
)
def test_why_bytes_are_no_json(body: bytes, why: str) -> None:
    with pytest.raises(ApiError) as error:
        decode(body, CompletionRequest)
    assert error.value.message == f"the body must be a JSON object: {why}"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["model", "prompt", "stop", "n", "metadata", "x_astra_mesh"]), values
    )
)
def test_no_word_of_the_parser_comes_through(fields: dict[str, Any]) -> None:
    body = BASE[CompletionRequest] | fields | {"temperature": "hot"}
    with pytest.raises(ApiError) as error:
        decode(json.dumps(body).encode(), CompletionRequest)
    assert error.value.status == 400
    assert "Expected" not in error.value.message
    assert "Invalid" not in error.value.message
