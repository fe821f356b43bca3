"""Reading data: everything once, in an order that is always the same, or a named error."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.errors import CalibrationError, WrongTaskError
from astra_mesh.quality import Sample, load_inputs, load_samples, texts
from astra_mesh.quality.pictures import interleaved
from tests.unit.quality.making import picture, toy_bundle, words, write, write_zip


@pytest.fixture
def gpt(tmp_path: Path) -> Bundle:
    return toy_bundle(tmp_path / "gpt", "gpt2")


@pytest.fixture
def bert(tmp_path: Path) -> Bundle:
    return toy_bundle(tmp_path / "bert", "bert")


@pytest.fixture
def vit(tmp_path: Path) -> Bundle:
    return toy_bundle(tmp_path / "vit", "vit")


def ids(sample: Sample) -> list[int]:
    assert sample.input.tokens is not None
    found: list[int] = sample.input.tokens.tolist()
    return found


# --- text -----------------------------------------------------------------------------------------


def test_windows_hold_the_whole_text(gpt: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path, {"a.txt": words(110)}) / "a.txt"
    found = load_samples(gpt, path, limit=100)
    assert [len(ids(one)) for one in found] == [48, 48, 14]  # 48 is the model's context
    whole = TextTokenizer.from_bundle(gpt).encode(words(110))
    assert [i for one in found for i in ids(one)] == whole
    assert [len(ids(one)) for one in load_samples(gpt, path, limit=100, window=50)] == [48, 48, 14]
    assert [len(ids(one)) for one in load_samples(gpt, path, limit=3, window=20)] == [20] * 3


def test_pieces_in_which_a_text_is_read_do_not_show(
    gpt: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, {"a.txt": words(300)}) / "a.txt"
    whole = [ids(one) for one in load_samples(gpt, path, limit=100)]
    monkeypatch.setattr(texts, "CHUNK_CHARS", 30)
    assert [ids(one) for one in load_samples(gpt, path, limit=100)] == whole


def test_a_line_without_end_is_read_in_pieces(
    gpt: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "LINE_CHARS", 100)
    monkeypatch.setattr(texts, "CHUNK_CHARS", 100)
    path = write(tmp_path, {"a.txt": words(200, per_line=200)}) / "a.txt"
    assert sum(len(ids(one)) for one in load_samples(gpt, path, limit=100)) in range(200, 208)


def test_documents_in_one_file(gpt: Bundle, tmp_path: Path) -> None:
    """No window crosses from one to the next, and the line between them is no text."""
    text = f"{words(50)}<|endoftext|>\n\n{words(10, start=5)}<|endoftext|>\nw1 w2"
    path = write(tmp_path, {"a.txt": text}) / "a.txt"
    found = load_samples(gpt, path, limit=100)
    assert [len(ids(one)) for one in found] == [48, 2, 10, 2]
    assert ids(found[2])[:2] == [5, 6]
    assert ids(found[3]) == [1, 2]


def test_a_folder_of_texts(gpt: Bundle, tmp_path: Path) -> None:
    """Files in order of name; no window crosses from one to the next; single tokens are dropped."""
    files: dict[str, bytes | str] = {
        "b/two.txt": words(30, start=5),
        "a.txt": words(50),
        "c.txt": "w1",
        "d.md": words(99),
    }
    folder = write(tmp_path / "data", files)
    found = load_samples(gpt, folder, limit=100)
    assert [len(ids(one)) for one in found] == [48, 2, 30]
    assert ids(found[2])[:2] == [5, 6]


def test_tokens_are_limited_but_one_input_always_comes(gpt: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path, {"a.txt": words(500)}) / "a.txt"
    counts = {
        limit: [
            len(one.tokens)
            for one in load_inputs(gpt, path, limit_tokens=limit)
            if one.tokens is not None
        ]
        for limit in (1, 48, 95, 96, 10_000)
    }
    assert [len(counts[limit]) for limit in (1, 48, 95, 96)] == [1, 1, 1, 2]
    assert sum(counts[10_000]) == 500


def test_splits_are_disjoint_and_complete(gpt: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path, {"a.txt": words(500)}) / "a.txt"
    everything, fitting, evaluation = (
        [ids(one) for one in load_samples(gpt, path, limit=100, window=10, split=split)]
        for split in (None, "fit", "eval")
    )
    assert evaluation == everything[9::10]
    assert len(evaluation) == 5
    assert sorted(fitting + evaluation) == sorted(everything)


def test_sentences_with_labels(bert: Bundle, tmp_path: Path) -> None:
    table = f'label\tsentence\n1\tw3 w4\n0\tw5 "w6\n\t\n\tw7\nbad\t{words(60, 60)}'
    path = write(tmp_path, {"x.tsv": table}) / "x.tsv"
    found = load_samples(bert, path, limit=100)
    assert [one.label for one in found] == [1, 0, None, None]
    assert [len(ids(one)) for one in found] == [2, 2, 1, 48]
    assert found[0].input.token_types is None


def test_lines_as_sentences(bert: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path, {"x.txt": "w1 w2\n\n  \nw3\n"}) / "x.txt"
    assert [ids(one) for one in load_samples(bert, path, limit=9)] == [[1, 2], [3]]


BAD_TEXTS: dict[str, tuple[str, bytes | str, str]] = {
    "an empty file": ("x.txt", "", "too little"),
    "one token": ("x.txt", "w1", "too little"),
    "no text": ("x.txt", b"w1 \xff\xfe w2\n", "no UTF-8"),
    "a picture": ("x.png", b"", r"give a \.txt file, not x\.png"),
    "a table": ("x.tsv", "sentence\nw1 w2\n", r"give a \.txt file"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_texts_that_cannot_be_used(gpt: Bundle, tmp_path: Path, name: str) -> None:
    file, content, text = BAD_TEXTS[name]
    write(tmp_path, {file: content})
    with pytest.raises(CalibrationError, match=text):
        load_samples(gpt, tmp_path / file, limit=5)


def test_other_things_that_are_no_data(gpt: Bundle, bert: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no file or folder"):
        load_samples(gpt, tmp_path / "absent.txt", limit=5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"no \.txt file"):
        load_inputs(gpt, tmp_path / "empty", limit_tokens=5)
    write(tmp_path, {"x.tsv": "text\tlabel\nw1\t1\n", "a.txt": "w1 w2 w3"})
    with pytest.raises(CalibrationError, match="no column called sentence"):
        load_samples(bert, tmp_path / "x.tsv", limit=5)
    with pytest.raises(CalibrationError, match="at least 2 tokens, not 1"):
        load_samples(gpt, tmp_path / "a.txt", limit=5, window=1)


def test_models_without_tokenizer_read_no_text(gpt: Bundle, tmp_path: Path) -> None:
    (gpt.path / "tokenizer.json").unlink()
    path = write(tmp_path, {"a.txt": words(9)}) / "a.txt"
    with pytest.raises(WrongTaskError, match="no tokenizer"):
        load_samples(gpt, path, limit=5)


# --- pictures -------------------------------------------------------------------------------------

PICTURES: dict[str, bytes | str] = {
    **{f"cat/{i}.png": picture(i) for i in range(4)},
    **{f"dog/{i}.jpg": picture(100 + i, "JPEG") for i in range(2)},
    **{f"bird/deep/{i}.JPEG": picture(200 + i, "JPEG") for i in range(3)},
    "notes.txt": "no picture",
    ".hidden/0.png": picture(1),
    "__MACOSX/cat/._0.png": b"junk",
}


@pytest.fixture(params=["folder", "zip"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        return write(tmp_path / "pictures", PICTURES)
    return write_zip(tmp_path / "pictures.zip", PICTURES)


def test_pictures_take_all_folders_in_turn(vit: Bundle, pictures: Path) -> None:
    found = load_samples(vit, pictures, limit=100)
    assert [one.label for one in found] == [None, 0, 1, None, 0, 1, None, 0, 0]
    again = load_samples(vit, pictures, limit=3)
    for one, other in zip(found, again, strict=False):
        assert one.input.pixels is not None
        assert other.input.pixels is not None
        assert torch.equal(one.input.pixels, other.input.pixels)
    processor = ImageProcessor.from_bundle(vit)
    cats = [processor(picture(i)) for i in range(4)]
    for one in (found[i] for i in (1, 4, 7, 8)):
        assert sum(torch.equal(one.input.pixels, cat) for cat in cats) == 1  # type: ignore[arg-type]


def test_pictures_count_as_all_their_tokens(vit: Bundle, pictures: Path) -> None:
    assert len(load_inputs(vit, pictures, limit_tokens=16 * 3 + 15)) == 3


LABELS = {
    "by index": "file,class_index\nx/a.png,2\nx/b.png,1\nx/c.png,9\n",
    "by name": "file,label\nx/a.png,Cow\nx/b.png,dog\nx/c.png,elk\n",
    "with another numbering": "file,class,name\nx/a.png,17,cow\nx/b.png,18,dog\nx/c.png,1,\n",
}


@pytest.mark.parametrize("name", LABELS)
def test_a_table_of_labels(vit: Bundle, tmp_path: Path, name: str) -> None:
    files: dict[str, bytes | str] = {f"x/{n}.png": picture(i) for i, n in enumerate("abc")}
    path = write_zip(tmp_path / "x.zip", files | {"labels.csv": LABELS[name]})
    found = {}
    processor = ImageProcessor.from_bundle(vit)
    for one in load_samples(vit, path, limit=9):
        for i in range(3):
            if torch.equal(processor(picture(i)), one.input.pixels):  # type: ignore[arg-type]
                found["abc"[i]] = one.label
    assert found["a"] == 2
    assert found["b"] == 1
    assert found["c"] == (1 if "numbering" in name else None)


def test_real_labels(data_dir: Path) -> None:
    bundle = open_bundle(data_dir / "models" / "vit_tiny_patch16_224")
    for archive in ("imagenet_photos_500.zip", "tiny_imagenet_5000.zip"):
        found = load_samples(bundle, data_dir / "datasets" / archive, limit=4)
        assert all(one.label is not None for one in found), archive
        assert len({one.label for one in found}) == 4


def test_broken_pictures_are_left_out_and_named(
    vit: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files: dict[str, bytes | str] = {"a.png": picture(1), "b.png": b"junk", "c.png": b""}
    folder = write(tmp_path / "x", files)
    with caplog.at_level(logging.WARNING):
        assert len(load_samples(vit, folder, limit=9)) == 1
    assert {record.args[0] for record in caplog.records if isinstance(record.args, tuple)} == {
        "b.png",
        "c.png",
    }
    (folder / "a.png").unlink()
    with pytest.raises(CalibrationError, match="none of the 2 pictures"):
        load_samples(vit, folder, limit=9)


def test_archives_that_cannot_be_used(vit: Bundle, tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", {"a.png": picture(1)}).read_bytes()
    bad: dict[str, tuple[bytes, str]] = {
        "junk.zip": (b"junk", "no zip archive"),
        "cut.zip": (whole[:-30], "no zip archive"),
        "damaged.zip": (whole[:60] + bytes(20) + whole[80:], "none of the 1 pictures"),
    }
    for name, (content, text) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CalibrationError, match=text):
            load_samples(vit, tmp_path / name, limit=9)
    write_zip(tmp_path / "none.zip", {"a.txt": "x"})
    with pytest.raises(CalibrationError, match="no JPEG or PNG"):
        load_samples(vit, tmp_path / "none.zip", limit=9)
    (tmp_path / "x.txt").write_text("words")
    with pytest.raises(CalibrationError, match=r"give a folder or \.zip, not x\.txt"):
        load_samples(vit, tmp_path / "x.txt", limit=9)


def test_a_prefix_of_the_order_is_mixed() -> None:
    """Also of one folder whose names are sorted by class."""
    names = [f"{i:04}.png" for i in range(1000)]
    order = interleaved(names)
    assert sorted(order) == names
    assert order == interleaved(reversed(names))
    first = [int(name[:4]) for name in order[:100]]
    assert 350 < sum(first) / 100 < 650
