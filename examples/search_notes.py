"""Find the notes (paragraphs of text files) that mean something like a question.

    python examples/search_notes.py FOLDER "where is the key?" --model all-MiniLM-L6-v2

The model is one that makes vectors, such as sentence-transformers/all-MiniLM-L6-v2
(`astra-mesh models pull` gets it).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import numpy as np

import astra_mesh
from astra_mesh.errors import AstraMeshError

AT_ONCE = 4


def paragraphs(folder: Path) -> list[tuple[str, str]]:
    """File name and text of each."""
    return [
        (path.name, " ".join(text.split()))
        for path in sorted(folder.glob("*.txt"))
        for text in path.read_text(errors="replace").split("\n\n")
        if text.strip()
    ]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--model", required=True)
    parser.add_argument("--best", type=int, default=3)
    given = parser.parse_args()
    if not given.folder.is_dir():
        parser.error(f"there is no folder {given.folder}")

    notes = paragraphs(given.folder)
    if not notes:
        parser.error(f"{given.folder} holds no notes: files *.txt")
    places = asyncio.Semaphore(AT_ONCE)
    async with astra_mesh.connect() as mesh:

        async def vector(text: str) -> np.ndarray:
            async with places:
                return (await mesh.embed(given.model, text)).vector

        wanted, *found = await asyncio.gather(
            vector(given.question), *(vector(text) for _, text in notes)
        )
    scores = np.stack(found) @ wanted  # cosines: the vectors have length 1
    for place in np.argsort(-scores)[: given.best]:
        name, text = notes[place]
        print(f"{scores[place]:.3f}  {name}: {text}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except AstraMeshError as error:
        sys.exit(f"error: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)
