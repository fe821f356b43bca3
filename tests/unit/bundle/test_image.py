"""Images: equal to transformers to the last bit in each mode and format."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.configs import load_json, save_json
from astra_mesh.bundle.image import ImageProcessor, decode_image
from astra_mesh.errors import BadImageError, WrongTaskError
from tests.unit.bundle.making import make_bundle, photo, saved

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about damaged EXIF data

PLAIN = ImageProcessor.from_config({"do_resize": False, "do_rescale": False, "do_normalize": False})


# --- the same as transformers ---------------------------------------------------------------------

CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "vit tiny": {
        "size": {"shortest_edge": 248},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    },
    "old": {"size": 96, "resample": 2, "image_mean": [0.485, 0.456, 0.406]},
    "lanczos": {"size": {"height": 64, "width": 96}, "resample": 1},
    "odd crop": {
        "size": {"shortest_edge": 101},
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 77},
    },
    "crop larger than the image": {
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": 251, "width": 333},
    },
    "crop larger in one direction": {
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": 251, "width": 33},
    },
    "no normalisation": {"do_normalize": False, "rescale_factor": 0.01},
    "no rescaling": {"do_rescale": False},
}


@pytest.fixture(scope="module")
def oracle() -> Any:
    """transformers' processor on Pillow; its name depends on the version."""
    transformers = pytest.importorskip("transformers")
    try:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
    except ImportError:
        return transformers.ViTImageProcessor
    return ViTImageProcessorPil


