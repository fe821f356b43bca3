"""Cuts Tiny Shakespeare as training did: the first 90 % of the characters, and the last 10 %.

python -m tools.models.split_text FOLDER        # writes train.txt and valid.txt there
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.lab import options
from tools.models.common import default_data_root
from tools.models.train_tiny_gpt2 import load_text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=options.existing_folder, default=str(default_data_root()))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(("train", "valid"), load_text(args.data), strict=True):
        (args.folder / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
