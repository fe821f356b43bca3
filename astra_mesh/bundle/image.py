"""An image file to a model's pixel values.

The arithmetic is that of transformers' ViTImageProcessor on Pillow, to the last bit. Decoding is
guarded, because the file may come from anywhere.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from astra_mesh import limits
from astra_mesh.bundle.configs import load_json
from astra_mesh.bundle.preprocessor import NAME, Preprocessor, read_preprocessor
from astra_mesh.bundle.store import Bundle
from astra_mesh.errors import BadImageError, WrongTaskError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # of a GIF the first frame
_WHITE: Final = (255, 255, 255, 255)
_SMALL_BYTES: Final = 48 * limits.KIB  # 224 x 224 pixels of a photo, without loss, are 60 to 80
_PACKED_EDGE: Final = 2_048  # pixels; packing larger ones takes longer than sending them

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)


class ImageProcessor:
    """Decodes, resizes, crops, rescales and normalises image files for one model."""

    def __init__(self, steps: Preprocessor) -> None:
        self.steps = steps

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageProcessor:
        """The processor that a preprocessor_config.json describes.

        Raises:
            UnsupportedModelError, BadBundleError: see :func:`read_preprocessor`.
        """
        return cls(read_preprocessor(config))

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ImageProcessor:
        """The processor of a bundle.

        Raises:
            WrongTaskError: the model has none: it does not take images.
            UnsupportedModelError, BadBundleError: see :func:`read_preprocessor`.
        """
        if not bundle.has(NAME):
            raise WrongTaskError(f"{bundle.name} has no {NAME}, so it does not take images")
        return cls.from_config(load_json(bundle.file(NAME)))

    def __call__(self, data: bytes) -> torch.Tensor:
        """The pixel values (3, H, W) float32 of an image file's bytes.

        Raises:
            BadImageError: no image, of another format, cut short, or too large.
        """
        return self.process(decode_image(data))

    def process(self, image: Image.Image) -> torch.Tensor:
        """The pixel values (3, H, W) float32 of a decoded RGB image; BadImageError if too long."""
        return self._values(self._resized(image))

    def with_packer(self, data: bytes) -> tuple[torch.Tensor, Callable[[], bytes]]:
        """The pixel values of an image file's bytes, and what makes a file with the same ones to
        send to others: resized already and without loss, or ``data`` where that is no smaller.

        Raises:
            BadImageError: no image, of another format, cut short, or too large.
        """
        image = self._resized(decode_image(data))
        return self._values(image), partial(self._packed, image, data)

    def _packed(self, image: Image.Image, data: bytes) -> bytes:
        if len(data) <= _SMALL_BYTES:
            return data
        if self.steps.resized(*image.size) != image.size or max(image.size) > _PACKED_EDGE:
            return data
        packed = io.BytesIO()
        image.save(packed, "WEBP", lossless=True, quality=0, method=0)
        return min(data, packed.getvalue(), key=len)

    def _values(self, resized: Image.Image) -> torch.Tensor:
        pixels = np.array(resized)
        if self.steps.crop is not None:
            pixels = _center_crop(pixels, *self.steps.crop)
        return torch.from_numpy(self._scaled(pixels))

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = self.steps.resized(*image.size)
        if width * height > limits.IMAGE_PIXELS:
            raise BadImageError(
                f"the image is too elongated ({image.width} x {image.height} pixels): crop it first"
            )
        if self.steps.resize is None:
            return image
        return image.resize((width, height), resample=Image.Resampling(self.steps.resample))

    def _scaled(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """(H, W, 3) of 0..255 to (3, H, W), in the precision of each step of transformers."""
        values: npt.NDArray[np.float32] = pixels.astype(np.float32)
        if self.steps.rescale is not None:
            values = np.multiply(pixels, self.steps.rescale, dtype=np.float64).astype(np.float32)
        if self.steps.mean is not None:
            centred = values - np.array(self.steps.mean, dtype=np.float32)
            values = np.divide(centred, self.steps.std, dtype=np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))


def decode_image(data: bytes) -> Image.Image:
    """The upright RGB image in an image file's bytes; transparent parts lie on white.

    Raises:
        BadImageError: no image, of another format, cut short, or too large.
    """
    if not data:
        raise BadImageError("the image is empty (0 bytes)")
    if len(data) > limits.IMAGE_BYTES:
        raise BadImageError(
            f"the image file is larger than the {limits.IMAGE_BYTES / limits.MIB:.3g} MiB allowed: "
            "save it smaller"
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image)
            image.load()
            return _to_rgb(_upright(image))
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(f"this is no image that can be read; use {_formats()}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise BadImageError("the image has too many pixels: save it smaller") from error
    except Exception as error:  # decoders meet hostile bytes with whatever error comes first
        raise BadImageError(f"the image is damaged or cut short ({str(error)[:200]})") from error


def _formats() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _check_pixels(image: Image.Image) -> None:
    """Refuses a decompression bomb before it is decoded."""
    if image.width * image.height > limits.IMAGE_PIXELS:
        raise BadImageError(
            f"the image has {image.width} x {image.height} pixels, more than the "
            f"{limits.IMAGE_PIXELS:,} allowed: save it smaller"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Turns a photo as its EXIF orientation says; damaged EXIF data count as none."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would cut all above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, _WHITE)
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _center_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """The centre of (H, W, 3); where the image is smaller, black surrounds it.

    Rounds as transformers does: an odd rest goes below and right of a crop, and above and left as
    a border.
    """
    have_h, have_w = pixels.shape[:2]
    top, left = (have_h - height) // 2, (have_w - width) // 2
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    full_h, full_w = max(height, have_h), max(width, have_w)
    canvas = np.zeros((full_h, full_w, 3), dtype=np.uint8)
    pad_top, pad_left = math.ceil((full_h - have_h) / 2), math.ceil((full_w - have_w) / 2)
    canvas[pad_top : pad_top + have_h, pad_left : pad_left + have_w] = pixels
    top, left = top + pad_top, left + pad_left
    return canvas[max(0, top) : top + height, max(0, left) : left + width]
