"""Reading data: everything once, in an order that is always the same, or a named error."""

from __future__ import annotations

import io
import logging
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.errors import CalibrationError, WrongTaskError
from astra_mesh.quality import Sample, load_inputs, load_samples, texts
from astra_mesh.quality.data import check_labels, stream_samples
from astra_mesh.quality.pictures import interleaved, seen
from astra_mesh.quality.pictures import pictures as read_pictures
from astra_mesh.quality.texts import windows
from tests.unit.bundle.making import photo
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
    table = f'label\tsentence\n1\tw3 w4\n0\tw5 "w6\n\t\n\tw7\n-1\t{words(60, 60)}'
    path = write(tmp_path, {"x.tsv": table}) / "x.tsv"
    found = load_samples(bert, path, limit=100, classes=CLASSES)
    assert [one.label for one in found] == [1, 0, None, None]
    assert {one.label for one in load_samples(bert, path, limit=100)} == {None}
    assert [len(ids(one)) for one in found] == [2, 2, 1, 48]
    assert found[0].input.token_types is None


CLASSES = {0: "NEGATIVE", 1: "very good"}


def test_labels_may_be_names_of_the_models_classes(bert: Bundle, tmp_path: Path) -> None:
    rows = "negative\tw1\nVery Good\tw2\n01\tw3\n"
    path = write(tmp_path, {"x.tsv": f"label\tsentence\n{rows}"}) / "x.tsv"
    assert [one.label for one in load_samples(bert, path, limit=9, classes=CLASSES)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("2", r"x\.tsv, line 3: there is no class '2'; the model has 2 classes, 0 to 1$"),
        ("9" * 5000, "the model has 2 classes, 0 to 1$"),
        ("bad", r"x\.tsv, line 3: .* 'bad'; .* are 'NEGATIVE', 'very good', or 0 to 1$"),
        ("0.5", "no class '0.5'"),
        ("-2", "no class '-2'"),
        ("\x1b[2J", r"no class '\\x1b\[2J'"),
    ],
)
def test_labels_beyond_the_models_classes(
    bert: Bundle, tmp_path: Path, label: str, text: str
) -> None:
    path = write(tmp_path, {"x.tsv": f"label\tsentence\n1\tw1\n{label}\tw2\n"}) / "x.tsv"
    with pytest.raises(CalibrationError, match=text):
        load_samples(bert, path, limit=9, classes=CLASSES)
    assert load_inputs(bert, path, limit_tokens=9)  # a codebook needs none


def test_lines_as_sentences(bert: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path, {"x.txt": "w1 w2\n\n  \nw3\n"}) / "x.txt"
    assert [ids(one) for one in load_samples(bert, path, limit=9)] == [[1, 2], [3]]


