"""Find the notes (paragraphs of files *.txt and *.md) that mean something like a question.

    python examples/search_notes.py FOLDER "where is the key?" --model all-MiniLM-L6-v2

The model is one that makes vectors, such as sentence-transformers/all-MiniLM-L6-v2
(`astra-mesh models pull` gets it). A paragraph that its context does not hold is read in pieces.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import numpy as np

import astra_mesh
from astra_mesh.errors import AstraMeshError, EmptyPromptError, PromptTooLongError

AT_ONCE = 4
KINDS = ("*.txt", "*.md")


def paragraphs(folder: Path) -> list[tuple[str, str]]:
    """File name and text of each; files that cannot be read are named."""
    found = []
    for path in sorted(path for kind in KINDS for path in folder.glob(kind)):
        try:
            texts = path.read_text(errors="replace").split("\n\n")
        except OSError as error:
            print(f"{path.name} cannot be read: {error.strerror}", file=sys.stderr)
            continue
        found += [(path.name, " ".join(text.split())) for text in texts if text.strip()]
    return found


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
        parser.error(f"{given.folder} holds no notes: files {' or '.join(KINDS)}")
    places = asyncio.Semaphore(AT_ONCE)
    async with astra_mesh.connect() as mesh:

        async def vector(text: str) -> np.ndarray:
            async with places:
                return (await mesh.embed(given.model, text)).vector

        async def pieces(name: str, text: str) -> list[tuple[str, str, np.ndarray]]:
            """A note, or the parts of it that the model can read."""
            try:
                return [(name, text, await vector(text))]
            except PromptTooLongError as error:
                words = text.split()
                if len(words) == 1:
                    print(f"{name}: a word is left out: {error.message}", file=sys.stderr)
                    return []
                half = len(words) // 2
                parts = (" ".join(words[:half]), " ".join(words[half:]))
                return [one for part in parts for one in await pieces(name, part)]
            except EmptyPromptError:  # nothing that the model's tokenizer knows
                return []

        wanted = await vector(given.question)
        read = await asyncio.gather(*(pieces(*note) for note in notes))
    found = [one for note in read for one in note]
    scores = [float(one @ wanted) for _, _, one in found]  # cosines: the vectors have length 1
    for place in sorted(range(len(found)), key=lambda one: -scores[one])[: given.best]:
        name, text, _ = found[place]
        print(f"{scores[place]:.3f}  {name}: {text}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except AstraMeshError as error:
        sys.exit(f"error: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)
