from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from astra_mesh import limits
from astra_mesh.client.inputs import (
    check_model,
    check_prompt,
    check_text,
    make_options,
    make_sampling,
    read_picture,
)
from astra_mesh.errors import (
    BadImageError,
    EmptyPromptError,
    InputError,
    PromptTooLongError,
    UnknownModelError,
)
from astra_mesh.wire.codec import encode
from astra_mesh.wire.messages import Ask, RequestId, Task, Use


def test_prompts_are_texts_or_token_ids() -> None:
    assert check_prompt("Hello") == {"text": "Hello"}
    assert check_prompt([1, 2]) == {"tokens": [1, 2]}
    assert check_prompt(list(np.array([3]))) == {"tokens": [3]}


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("", EmptyPromptError),
        ([], EmptyPromptError),
        ("x" * (limits.TEXT_BYTES + 1), PromptTooLongError),
        ("é" * (limits.TEXT_BYTES // 2 + 1), PromptTooLongError),
        ([1] * (limits.PROMPT_TOKENS + 1), PromptTooLongError),
        ("half \ud800 a character", InputError),
        ([-1], InputError),
        ([2**31], InputError),
        (["one"], InputError),
        ([None], InputError),
    ],
)
def test_prompts_that_cannot_be_sent(prompt: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_prompt(prompt)


@pytest.mark.parametrize("name", ["", "x" * 65, "two\nlines", "\x1b[31m"])
def test_names_that_no_model_has(name: str) -> None:
    with pytest.raises(UnknownModelError):
        check_model(name)


@pytest.mark.parametrize(
    "change",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": limits.NEW_TOKENS + 1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": 2**31},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_sampling_out_of_range(change: dict[str, Any]) -> None:
    fine: dict[str, Any] = {
        "max_new_tokens": 8, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": None
    }  # fmt: skip
    make_sampling(**fine)
    with pytest.raises(InputError):
        make_sampling(**{**fine, **change})


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**100, -(2**100)])
def test_any_integer_is_a_seed(seed: int) -> None:
    sampling = make_sampling(8, 1.0, 0, 1.0, seed)
    encode(Ask(request=RequestId(1), task=Task.GENERATE, model="m", text="x", sampling=sampling))


@pytest.mark.parametrize(
    "change",
    [
        {"use": "some"},
        {"max_peers": -1},
        {"max_peers": 65},
        {"rate": -1},
        {"codec": "x" * 33},
        {"max_loss": -0.1},
        {"max_loss": 1.1},
        {"max_loss": float("nan")},
    ],
)
def test_options_out_of_range(change: dict[str, Any]) -> None:
    fine: dict[str, Any] = {"use": "all", "max_peers": 0, "codec": "", "rate": 0}
    assert make_options(**fine).use is Use.ALL
    with pytest.raises(InputError):
        make_options(**{**fine, **change})


def test_pictures_are_read_from_paths_bytes_and_pil(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(b"any bytes")
    assert read_picture(path) == read_picture(b"any bytes") == {"image": b"any bytes"}
    picture = Image.new("RGBA", (3, 2), "blue")
    again = Image.open(io.BytesIO(read_picture(picture)["image"]))
    assert (again.size, again.mode, again.getpixel((0, 0))) == ((3, 2), "RGB", (0, 0, 255))


def test_a_picture_too_large_for_png_becomes_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(limits, "IMAGE_BYTES", 10_000)
    assert read_picture(Image.fromarray(noise))["image"].startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", ["absent.jpg", "", "nul\0byte"])
def test_pictures_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadImageError, match="cannot be read"):
        read_picture(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"x" * (limits.IMAGE_BYTES + 1), 7])
def test_pictures_that_cannot_be_sent(data: Any) -> None:
    with pytest.raises(BadImageError):
        read_picture(data)


def test_a_text_is_never_a_path(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("inside")
    assert check_text(str(path)) == {"text": str(path)}
