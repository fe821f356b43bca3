"""preprocessor_config.json of image models: what it may say, and what it means if it is silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from astra_mesh import limits
from astra_mesh.errors import BadBundleError, UnsupportedModelError

NAME: Final = "preprocessor_config.json"
# Processors that resize, crop, rescale and normalise as ViT's does, with ViT's defaults.
_TYPES: Final = frozenset(
    {"ViTImageProcessor", "ViTImageProcessorFast", "ViTImageProcessorPil", "ViTFeatureExtractor"}
)
_EDGE: Final = 8_192  # pixels; models look at some hundreds
_FACTOR: Final = 1e6  # of pixel values; usual ones are 1/255 to 255
_FILTERS: Final = 6  # Pillow's resampling filters are numbered from 0 to 5


@dataclass(frozen=True)
class Preprocessor:
    """The steps from a decoded image to pixel values, in the order of the fields."""

    resize: tuple[int, int] | int | None  # (height, width), or the shorter edge; None: as it is
    resample: int  # Pillow's number of the filter
    crop: tuple[int, int] | None  # (height, width) of the centre
    rescale: float | None  # factor for pixels of 0..255
    mean: tuple[float, float, float] | None  # None: no normalisation
    std: tuple[float, float, float]

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an image of the given size after the resizing."""
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        longer = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, longer) if width <= height else (longer, self.resize)


def read_preprocessor(config: Mapping[str, Any]) -> Preprocessor:
    """The steps that a preprocessor_config.json describes; what it leaves out is as for ViT.

    Raises:
        UnsupportedModelError: it describes a processor of another kind.
        BadBundleError: a value is of the wrong type or out of range.
    """
    kind = config.get("image_processor_type", config.get("feature_extractor_type"))
    if kind is not None and kind not in _TYPES:
        raise UnsupportedModelError(
            f"{NAME}: astra-mesh does not know the image processor {str(kind)[:64]!a}; "
            f"it knows {', '.join(sorted(_TYPES))}"
        )
    size = config.get("size", {"height": 224, "width": 224})
    return Preprocessor(
        resize=_resize(size) if _flag(config, "do_resize", True) else None,
        resample=_resample(config.get("resample", 2)),
        crop=_crop(config) if _flag(config, "do_center_crop", False) else None,
        rescale=_rescale(config) if _flag(config, "do_rescale", True) else None,
        mean=_channels(config, "image_mean") if _flag(config, "do_normalize", True) else None,
        std=_channels(config, "image_std", nonzero=True),
    )


def _bad(field: str, value: Any) -> BadBundleError:
    return BadBundleError(
        f"{NAME}: {field} cannot be {str(value)[: limits.NAME_CHARS]!a}; "
        "copy the file again from where the model came"
    )


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _bad(name, value)
    return value


def _edge(field: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _EDGE:
        raise _bad(field, value)
    return value


def _pair(field: str, value: Any) -> tuple[int, int]:
    """(height, width) from one number (a square), two, or an object with both."""
    if isinstance(value, dict) and value.keys() == {"height", "width"}:
        value = [value["height"], value["width"]]
    if not isinstance(value, list):
        value = [value, value]
    if len(value) != 2:
        raise _bad(field, value)
    return _edge(field, value[0]), _edge(field, value[1])


def _resize(size: Any) -> tuple[int, int] | int:
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        return _edge("size", size["shortest_edge"])
    return _pair("size", size)


def _crop(config: Mapping[str, Any]) -> tuple[int, int]:
    return _pair("crop_size", config.get("crop_size"))


def _resample(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _FILTERS:
        raise _bad("resample", value)
    return value


def _number(field: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= _FACTOR:  # NaN is not
        raise _bad(field, value)
    return float(value)


def _rescale(config: Mapping[str, Any]) -> float:
    return _number("rescale_factor", config.get("rescale_factor", 1 / 255))


def _channels(
    config: Mapping[str, Any], field: str, *, nonzero: bool = False
) -> tuple[float, float, float]:
    value = config.get(field, 0.5)
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3:
        raise _bad(field, value)
    red, green, blue = (_number(field, v) for v in values)
    if nonzero and 0.0 in (red, green, blue):
        raise _bad(field, value)
    return red, green, blue
