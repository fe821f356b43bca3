"""Image files from anywhere: an image or a named error, never more pixels than allowed."""

from __future__ import annotations

import contextlib
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from astra_mesh import limits
from astra_mesh.bundle.image import FORMATS, ImageProcessor, decode_image
from astra_mesh.errors import BadImageError
from tests.unit.bundle.making import photo, saved

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about damaged EXIF data


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size, with hardly any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + data + chunk(b"IEND", b"")


BAD_IMAGES = {
    "empty": (b"", "empty"),
    "text": (b"this is no image at all", "no image that can be read; use JPEG"),
    "zeros": (bytes(1000), "no image"),
    "pdf": (b"%PDF-1.7\n", "no image"),
    "tiff": (saved(photo(), "TIFF"), "no image"),
    "ppm": (saved(photo(), "PPM"), "no image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
    "bomb": (png_header(8_000, 8_001), "8000 x 8001 pixels, more than"),
    "bomb that Pillow warns of": (png_header(10_000, 10_000), "pixels"),
    "bomb that Pillow refuses": (png_header(60_000, 60_000), "too many pixels"),
    "little data": (png_header(1_000, 1_000), "damaged or cut short"),
    "elongated": (saved(Image.new("L", (60_000, 1))), "too elongated"),
}


@pytest.mark.parametrize(("data", "problem"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_named(data: bytes, problem: str) -> None:
    processor = ImageProcessor.from_config({"size": {"shortest_edge": 2000}})
    with pytest.raises(BadImageError, match=problem) as caught:
        processor(data)
    assert len(caught.value.message) < limits.REASON_CHARS


def test_a_file_over_the_cap_is_not_looked_at() -> None:
    with pytest.raises(BadImageError, match="larger than the 10 MiB allowed"):
        decode_image(saved(photo(4, 4)).ljust(limits.IMAGE_BYTES + 1, b"\0"))


def test_the_pixel_cap_itself_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IMAGE_PIXELS", 300 * 200)
    assert decode_image(saved(photo(300, 200))).size == (300, 200)
    with pytest.raises(BadImageError, match="300 x 201 pixels, more than the 60,000 allowed"):
        decode_image(saved(photo(300, 201)))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_named_or_still_an_image_of_the_same_size(kind: str) -> None:
    """Formats end in bytes that carry no pixels; all shorter files must be refused."""
    data = saved(photo(64, 48), kind)
    decoded = 0
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            assert decode_image(data[:length]).size == (64, 48)
            decoded += 1
        except BadImageError:
            continue
    assert decoded <= 2


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(FORMATS),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
)
def test_altered_files_give_an_image_or_a_named_error(
    kind: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(SAMPLES[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    with contextlib.suppress(BadImageError):
        assert decode_image(bytes(data)).mode == "RGB"


SAMPLES = {kind: saved(photo(24, 16), kind) for kind in FORMATS}
