"""Tokenizers of each kind in use, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

WORDS = ["he", "llo", "wor", "ld", "a", "b", "\u00e9", "\u20ac", ".", ",", "n't", "\ufffd", "x y"]
SPECIAL = ["<s>", "</s>"]


def _with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken("<added>", special=False)])
    return tokenizer


def byte_level(use_regex: bool = False) -> Tokenizer:
    """GPT-2's kind: every byte is a token, some merged (also across characters)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    pieces = [merged[0].pre_tokenize_str(text)[0][0] for text in ("he", "hell", " w", "\u20ac")]
    vocab = {
        piece: i for i, piece in enumerate([*alphabet, *pieces, "\u0120\u00e2", "\u0124\u00ac"])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special(tokenizer)


def _pieces() -> dict[str, int]:
    names = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "\u2581\u2581"]
    names += [*WORDS, *("\u2581" + word for word in WORDS)]
    return {name: i for i, name in enumerate(names)}


def llama() -> Tokenizer:
    """Llama's kind: metaspaces by normalizer, bytes as a fallback, one leading space stripped."""
    model = models.BPE(
        vocab=_pieces(), merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _with_special(tokenizer)


def metaspace() -> Tokenizer:
    """T5's kind."""
    tokenizer = Tokenizer(models.BPE(vocab=_pieces(), merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _with_special(tokenizer)


def word_piece() -> Tokenizer:
    """BERT's kind, with segment ids and special tokens around the text."""
    vocab = {name: i for i, name in enumerate(["[UNK]", *WORDS, *("##" + word for word in WORDS)])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _with_special(tokenizer)
    ids = [(name, tokenizer.token_to_id(name)) for name in SPECIAL]
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>:1", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    return tokenizer


def without_decoder() -> Tokenizer:
    """Pieces joined by spaces."""
    return _with_special(Tokenizer(models.BPE(vocab=_pieces(), merges=[], unk_token="<unk>")))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "llama": llama,
    "metaspace": metaspace,
    "word piece": word_piece,
    "no decoder": without_decoder,
}


def as_json(tokenizer: Tokenizer) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content
