"""Label the pictures that a camera puts into a folder, with --watch also those still to come.

python examples/classify_folder.py FOLDER --watch
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import astra_mesh
from astra_mesh.errors import AstraMeshError, BadImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LOOK_S = 1.0


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="vit-tiny")
    parser.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    given = parser.parse_args()
    if not given.folder.is_dir():
        parser.error(f"there is no folder {given.folder}")

    known: dict[Path, int | None] = {}  # path -> bytes when it was labelled, or last looked at
    async with astra_mesh.connect() as mesh:
        while True:
            for path in files_of(given.folder):
                size = size_of(path)
                if path.suffix.lower() not in SUFFIXES or size in (None, known.get(path)):
                    continue
                known[path] = size
                try:
                    found = await mesh.classify(given.model, path, top=1)
                except BadImageError as error:  # perhaps it is still being written
                    print(f"{path.name}: {error.message}")
                    continue
                best = found.labels[0]
                print(f"{path.name}: {best.label} ({best.probability:.0%})", flush=True)
            if not given.watch:
                break
            await asyncio.sleep(LOOK_S)
    if not known:
        parser.error(f"{given.folder} holds no pictures: files *{', *'.join(sorted(SUFFIXES))}")


def files_of(folder: Path) -> list[Path]:
    """In order; ends the program if the folder went or cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        sys.exit(f"error: {folder} cannot be read: {error.strerror}")


def size_of(path: Path) -> int | None:
    """None: it went meanwhile, or is a link to nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return None


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except AstraMeshError as error:
        sys.exit(f"error: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)
