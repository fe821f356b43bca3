"""From what a client asks to what a model reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from astra_mesh.bundle import image, open_bundle
from astra_mesh.errors import InputError
from astra_mesh.peer.inputs import read_ask, read_inputs
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.loading import load
from astra_mesh.wire.messages import Ask, RequestId, Task
from tests.bundles import BERT, GPT2, VIT, bert_tensors, gpt2_tensors, vit_tensors, write_bundle


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("models") / "pictures"
    return load(open_bundle(write_bundle(folder, VIT, vit_tensors(VIT))))


def large_picture() -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def ask(**about: object) -> Ask:
    given = {"request": RequestId(1), "task": Task.CLASSIFY, "model": "pictures"}
    return Ask(**(given | about))  # type: ignore[arg-type]


def test_a_large_picture_is_decoded_once(pictures: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = image.decode_image

    def counted(data: bytes) -> Image.Image:
        decoded.append(len(data))
        return original(data)

    monkeypatch.setattr(image, "decode_image", counted)
    data = large_picture()
    read = read_ask(pictures, ask(image=data))
    given, inputs = read.given, read.for_others()
    assert decoded == [len(data)]
    assert read.inputs.image is data
    assert len(inputs.image) < len(data)
    theirs, theirs_tokens = read_inputs(pictures, inputs)  # as the other peers read it
    assert given.pixels is not None
    assert theirs.pixels is not None
    assert torch.equal(given.pixels, theirs.pixels)
    assert read.tokens == theirs_tokens == 17


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"image": b""}, "the image is empty"),
        ({"tokens": [1]}, "reads images"),
        ({"text": "a", "image": b"x"}, "exactly one of"),
        ({"image": b"x", "answered": [1]}, "only a text that is continued"),
    ],
)
def test_what_no_image_model_reads(pictures: Loaded, about: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_ask(pictures, ask(**about))


def test_who_gives_a_picture_to_a_model_of_texts_is_told_how_to_give_a_text(
    tmp_path: Path,
) -> None:
    film = load(open_bundle(write_bundle(tmp_path / "film", BERT, bert_tensors(BERT))))
    with pytest.raises(InputError, match=r"film reads text; give a text, not an image$"):
        read_ask(film, ask(task=Task.CLASSIFY, image=b"x"))


def test_answered_tokens_follow_the_prompt(tmp_path: Path) -> None:
    words = load(open_bundle(write_bundle(tmp_path / "words", GPT2, gpt2_tensors(GPT2))))
    about = {"task": Task.GENERATE, "answered": [7]}
    assert read_ask(words, ask(text="w1 w2", **about)).inputs.tokens == [1, 2, 7]
    read = read_ask(words, ask(tokens=[3], **about))
    inputs, given, tokens = read.inputs, read.given, read.tokens
    assert (inputs.tokens, tokens) == ([3, 7], 2)
    assert given.tokens is not None
    assert given.tokens.tolist() == [3, 7]
    with pytest.raises(InputError, match="reads text"):
        read_ask(words, ask(task=Task.GENERATE, image=b"x"))
