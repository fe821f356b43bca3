"""preprocessor_config.json: what it may say, its defaults, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from astra_mesh.bundle.preprocessor import Preprocessor, read_preprocessor
from astra_mesh.errors import BadBundleError, UnsupportedModelError

HALF = (0.5, 0.5, 0.5)


def test_an_empty_config_is_vit() -> None:
    assert read_preprocessor({}) == Preprocessor((224, 224), 2, None, 1 / 255, HALF, HALF)


SIZES = [
    (200, (200, 200)),
    ([100, 200], (100, 200)),
    ({"height": 100, "width": 200}, (100, 200)),
    ({"shortest_edge": 248}, 248),
]


@pytest.mark.parametrize(("size", "expected"), SIZES)
def test_sizes(size: object, expected: object) -> None:
    assert read_preprocessor({"size": size}).resize == expected


def test_steps_can_be_left_out() -> None:
    names = ("do_resize", "do_rescale", "do_normalize")
    steps = read_preprocessor(dict.fromkeys(names, False))
    assert (steps.resize, steps.crop, steps.rescale, steps.mean) == (None, None, None, None)


def test_null_is_the_default_for_a_switch() -> None:
    assert read_preprocessor({"do_resize": None, "do_center_crop": None}).crop is None


@pytest.mark.parametrize("crop", [96, [96, 96], {"height": 96, "width": 96}])
def test_crops(crop: object) -> None:
    steps = read_preprocessor({"do_center_crop": True, "crop_size": crop})
    assert steps.crop == (96, 96)


RESIZED = [
    (None, (300, 200), (300, 200)),
    ((10, 20), (300, 200), (20, 10)),
    (100, (300, 200), (150, 100)),
    (100, (200, 300), (100, 150)),
    (248, (500, 375), (330, 248)),
    (100, (70, 70), (100, 100)),
]


@pytest.mark.parametrize(("resize", "before", "after"), RESIZED)
def test_resized(resize: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    steps = Preprocessor(resize, 2, None, None, None, HALF)
    assert steps.resized(*before) == after


@pytest.mark.parametrize("field", ["image_processor_type", "feature_extractor_type"])
def test_another_kind_of_processor_is_refused(field: str) -> None:
    with pytest.raises(UnsupportedModelError, match="'CLIPImageProcessor'"):
        read_preprocessor({field: "CLIPImageProcessor"})
    read_preprocessor({field: "ViTFeatureExtractor"})


BAD: list[tuple[dict[str, Any], str]] = [
    ({"size": 0}, "size"),
    ({"size": -1}, "size"),
    ({"size": 10**9}, "size"),
    ({"size": 224.0}, "size"),
    ({"size": True}, "size"),
    ({"size": "224"}, "size"),
    ({"size": None}, "size"),
    ({"size": [1, 2, 3]}, "size"),
    ({"size": {"height": 224}}, "size"),
    ({"size": {"shortest_edge": 224, "longest_edge": 999}}, "size"),
    ({"resample": 6}, "resample"),
    ({"resample": "bicubic"}, "resample"),
    ({"do_resize": "yes"}, "do_resize"),
    ({"do_center_crop": True}, "crop_size"),
    ({"rescale_factor": float("nan")}, "rescale_factor"),
    ({"rescale_factor": "1/255"}, "rescale_factor"),
    ({"rescale_factor": 10**400}, "rescale_factor"),
    ({"image_mean": [0.5, 0.5]}, "image_mean"),
    ({"image_mean": [0.5, 0.5, None]}, "image_mean"),
    ({"image_std": [0.5, 0.5, 0]}, "image_std"),
    ({"image_std": 0.0}, "image_std"),
]


@pytest.mark.parametrize(("config", "field"), BAD, ids=str)
def test_a_bad_value_is_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(BadBundleError, match=rf"preprocessor_config\.json: {field} cannot be"):
        read_preprocessor(config)
