"""The tokenizer of a GGUF file as a ``tokenizer.json``.

Two kinds: byte-level BPE with its merges ("gpt2"), and SentencePiece's BPE ("llama"), whose merges
follow from the scores of its pieces. How byte-level ones cut a text before merging stands in the
file as a name only; the known names are listed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from astra_mesh.bundle.configs import bad_file
from astra_mesh.errors import AstraMeshError, UnsupportedModelError

_AT: Final = "tokenizer.ggml."
_CONTROL, _DEFINED = 3, 4  # token types
_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS: Final = {
    "llama-bpe": _WORDS % "{1,3}",
    "llama3": _WORDS % "{1,3}",
    "smaug-bpe": _WORDS % "{1,3}",
    "qwen2": _WORDS % "",
    "deepseek-r1-qwen": _WORDS % "",
}
_PLAIN_CUTS: Final = ("gpt-2", "smollm")
_BEGINS: Final = ("llama-bpe", "llama3")  # have a first token unless the file says otherwise


def make_tokenizer(fields: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that a file's metadata describe.

    Raises:
        UnsupportedModelError: of a kind that is not known here.
        BadBundleError: it cannot be.
    """
    kind = str(fields.get(f"{_AT}model", ""))
    try:
        if kind == "gpt2":
            made = _byte_level(fields, path)
        elif kind == "llama":
            made = _sentencepiece(fields)
        else:
            raise _unknown(path, kind)
        _add_special(made, fields)
        _add_first(made, fields, kind)
    except AstraMeshError:
        raise
    except Exception as error:  # of pieces that do not fit together tokenizers raises just that
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be ({error})"[:200]
        raise bad_file(path, f"its tokenizer {what}", _beside(path)) from error
    return made


def _beside(path: Path) -> str:
    return f"put the model's tokenizer.json beside it, in {path.parent.name}/, and try again"


def _unknown(path: Path, kind: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path.name} has a tokenizer of the kind {kind[:40]!a}, unknown here; {_beside(path)}"
    )


def _byte_level(fields: Mapping[str, Any], path: Path) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(fields[f"{_AT}tokens"])}
    merges = [tuple(one.split(" ", 1)) for one in fields.get(f"{_AT}merges", ())]
    cut = str(fields.get(f"{_AT}pre", "gpt-2"))
    if cut not in _CUTS and cut not in _PLAIN_CUTS:
        raise _unknown(path, f"gpt2, {cut}")
    made = Tokenizer(BPE(vocabulary, merges, ignore_merges=cut in ("llama-bpe", "llama3")))
    made.decoder = decoders.ByteLevel()
    if cut in _CUTS:
        split = pre_tokenizers.Split(Regex(_CUTS[cut]), "isolated")
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    else:
        usual = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, usual]) if cut == "smollm" else usual
    if "qwen" in cut:
        made.normalizer = normalizers.NFC()
    return made


def _sentencepiece(fields: Mapping[str, Any]) -> Tokenizer:
    tokens, scores = fields[f"{_AT}tokens"], fields[f"{_AT}scores"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    score_of = dict(zip(tokens, scores, strict=True))
    unknown = tokens[int(fields.get(f"{_AT}unknown_token_id", 0))]
    model = BPE(
        vocabulary,
        _merges(vocabulary, score_of),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback="<0x00>" in vocabulary,
    )
    made = Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    prefix = bool(fields.get(f"{_AT}add_space_prefix", True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), spaces] if prefix else [spaces]
    )
    parts: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    return made


def _merges(vocabulary: Mapping[str, int], score_of: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, that of the highest score first."""
    found = [
        (-score_of[whole], vocabulary[left], vocabulary[right], left, right)
        for whole in vocabulary
        for cut in range(1, len(whole))
        if (left := whole[:cut]) in vocabulary and (right := whole[cut:]) in vocabulary
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _add_special(made: Tokenizer, fields: Mapping[str, Any]) -> None:
    kinds = fields.get(f"{_AT}token_type", ())
    named = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(fields[f"{_AT}tokens"], kinds, strict=False)
        if kind in (_CONTROL, _DEFINED)
    ]
    made.add_special_tokens([one for one in named if one.special])
    made.add_tokens([one for one in named if not one.special])


def _add_first(made: Tokenizer, fields: Mapping[str, Any], kind: str) -> None:
    """The token that begins each text, where there is one."""
    usual = kind == "llama" or fields.get(f"{_AT}pre") in _BEGINS
    number = fields.get(f"{_AT}bos_token_id")
    if number is None or not fields.get(f"{_AT}add_bos_token", usual):
        return
    first = fields[f"{_AT}tokens"][int(number)]
    made.post_processor = TemplateProcessing(
        single=f"{first}:0 $A:0",
        pair=f"{first}:0 $A:0 {first}:1 $B:1",
        special_tokens=[(first, int(number))],
    )


def settings_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A ``tokenizer_config.json``: the chat template, and the names of the tokens it uses."""
    found: dict[str, Any] = {}
    if template := fields.get("tokenizer.chat_template"):
        found["chat_template"] = str(template)
    tokens = fields.get(f"{_AT}tokens", ())
    for name in ("bos", "eos"):
        number = fields.get(f"{_AT}{name}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            found[f"{name}_token"] = tokens[number]
    return found