def theirs(oracle: Any, config: dict[str, Any], data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        output = oracle(**config)(image.convert("RGB"), return_tensors="pt")
    values: torch.Tensor = output["pixel_values"][0]
    return values


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("size", [(300, 200), (199, 301)])
def test_pixel_values_equal_transformers(
    oracle: Any, config: dict[str, Any], size: tuple[int, int]
) -> None:
    data = saved(photo(*size), "JPEG")
    mine = ImageProcessor.from_config(config)(data)
    assert mine.dtype == torch.float32
    assert mine.is_contiguous()
    assert torch.equal(mine, theirs(oracle, config, data).float())


def of_kind(kind: str, image: Image.Image) -> bytes:
    if kind == "upside down":
        exif = Image.Exif()
        exif[0x0112] = 3
        return saved(image, "JPEG", quality=100, exif=exif)
    if kind == "transparent":
        image = image.convert("RGBA")
        image.putalpha(100)
        return saved(image)
    return saved(image, kind)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("size", [(900, 500), (499, 901)])
@pytest.mark.parametrize("kind", ["BMP", "upside down", "transparent"])
def test_a_shrunk_image_has_the_same_pixel_values(
    config: dict[str, Any], size: tuple[int, int], kind: str
) -> None:
    data = of_kind(kind, photo(*size))
    processor = ImageProcessor.from_config(config)
    values, pack = processor.with_packer(data)
    shrunk = pack()
    assert torch.equal(processor(shrunk), processor(data))
    assert torch.equal(values, processor(data))
    assert len(shrunk) <= len(data)
    if config.get("do_resize", True) and kind != "transparent":
        assert len(shrunk) < 0.5 * len(data)
    assert processor.with_packer(shrunk)[1]() == shrunk


def test_images_that_are_small_already_stay_as_they_are() -> None:
    processor = ImageProcessor.from_config(CONFIGS["defaults"])
    small = saved(photo(300, 200), "JPEG")
    assert processor.with_packer(small)[1]() is small
    wide = ImageProcessor.from_config({"do_resize": False})
    large = saved(photo(2100, 40), "BMP")
    assert wide.with_packer(large)[1]() is large
    for count in (1, 10_000):
        with pytest.raises(BadImageError, match="no image"):
            wide.with_packer(b"no image" * count)


@pytest.fixture
def photos(data_dir: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(data_dir / "datasets" / "imagenet_photos_500.zip") as archive:
        yield archive


def test_real_photos_equal_transformers(
    oracle: Any, data_dir: Path, photos: zipfile.ZipFile
) -> None:
    bundle = open_bundle(data_dir / "models" / "vit_tiny_patch16_224")
    processor = ImageProcessor.from_bundle(bundle)
    config = load_json(bundle.path / "preprocessor_config.json")
    for name in photos.namelist()[1:41:4]:
        data = photos.read(name)
        assert torch.equal(processor(data), theirs(oracle, config, data))


def test_the_golden_logits_of_vit_tiny(data_dir: Path, photos: zipfile.ZipFile) -> None:
    """The golden file was made from the 256-pixel photos by cropping alone, without the resizing
    to 248 that the bundle's preprocessor_config.json asks for; its even rows are the first photos
    of the archive."""
    transformers = pytest.importorskip("transformers")
    folder = data_dir / "models" / "vit_tiny_patch16_224"
    model = transformers.ViTForImageClassification.from_pretrained(folder, dtype=torch.float32)
    config = load_json(folder / "preprocessor_config.json")
    processor = ImageProcessor.from_config({**config, "size": {"shortest_edge": 256}})
    names = [name for name in photos.namelist() if name.endswith(".jpg")][:4]
    with torch.inference_mode():
        logits = model(torch.stack([processor(photos.read(name)) for name in names])).logits
    golden = np.load(data_dir / "golden" / "vit_tiny_patch16_224.npz")["logits_first8"]
    np.testing.assert_allclose(logits.numpy(), golden[::2], atol=1e-3)


# --- modes and formats ----------------------------------------------------------------------------


def pixel(data: bytes, x: int = 0, y: int = 0) -> list[int]:
    values: list[int] = PLAIN(data)[:, y, x].int().tolist()
    return values


MODES: dict[str, tuple[bytes, list[int]]] = {
    "RGB": (saved(Image.new("RGB", (4, 4), (10, 20, 30))), [10, 20, 30]),
    "L": (saved(Image.new("L", (4, 4), 77)), [77] * 3),
    "1": (saved(Image.new("1", (4, 4), 1)), [255] * 3),
    "LA": (saved(Image.new("LA", (4, 4), (0, 128))), [127] * 3),
    "RGBA": (saved(Image.new("RGBA", (4, 4), (10, 20, 30, 255))), [10, 20, 30]),
    "RGBA, transparent": (saved(Image.new("RGBA", (4, 4), (10, 20, 30, 0))), [255] * 3),
    "I;16": (saved(Image.fromarray(np.full((4, 4), 0x4321, np.uint16))), [0x43] * 3),
    "JPEG L": (saved(Image.new("L", (8, 8), 77), "JPEG"), [77] * 3),
    "JPEG CMYK": (saved(Image.new("CMYK", (8, 8), (0, 0, 0, 55)), "JPEG"), [200] * 3),
    "BMP": (saved(Image.new("RGB", (4, 4), (10, 20, 30)), "BMP"), [10, 20, 30]),
    "WEBP": (saved(Image.new("RGB", (4, 4), (9, 9, 9)), "WEBP", lossless=True), [9] * 3),
}


@pytest.mark.parametrize(("data", "expected"), MODES.values(), ids=MODES.keys())
def test_each_mode_becomes_rgb(data: bytes, expected: list[int]) -> None:
    assert PLAIN(data).shape[0] == 3
    assert pixel(data) == expected


def test_a_palette_is_resolved_and_its_transparent_entry_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([1, 2, 3, 40, 50, 60])
    assert pixel(saved(image)) == [40, 50, 60]
    assert pixel(saved(image, transparency=1)) == [255] * 3
    assert pixel(saved(image, transparency=0)) == [40, 50, 60]


def test_of_a_gif_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert pixel(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_respected(orientation: int) -> None:
    upright = photo(6, 4)
    turns = {  # how a camera stores what is upright, by EXIF orientation
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode_image(saved(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(found), np.asarray(upright))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_data_count_as_none(exif: bytes) -> None:
    upright = photo(16, 8)
    assert decode_image(saved(upright, "JPEG", exif=exif)).size == (16, 8)


# --- bundles --------------------------------------------------------------------------------------


def test_a_bundle_without_a_preprocessor_takes_no_images(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m"))
    with pytest.raises(WrongTaskError, match="does not take images"):
        ImageProcessor.from_bundle(bundle)


def test_a_bundle_gives_its_processor(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m"))
    save_json(bundle.path / "preprocessor_config.json", {"size": 32})
    assert ImageProcessor.from_bundle(bundle)(saved(photo())).shape == (3, 32, 32)
