"""Go on with the beginning of every text file in a folder; models that follow instructions sum up.

    python examples/summarise_folder.py FOLDER --model MODEL

The files are asked for side by side; the peer that is asked takes them in turn. A file that cannot
be read, or that the model cannot take, is named, and the others are gone on with.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import astra_mesh
from astra_mesh.errors import AstraMeshError, UnknownModelError, WrongTaskError

AT_ONCE = 4
PROMPT = "{text}\n\nIn short, this text says that"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny-gpt2")
    parser.add_argument("--characters", type=int, default=300, help="read of each file")
    parser.add_argument("--tokens", type=int, default=40, help="written for each file")
    given = parser.parse_args()
    if not given.folder.is_dir():
        parser.error(f"there is no folder {given.folder}")
    files = sorted(given.folder.glob("*.txt"))
    if not files:
        parser.error(f"{given.folder} holds no texts: files *.txt")

    places = asyncio.Semaphore(AT_ONCE)
    async with astra_mesh.connect() as mesh:

        async def summarise(path: Path) -> str | None:
            """None: no answer came; why is said."""
            try:
                text = await asyncio.to_thread(path.read_text, errors="replace")
                prompt = PROMPT.format(text=text[: given.characters])
                async with places:
                    generation = mesh.generate(given.model, prompt, max_new_tokens=given.tokens)
                    return "".join([token.text async for token in generation])
            except OSError as error:
                print(f"{path.name} cannot be read: {error.strerror}", file=sys.stderr)
            except (UnknownModelError, WrongTaskError):  # so it would be with every file
                raise
            except AstraMeshError as error:
                print(f"{path.name}: {error.message}", file=sys.stderr)
            return None

        answers = await asyncio.gather(*map(summarise, files))
    for path, answer in zip(files, answers, strict=True):
        if answer is not None:
            print(f"{path.name}: {' '.join(answer.split())}")
    if all(answer is None for answer in answers):
        sys.exit(f"error: none of the {len(files)} texts could be gone on with")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except AstraMeshError as error:
        sys.exit(f"error: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)
