"""Tokens of log-probabilities keep step with the text."""

from __future__ import annotations

import math

import msgspec
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE

from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.client import Token
from astra_mesh.engine.sampling import Likely
from astra_mesh.web.answers import ChatLogprobs, CompletionLogprobs
from astra_mesh.web.logprobs import Scorer, of_chat, of_completion
from astra_mesh.web.stops import StopFinder

# As GPT-2 writes bytes: a space is a \u0120, the two bytes of an e with an acute \u00c3 and \u00a9.
VOCABULARY = {"a": 0, "\u0120b": 1, "\u00c3": 2, "\u00a9": 3, "c": 4}


def tokenizer() -> TextTokenizer:
    found = Tokenizer(BPE(VOCABULARY, []))
    found.decoder = ByteLevel()
    found.add_special_tokens(["<end>"])
    return TextTokenizer(found)


def test_tokens_come_out_with_the_text_that_they_begin_in() -> None:
    known = tokenizer()
    scorer, finder, stream = Scorer(known), StopFinder(["bc"]), known.stream()
    out = []
    for index, token in enumerate((0, 2, 3, 1, 0, 1, 4)):
        text = stream.push(token)
        scorer.push(Token(token, text, index), Likely(-1.0 - index, ((token, -0.5), (5, -9.0))))
        if piece := finder.push(text):
            out.append((piece, scorer.pop(piece)))
    assert finder.found
    assert "".join(piece for piece, _ in out) == "a\u00e9 ba "
    tokens = [token for _, found in out for token in found]
    assert [one.text for one in tokens] == ["a", "\ufffd", "\ufffd", " b", "a", " b"]
    assert [one.offset for one in tokens] == [0, 1, 1, 2, 4, 5]
    assert [one.logprob for one in tokens] == [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    chat = msgspec.convert(of_chat(tokens), ChatLogprobs)
    assert [one.bytes for one in chat.content][1:4] == [None, None, [32, 98]]
    assert chat.content[0].top_logprobs[1].token == "<end>"
    whole = msgspec.convert(of_completion(tokens), CompletionLogprobs)
    assert whole.top_logprobs[3] == {" b": -0.5, "<end>": -9.0}


def test_the_chosen_token_is_always_named_and_nothing_is_infinite() -> None:
    scorer = Scorer(None)
    scorer.push(Token(7, "", 0), Likely(-math.inf, ((3, -0.1),)))
    (token,) = scorer.rest()
    assert scorer.rest() == ()
    found = of_completion([token])
    assert found["top_logprobs"] == [{"token_id:3": -0.1, "token_id:7": -9999.0}]
    assert next(iter(found["top_logprobs"][0])) == "token_id:3"
