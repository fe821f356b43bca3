"""Fields about the cost of codes: what a peer may say there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from astra_mesh.errors import ProtocolError
from astra_mesh.wire.codec import decode, encode
from astra_mesh.wire.messages import CodebookOffer, ExpectedCost, Options, Status
from tools import make_vectors as vectors

COST: dict[str, Any] = {
    "measure": "cosine",
    "loss": 0.5,
    "peers": 4,
    "data": "x.txt",
    "sequences": 3,
}


def book(**change: Any) -> CodebookOffer:
    return msgspec.structs.replace(vectors.BOOK, **change)


def status(offer: CodebookOffer) -> Status:
    return Status(models=[msgspec.structs.replace(vectors.OFFER, codebooks=[offer])])


def test_costs_come_through() -> None:
    assert decode(encode(status(book()))) == status(book())
    assert (
        decode(encode(status(book(encode_token_s=[], decode_token_s=[], project_token_s=[]))))
        is not None
    )


@pytest.mark.parametrize(
    "change",
    [
        {"encode_token_s": []},
        {"decode_token_s": [1.0]},
        {"project_token_s": [1.0]},
        {"project_token_s": [1.0, float("nan")]},
        {"encode_token_s": [], "decode_token_s": [], "project_token_s": [1.0, 1.0]},
        {"encode_token_s": [1.0] * 3, "decode_token_s": [1.0] * 3},
        {"encode_token_s": [-1.0, 1.0]},
        {"decode_token_s": [float("nan"), 1.0]},
        {"decode_token_s": [float("inf"), 1.0]},
        {"rates": [8] * 65, "encode_token_s": [1.0] * 65, "decode_token_s": [1.0] * 65},
    ],
)
def test_costs_that_do_not_fit_the_rates(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        encode(status(book(**change)))


@pytest.mark.parametrize("loss", [-0.1, 1.5, float("nan")])
def test_a_wanted_loss_out_of_range(loss: float) -> None:
    ask = msgspec.structs.replace(
        vectors.MESSAGES["ask with a loss"], options=Options(max_loss=loss)
    )
    with pytest.raises(ProtocolError):
        encode(ask)


@pytest.mark.parametrize(
    "change",
    [
        {"measure": ""},
        {"measure": "two\nlines"},
        {"measure": "x" * 33},
        {"loss": -0.5},
        {"loss": float("inf")},
        {"peers": 0},
        {"peers": 65},
        {"data": ""},
        {"data": "a\x1bb"},
        {"data": "x" * 65},
        {"sequences": -1},
    ],
)
@pytest.mark.parametrize("name", ["planned with an expected cost", "result"])
def test_an_expected_cost_out_of_range(name: str, change: dict[str, Any]) -> None:
    cost, message = ExpectedCost(**COST | change), vectors.MESSAGES[name]
    if name == "result":
        report = msgspec.structs.replace(vectors.REPORT, expected=cost)
        message = msgspec.structs.replace(message, report=report)
    else:
        message = msgspec.structs.replace(message, expected=cost)
    with pytest.raises(ProtocolError):
        encode(message)
