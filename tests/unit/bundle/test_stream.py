"""Streamed text equals decoded text, whatever the ids, and never shows half a character."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from astra_mesh.bundle.stream import TextStream
from astra_mesh.bundle.text import TextTokenizer
from tests.unit.bundle.toy_tokenizers import KINDS

TEXTS = [
    "hello world",
    "  two  spaces  and\n\nlines ",
    "na\u00efve \u20ac 5, \u65e5\u672c\u8a9e",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family \U0001f600!",
    "e\u0301 combining, \u202e bidi, \ufffd itself",
]


@cache
def tokenizer(kind: str) -> TextTokenizer:
    return TextTokenizer(KINDS[kind]())


def streamed(tok: TextTokenizer, ids: list[int]) -> tuple[list[str], str]:
    stream = tok.stream()
    return [stream.push(i) for i in ids], stream.flush()


def check(tok: TextTokenizer, ids: list[int]) -> None:
    pushed, rest = streamed(tok, ids)
    assert "".join(pushed) + rest == tok.decode(ids)


@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_ids_stream_to_their_text(kind: str, data: st.DataObject) -> None:
    tok = tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size + 2), max_size=40))
    check(tok, ids)


@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("kind", ["byte level", "llama"])
@given(text=st.text(max_size=40))
def test_any_text_streams_and_shows_no_half_characters(kind: str, text: str) -> None:
    tok = tokenizer(kind)
    ids = tok.encode(text)
    pushed, rest = streamed(tok, ids)
    assert "".join(pushed) + rest == tok.decode(ids) == text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pushed)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=60))
@pytest.mark.parametrize("kind", ["byte level", "llama"])
def test_any_bytes_stream_to_their_text(kind: str, data: bytes) -> None:
    """Mostly invalid UTF-8: cut sequences, stray continuations, bytes that never occur."""
    tok = tokenizer(kind)
    check(tok, byte_ids(kind, data))


def byte_ids(kind: str, data: bytes) -> list[int]:
    tok = KINDS[kind]()
    names = [f"<0x{b:02X}>" if kind == "llama" else _shown_byte(b) for b in data]
    return [known(tok, name) for name in names]


def known(tok: Tokenizer, piece: str) -> int:
    token_id = tok.token_to_id(piece)
    assert token_id is not None
    return token_id


def _shown_byte(value: int) -> str:
    """The character by which GPT-2's vocabulary writes a byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return chr(value if value in plain else 256 + others.index(value))


@pytest.mark.parametrize("kind", KINDS)
def test_long_streams_look_at_a_bounded_window(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer(kind)
    draw = random.Random(0)
    ids = [draw.randrange(tok.vocab_size) for _ in range(1_500)]
    expected = tok.decode(ids)
    longest = 0
    decode = tok.decode

    def watched(some: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(some))
        return decode(some)

    monkeypatch.setattr(tok, "decode", watched)
    pushed, rest = streamed(tok, ids)
    assert "".join(pushed) + rest == expected
    assert longest <= 256


def test_text_comes_at_once_where_it_is_certain() -> None:
    tok = tokenizer("byte level")
    pushed, rest = streamed(tok, tok.encode("hi \u20ac!"))
    assert (pushed, rest) == (["h", "i", " ", "", "", "\u20ac", "!"], "")


def test_a_run_of_byte_tokens_waits_for_its_end() -> None:
    tok = tokenizer("llama")
    ids = [*byte_ids("llama", "\u20ac".encode()), tok.encode("a")[-1]]
    assert streamed(tok, ids) == (["", "", "", "\u20aca"], "")
    assert streamed(tok, ids[:3]) == (["", "", ""], "\u20ac")


def test_a_long_valid_run_of_byte_tokens_is_not_held_for_ever() -> None:
    tok = tokenizer("llama")
    text = "\u65e5\u672c\u8a9e" * 100
    pushed, rest = streamed(tok, byte_ids("llama", text.encode()))
    assert "".join(pushed) + rest == text
    assert "\ufffd" not in "".join(pushed)
    assert pushed[127] == text[:42]


def test_a_long_invalid_run_ends_too() -> None:
    tok = tokenizer("llama")
    pushed, rest = streamed(tok, byte_ids("llama", b"\xff" * 400))
    assert "".join(pushed) + rest == "\ufffd" * 400
    stray = tokenizer("byte level")
    pushed, rest = streamed(stray, byte_ids("byte level", b"\xff" * 400))
    assert "".join(pushed) + rest == "\ufffd" * 400
    assert len("".join(pushed)) >= 396


def test_special_and_unknown_ids_give_nothing_and_change_nothing() -> None:
    tok = tokenizer("llama")
    inner = KINDS["llama"]()
    world, end = known(inner, "\u2581wor"), known(inner, "</s>")
    ids = [end, world, end, 10**6, end, world]
    assert streamed(tok, ids) == (["", "wor", "", "", "", " wor"], "")
    assert tok.stream().push(-1) == ""


def test_a_flushed_stream_is_as_new() -> None:
    tok = tokenizer("llama")
    ids = tok.encode("hello")
    stream = tok.stream()
    first = "".join(map(stream.push, ids)) + stream.flush()
    assert first == "".join(map(stream.push, ids)) + stream.flush() == "hello"
    assert stream.flush() == ""


class Shrinking:
    """A decoder whose text may get shorter, as one with replacements across tokens would."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids)).replace("ab", "c")

    def piece(self, token_id: int) -> str | None:
        return chr(token_id)


def test_a_decoder_that_changes_its_mind_is_survived() -> None:
    stream = TextStream(Shrinking(), byte_fallback=False)
    text = "".join(stream.push(ord(c)) for c in "xab" + "y" * 300) + stream.flush()
    assert text.startswith("x")
    assert text.endswith("y" * 100)


@pytest.mark.parametrize("model", ["stories260K", "tinystories_656k", "bert_sst2"])
@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_real_tokenizers_stream(data_dir: Path, model: str, text: str) -> None:
    tok = TextTokenizer.from_file(data_dir / "models" / model / "tokenizer.json")
    ids = tok.encode(text)
    check(tok, ids)
    check(tok, ids + ids)
    draw = random.Random(1)
    for _ in range(10):
        check(tok, [draw.randrange(tok.vocab_size) for _ in range(60)])
