"""The check of answers knows ties, and nothing else, as an excuse."""

from __future__ import annotations

from typing import Any

import pytest

from tools.lab import oracle
from tools.lab.oracle import departs

PROMPT = (46, 277, 12, 199, 3, 91)
NEW = 8


def question(**options: Any) -> dict[str, Any]:
    given = {"codec": "fp32", "max_new_tokens": NEW} | options
    return {"task": "generate", "tokens": PROMPT, "options": given}


def alone() -> list[int]:
    return list(oracle._alone(PROMPT, NEW))


def test_the_answer_of_one_device_is_right() -> None:
    assert departs(question(), alone()) == ""
    assert departs(question(use="solo", codec=""), alone()) == ""


@pytest.mark.parametrize("at", [0, 3, NEW - 1])
def test_another_token_is_wrong(at: int) -> None:
    tokens = alone()
    tokens[at] = (tokens[at] + 1) % 500
    assert "instead of" in departs(question(), tokens)


@pytest.mark.parametrize("count", [0, NEW - 1, NEW + 1])
def test_too_few_and_too_many_are_wrong(count: int) -> None:
    assert departs(question(), (alone() * 2)[:count])


def test_codes_may_change_the_answer() -> None:
    assert departs(question(codec=""), [1, 2, 3]) == ""


def test_of_two_tokens_that_are_equally_likely_either_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As found by an hour of requests: two logits were the same to the last bit."""
    model, _ = oracle._model()
    first, other = alone()[0], 499
    logits = model.logits

    def tied(hidden: Any) -> Any:
        rows = logits(hidden).clone()
        rows[:, other] = rows.max(dim=1).values - 1e-5
        return rows

    monkeypatch.setattr(model, "logits", tied)
    monkeypatch.setattr(oracle, "_alone", lambda prompt, new: tuple([first] * new))
    assert departs(question(), [other] * NEW) == ""
    assert departs(question(), [(other - 7)] * NEW)
