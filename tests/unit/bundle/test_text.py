"""Text tokenizers: what the file says, no more and no less; bad files by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from astra_mesh import limits
from astra_mesh.bundle import open_bundle, text, write_manifest
from astra_mesh.bundle.text import TextTokenizer, eos_ids, parse_eos
from astra_mesh.errors import BadBundleError, InputError, PromptTooLongError, WrongTaskError
from tests.unit.bundle.making import make_bundle
from tests.unit.bundle.toy_tokenizers import KINDS, as_json, byte_level, llama, word_piece


def saved(folder: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_encoding_adds_what_the_post_processor_adds() -> None:
    inner = word_piece()
    tok = TextTokenizer(inner)
    first, last = inner.token_to_id("<s>"), inner.token_to_id("</s>")
    ids, types = tok.encode_full("a b")
    assert (ids[0], ids[-1]) == (first, last)
    assert types == [0, 0, 0, 1]
    assert tok.encode("a b") == ids
    assert tok.decode(ids) == "a b"


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_the_vocabulary_counts_added_tokens(kind: str) -> None:
    tok = TextTokenizer(KINDS[kind]())
    assert (tok.piece(tok.vocab_size - 1) or "").endswith("<added>")
    assert tok.piece(tok.vocab_size) is None
    assert tok.piece(tok.vocab_size - 2) is None  # special


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    inner = byte_level()
    inner.enable_truncation(4)
    inner.enable_padding(length=16)
    tok = TextTokenizer.from_file(saved(tmp_path, inner))
    assert len(tok.encode("123456")) == 6


def test_text_over_the_cap_and_half_characters_are_refused() -> None:
    tok = TextTokenizer(byte_level())
    assert len(tok.encode("x" * limits.TEXT_BYTES)) == limits.TEXT_BYTES
    with pytest.raises(PromptTooLongError, match="longer than the 1 MiB allowed"):
        tok.encode("x" * (limits.TEXT_BYTES + 1))
    with pytest.raises(InputError, match="invalid character at 1"):
        tok.encode("x\ud800")


def test_ids_outside_the_vocabulary_have_no_text_and_impossible_ones_are_refused() -> None:
    tok = TextTokenizer(byte_level())
    assert tok.decode([*tok.encode("ab"), 10**6]) == "ab"
    assert tok.decode([]) == ""
    for bad in (-1, 2**32, 10**30):
        with pytest.raises(InputError, match="whole numbers"):
            tok.decode([bad])


# --- files ----------------------------------------------------------------------------------------


def with_field(name: str, value: object) -> bytes:
    return json.dumps({**as_json(llama()), name: value}).encode()


BAD_FILES = {
    "empty": b"",
    "no JSON": b"hello",
    "not UTF-8": b'{"a": "\xff"}',
    "list": b"[]",
    "other object": b"{}",
    "cut short": json.dumps(as_json(llama())).encode()[:-20],
    "deep": b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "unknown model": with_field("model", {"type": "Magic"}),
    "unknown decoder": with_field("decoder", {"type": "Magic"}),
    "bad regex": with_field(
        "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}
    ),
    "merge of unknown tokens": with_field(
        "model", {"type": "BPE", "vocab": {"a": 0}, "merges": [["q", "z"]]}
    ),
}


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_tokenizer_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(BadBundleError, match=r"tokenizer\.json is no tokenizer that can be used"):
        TextTokenizer.from_file(path)


def test_a_huge_tokenizer_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as stream:
        stream.truncate(limits.JSON_BYTES + 1)
    with pytest.raises(BadBundleError, match="more than the"):
        TextTokenizer.from_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadBundleError, match=r"tokenizer\.json is missing"):
        TextTokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_panic_of_the_library_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    class Panicking:
        @staticmethod
        def from_buffer(data: bytes) -> Tokenizer:
            raise {b"p": PanicException("index out of bounds"), b"k": KeyboardInterrupt()}[data]

    monkeypatch.setattr(text, "Tokenizer", Panicking)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"p")
    with pytest.raises(BadBundleError, match="index out of bounds"):
        TextTokenizer.from_file(path)
    path.write_bytes(b"k")
    with pytest.raises(KeyboardInterrupt):
        TextTokenizer.from_file(path)


# --- bundles --------------------------------------------------------------------------------------


def test_a_bundle_without_a_tokenizer_says_that_it_takes_ids(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m"))
    with pytest.raises(WrongTaskError, match=r"m has no tokenizer\.json.*token ids"):
        TextTokenizer.from_bundle(bundle)


def test_a_bundle_gives_its_tokenizer_and_checks_its_hash(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "m", eos_token_id=7)
    path = saved(folder, byte_level())
    write_manifest(folder)
    bundle = open_bundle(folder)
    assert TextTokenizer.from_bundle(bundle).eos_ids == {7}
    path.write_bytes(path.read_bytes().replace(b"<added>", b"<adbed>"))
    with pytest.raises(BadBundleError, match="SHA-256 differs"):
        TextTokenizer.from_bundle(bundle)


EOS = [
    ({}, set()),
    ({"eos_token_id": None}, set()),
    ({"eos_token_id": 0}, {0}),
    ({"eos_token_id": [2, 5]}, {2, 5}),
    ({"eos_token_id": [2, -1, True, "3", 4.0]}, {2}),
    ({"eos_token_id": "2"}, set()),
]


@pytest.mark.parametrize(("config", "expected"), EOS)
def test_eos_ids_of_a_config(config: dict[str, object], expected: set[int]) -> None:
    assert parse_eos(config) == expected


def test_the_generation_config_goes_before_the_config(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m", eos_token_id=1))
    assert eos_ids(bundle) == {1}
    generation = bundle.path / "generation_config.json"
    generation.write_text('{"eos_token_id": [2, 3]}')
    assert eos_ids(bundle) == {2, 3}
    generation.write_text('{"eos_token_id": null}')
    assert eos_ids(bundle) == {1}


# --- real models ----------------------------------------------------------------------------------


def test_the_golden_prompt_of_a_real_model(data_dir: Path) -> None:
    tok = TextTokenizer.from_bundle(open_bundle(data_dir / "models" / "tinystories_656k"))
    prompt = np.load(data_dir / "golden" / "tinystories_656k.npz")["prompt"].tolist()
    assert tok.encode(tok.decode(prompt)) == prompt
    assert tok.eos_ids == {2}
    assert tok.vocab_size == 2048


def test_the_golden_inputs_of_bert(data_dir: Path) -> None:
    """Its tokenizer.json has no post-processor, and the golden file has no [CLS] either."""
    tok = TextTokenizer.from_bundle(open_bundle(data_dir / "models" / "bert_sst2"))
    golden = np.load(data_dir / "golden" / "bert_sst2.npz")
    lines = (data_dir / "datasets" / "sst2" / "test.tsv").read_text().splitlines()[1:17]
    for line, ids, mask in zip(lines, golden["input_ids"], golden["attention_mask"], strict=True):
        found, types = tok.encode_full(line.split("\t")[0])
        assert found == ids[mask == 1].tolist()
        assert types == [0] * len(found)
