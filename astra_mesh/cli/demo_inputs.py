"""What the demonstration asks: a text of our own, and a picture."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from astra_mesh.client.inputs import read_picture
from astra_mesh.errors import BadImageError

TEXT_MODEL: Final = "tiny-gpt2"
IMAGE_MODEL: Final = "vit-tiny"
SAMPLE: Final = "sample.jpg"  # in the bundle of IMAGE_MODEL
TEST_PHOTOS: Final = Path("datasets") / "cifar10_test_jpeg.zip"  # under $ASTRA_MESH_DATA
TEST_PHOTO: Final = "ship/0001.jpg"

# Written for this demonstration in the manner of what the model was trained on: 181 of its tokens.
PROMPT: Final = """\
DUKE:
Good cousin, set the candles on this table,
And bid the captains wait without the door;
For we have heard such tidings from the north
As will not let a crown sleep easily.

CAPTAIN:
My lord, the river rose upon the bridge,
And half our men stood weeping at the shore;
The rest came on by night, and without fire,
To bring your grace the letters of the queen.

DUKE:
Then read them, sir, and read them not too loud;
The walls of this old house have many ears.

CAPTAIN:
"""


@dataclass(frozen=True)
class Photo:
    """A picture and what is known of it."""

    data: bytes
    origin: str  # for people
    truth: str = ""  # its class, where that is known


def choose_photo(chosen: Path | None) -> Photo:
    """The file given, a test photo that the model never saw, or the sample of the bundle.

    Raises:
        BadImageError: It cannot be read.
        UnknownModelError: The image model is not on this device.
    """
    if chosen is not None:
        return Photo(read_picture(chosen)["image"], str(chosen))
    archive = Path(os.environ.get("ASTRA_MESH_DATA", "")) / TEST_PHOTOS
    if "ASTRA_MESH_DATA" in os.environ and archive.is_file():
        return _from_archive(archive)
    from astra_mesh.bundle import find_bundle

    path = find_bundle(IMAGE_MODEL).file(SAMPLE)
    return Photo(read_picture(path)["image"], f"{SAMPLE} of {IMAGE_MODEL} (drawn, not taken)")


def _from_archive(archive: Path) -> Photo:
    try:
        with zipfile.ZipFile(archive) as photos, photos.open(TEST_PHOTO) as file:
            data = read_picture(file.read())["image"]
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise BadImageError(f"{archive.name} cannot be read: {exc}") from None
    truth = TEST_PHOTO.partition("/")[0]
    return Photo(data, f"{TEST_PHOTO} of {archive.name} (held out from training)", truth)
