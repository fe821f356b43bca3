"""Stop strings are found however the text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_mesh.web.stops import StopFinder


def found(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    finder = StopFinder(stops)
    text = "".join([*(finder.push(piece) for piece in pieces), finder.flush()])
    return text, finder.found


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "ended"),
    [
        (["one ", "two"], [], "one two", False),
        (["one ", "two"], ["x"], "one two", False),
        (["one STOP two"], ["STOP"], "one ", True),
        (["one S", "T", "OP two"], ["STOP"], "one ", True),
        (["one ST", "AR"], ["STOP"], "one STAR", False),
        (["aaab"], ["aab"], "a", True),
        (["a", "a", "a", "b"], ["aab"], "a", True),
        (["xab"], ["ab", "xab"], "", True),
        (["abcd"], ["bcd", "c"], "ab", True),
        (["STOP"], ["STOP"], "", True),
    ],
)
def test_known_cases(pieces: list[str], stops: list[str], text: str, ended: bool) -> None:
    assert found(pieces, stops) == (text, ended)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_the_cuts_do_not_matter(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    assert found(pieces, stops) == found([text], stops) == found(list(text), stops)


def test_what_cannot_belong_to_a_stop_string_comes_at_once() -> None:
    finder = StopFinder(["\n\n"])
    assert finder.push("a line\n") == "a line"
    assert finder.push("another") == "\nanother"
    assert finder.push(" one\n\nafter") == " one"
    assert finder.push("more") == ""