BAD_TEXTS: dict[str, tuple[str, bytes | str, str]] = {
    "an empty file": ("x.txt", "", "too little: at least a text of 2 tokens is needed"),
    "one token": ("x.txt", "w1", "too little: at least a text of 2 tokens is needed"),
    "no text": ("x.txt", b"w1 \xff\xfe w2\n", "no UTF-8"),
    "a picture": ("x.png", b"", r"give a \.txt file, or token ids \(\.npy\), not x\.png"),
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


def test_too_little_says_how_much_is_needed(bert: Bundle, vit: Bundle, tmp_path: Path) -> None:
    write(tmp_path, {"x.txt": "\n", "y.txt": "w1\n" * 9})
    with pytest.raises(CalibrationError, match="too little: at least a sentence is needed"):
        load_samples(bert, tmp_path / "x.txt", limit=5)
    with pytest.raises(CalibrationError, match="at least 10 sentences are needed"):
        load_samples(bert, tmp_path / "y.txt", limit=5, split="eval")
    few = write(tmp_path / "few", {"a.png": picture(1)})
    with pytest.raises(CalibrationError, match="at least 10 pictures are needed"):
        load_samples(vit, few, limit=5, split="eval")


def test_models_without_tokenizer_read_no_text(gpt: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path, {"a.txt": words(9)}) / "a.txt"
    for bundle in (gpt, toy_bundle(tmp_path / "bert", "bert")):
        (bundle.path / "tokenizer.json").unlink()
        text = (
            rf"{bundle.name} has no tokenizer\.json, so it reads no text: add the one that .* "
            r"trained with, or give token ids \(\.npy, see the README\)$"
        )
        with pytest.raises(WrongTaskError, match=text):
            load_samples(bundle, path, limit=5)


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


def test_labels_of_pictures_are_classes_that_the_model_has(vit: Bundle, tmp_path: Path) -> None:
    """Also where its config names more of them ("cow"), or none."""
    files: dict[str, bytes | str] = {f"x/{n}.png": picture(i) for i, n in enumerate("abc")}
    table = "file,label\nx/a.png,0\nx/b.png,1\nx/c.png,cow\n"
    path = write_zip(tmp_path / "x.zip", files | {"labels.csv": table})
    found = load_samples(vit, path, limit=9, classes={0: "cat", 1: "LABEL_1"})
    assert {one.label for one in found} == {0, 1, None}


@pytest.mark.parametrize("number", ["2", "-2", "9" * 5000])
@pytest.mark.parametrize("column", ["label", "class_index"])
def test_numbers_of_pictures_beyond_the_classes_are_named(
    vit: Bundle, tmp_path: Path, number: str, column: str
) -> None:
    """Not where something else says the class, nor for who needs no labels."""
    classes = {0: "cat", 1: "dog"}
    files: dict[str, bytes | str] = {f"{n}/a.png": picture(i) for i, n in enumerate(("x", "dog"))}
    head, fine = f"file,{column},name\n", f"dog/a.png,{number},\nx/a.png,{number},cat\n"
    fine += f"absent.png,{number},\nx/a.png,-1,\nx/a.png,,\n"
    path = write_zip(tmp_path / "x.zip", files | {"labels.csv": head + fine})
    found = load_samples(vit, path, limit=9, classes=classes)
    assert sorted(str(one.label) for one in found) == ["0", "1"]
    bad = head + f"\ndog/a.png,1,\nx/a.png,{number},elk\n"
    path = write_zip(tmp_path / "y.zip", files | {"labels.csv": bad})
    text = (
        rf"labels\.csv, line 4: there is no class '{number[:9]}\d*'; the model has 2 classes, 0 to"
    )
    with pytest.raises(CalibrationError, match=text):
        load_samples(vit, path, limit=1, classes=classes)
    with pytest.raises(CalibrationError, match=text):
        check_labels(vit, path, classes)
    assert len(load_inputs(vit, path, limit_tokens=999)) == 2


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


# --- views ----------------------------------------------------------------------------------------


def plain_ids(samples: list[Sample]) -> list[list[int]]:
    return [ids(one) for one in samples]


def test_windows_that_begin_later_are_of_the_same_text(gpt: Bundle, tmp_path: Path) -> None:
    """What a shift leaves over behind whole windows is passed over."""
    path = write(tmp_path, {"a.txt": words(57)}) / "a.txt"
    whole = TextTokenizer.from_bundle(gpt).encode(words(57))
    assert plain_ids(list(windows(gpt, path, 10, 0)))[-1] == whole[50:]
    for skip in (1, 4, 7, 9):
        found = plain_ids(list(windows(gpt, path, 10, skip)))
        starts = range(skip, 57 - 9, 10)
        assert found == [whole[at : at + 10] for at in starts]


@pytest.mark.parametrize(("count", "start"), [(10, 0), (13, 3), (16, 6), (19, 6)])
def test_a_shift_leaves_one_whole_window(
    gpt: Bundle, tmp_path: Path, count: int, start: int
) -> None:
    path = write(tmp_path, {"a.txt": words(count)}) / "a.txt"
    whole = TextTokenizer.from_bundle(gpt).encode(words(count))
    assert plain_ids(list(windows(gpt, path, 10, 6))) == [whole[start : start + 10]]


def test_short_documents_are_whole_in_every_view(gpt: Bundle, tmp_path: Path) -> None:
    """However far windows are shifted, and whatever lengths others have."""
    documents = [words(count, start=count) for count in (3, 9, 30, 4)]
    path = write(tmp_path, {"a.txt": "<|endoftext|>\n".join(documents)}) / "a.txt"
    tokens = [TextTokenizer.from_bundle(gpt).encode(text) for text in documents]
    found = [ids(one) for one in islice(stream_samples(gpt, path), 8)]
    assert found == tokens * 2
    shifted = plain_ids(list(windows(gpt, path, 10, 8)))
    assert shifted == [tokens[0], tokens[1], tokens[2][8:18], tokens[2][18:28], tokens[3]]


def test_what_is_held_out_is_never_seen_in_any_view(gpt: Bundle, tmp_path: Path) -> None:
    """Every tenth window of the plain text consists of w60, and nothing else does."""
    documents, number = [], 0
    for count in (95, 7, 250, 19, 333):
        found = []
        for at in range(0, count, 10):
            size = min(10, count - at)
            if size < 2:
                continue
            found += ["w60" if number % 10 == 9 else f"w{(at + i) % 60}" for i in range(size)]
            number += 1
        documents.append(" ".join(found) + "\n")
    path = write(tmp_path, {"a.txt": "<|endoftext|>\n".join(documents)}) / "a.txt"
    assert number > 60
    held_out = load_samples(gpt, path, limit=99, window=10, split="eval")
    assert len(held_out) == number // 10
    assert {i for one in held_out for i in ids(one)} == {60}
    starts = set()
    for one in islice(stream_samples(gpt, path, window=10, split="fit"), 8 * number):
        first, *rest = ids(one)
        assert rest == [(first + i) % 60 for i in range(1, len(rest) + 1)]  # no w60, and no gap
        starts.add(first % 10)
    assert len(starts) > 5  # views differ
    for one in islice(stream_samples(gpt, path, window=10, split="eval"), 2 * number):
        assert set(ids(one)) == {60}


def test_streams_do_not_end_and_repeat_themselves_when_asked_again(
    gpt: Bundle, bert: Bundle, tmp_path: Path
) -> None:
    text = write(tmp_path, {"a.txt": words(95)}) / "a.txt"
    found = [ids(one) for one in islice(stream_samples(gpt, text, window=20), 200)]
    assert len(found) == 200
    assert found == [ids(one) for one in islice(stream_samples(gpt, text, window=20), 200)]
    assert {len(one) for one in found} == {20}
    assert len({tuple(one) for one in found}) > 40
    lines = write(tmp_path, {"b.txt": "w1 w2\nw3\n"}) / "b.txt"
    assert [ids(one) for one in islice(stream_samples(bert, lines), 5)] == [[1, 2], [3]] * 2 + [
        [1, 2]
    ]


@pytest.mark.parametrize("text", ["", "w1", "\n\n", "w1\n<|endoftext|>\nw2\n"])
def test_streams_of_too_little_end_with_an_error(gpt: Bundle, tmp_path: Path, text: str) -> None:
    path = write(tmp_path, {"a.txt": text}) / "a.txt"
    with pytest.raises(CalibrationError, match="too little"):
        next(stream_samples(gpt, path))
    with pytest.raises(CalibrationError, match="too little"):
        load_inputs(gpt, path, limit_tokens=99, views=3)


def test_a_split_that_is_empty_ends_with_an_error(gpt: Bundle, tmp_path: Path) -> None:
    """Nine windows have no tenth."""
    path = write(tmp_path, {"a.txt": words(90)}) / "a.txt"
    with pytest.raises(CalibrationError, match=r"too little: .* at least 10 windows of text are"):
        next(stream_samples(gpt, path, window=10, split="eval"))


PHOTOS = {f"{kind}/{i}.png": i for i, kind in enumerate(("cat", "dog", "cow", "cat", "dog"))}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five colourful pictures."""
    found: dict[str, bytes | str] = {}
    for name, turns in PHOTOS.items():
        stream = io.BytesIO()
        photo(60 + turns, 40).rotate(90 * turns).save(stream, "PNG")
        found[name] = stream.getvalue()
    return write(tmp_path / "photos", found)


def pixels(samples: list[Sample]) -> list[Tensor]:
    return [one.input.pixels for one in samples if one.input.pixels is not None]


def test_views_of_pictures_differ_and_are_always_the_same(vit: Bundle, photos: Path) -> None:
    views = [list(read_pictures(vit, photos, view)) for view in range(5)]
    plain = load_samples(vit, photos, limit=9)
    for first, other in zip(pixels(views[0]), pixels(plain), strict=True):
        assert torch.equal(first, other)
    for view, samples in enumerate(views):
        assert [one.label for one in samples] == [one.label for one in plain]
        again = pixels(list(read_pictures(vit, photos, view)))
        assert all(map(torch.equal, pixels(samples), again))
        for earlier in views[:view]:
            assert not any(map(torch.equal, pixels(samples), pixels(earlier)))


def test_a_view_is_a_large_piece_of_the_picture_perhaps_mirrored() -> None:
    image = photo(200, 100)
    kinds = set()
    for view in range(1, 30):
        piece = seen(image, "a.png", view)
        assert 140 <= piece.width <= 200
        assert 70 <= piece.height <= 100
        left, right = (piece.getpixel((x, 0))[0] for x in (0, piece.width - 1))  # type: ignore[index]
        mirrored = left > right  # red grows from left to right
        kinds.add(mirrored)
        if mirrored:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x, y = (round(piece.getpixel((0, 0))[i] / 255 * s) for i, s in ((0, 200), (1, 100)))  # type: ignore[index]
        places = [(x + i, y + j) for i in range(-2, 3) for j in range(-2, 3)]
        inside = [(a, b) for a, b in places if a >= 0 and b >= 0]
        assert any(
            image.crop((a, b, a + piece.width, b + piece.height)).tobytes() == piece.tobytes()
            for a, b in inside
        )
    assert kinds == {True, False}
    assert seen(image, "a.png", 1).tobytes() != seen(image, "b.png", 1).tobytes()


def test_more_views_follow_where_pictures_are_used_up(vit: Bundle, photos: Path) -> None:
    """The plain ones first; 16 tokens each."""
    counts = {
        (tokens, views): len(load_inputs(vit, photos, limit_tokens=tokens, views=views))
        for tokens in (16 * 3, 16 * 7, 16 * 99)
        for views in (1, 2, 4)
    }
    assert list(counts.values()) == [3, 3, 3, 5, 7, 7, 5, 10, 20]
    found = load_inputs(vit, photos, limit_tokens=16 * 99, views=2)
    shown = [one.pixels for one in found if one.pixels is not None]
    wanted = [
        *pixels(list(read_pictures(vit, photos))),
        *pixels(list(read_pictures(vit, photos, 1))),
    ]
    assert all(map(torch.equal, shown, wanted))


def test_pictures_keep_their_split_in_every_view(vit: Bundle, tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"{i}.png": picture(10 * i) for i in range(20)}
    path = write(tmp_path / "x", files)
    shades = [
        {float(one[0, 0, 0]) for one in pixels(list(islice(stream, 60)))}
        for stream in (
            stream_samples(vit, path, split="eval"),
            stream_samples(vit, path, split="fit"),
        )
    ]
    assert [len(one) for one in shades] == [2, 18]
    assert shades[0].isdisjoint(shades[1])
