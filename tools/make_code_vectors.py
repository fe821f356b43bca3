"""Writes tests/vectors/codes.json: packed codes and rounded rows, which JavaScript has to match.

Run it after a change of them (``python -m tools.make_code_vectors``): they would be no longer what
older peers understand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from astra_mesh.quant.codecs import PLAIN, PlainCodec
from astra_mesh.wire.bits import Codes, pack

PATH = Path(__file__).parent.parent / "tests" / "vectors" / "codes.json"
SIZE = 45  # of a row: no multiple of int4's groups
HARD = (0.0, 1.0, -2.5, 65519.0, 65504.0, 6e-8, 2.9e-8, 3e-8, 6.1e-5, 1e-30, 0.5, -0.49999997)


class _Rows(PlainCodec):
    """A codec that codes the rows themselves, without a model."""

    def __init__(self, name: str) -> None:
        super().__init__(name, _Model())  # type: ignore[arg-type]


class _Model:
    class spec:  # noqa: N801
        hidden_size = SIZE

    def block(self, index: int) -> _Model:
        return self

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return x


def packed() -> list[dict[str, Any]]:
    random = np.random.default_rng(4)
    found = []
    for bits in (1, 3, 7, 8, 9, 12, 16):
        for tokens, groups in ((0, 3), (1, 1), (5, 3), (9, 7)):
            drawn = random.integers(0, 1 << bits, (tokens, groups))
            codes: Codes = drawn.astype(np.uint8) if bits <= 8 else drawn.astype(np.uint16)
            found.append(
                {"bits": bits, "codes": codes.flatten().tolist(), "packed": pack(codes, bits).hex()}
            )
    return found


def rows() -> list[dict[str, Any]]:
    random = np.random.default_rng(5)
    x = random.normal(size=(6, SIZE)).astype(np.float32)
    x[1] = 0.0
    x[2, : len(HARD)] = HARD
    x[3] *= 1e-9
    x[4] = np.round(x[4] * 4) / 2  # ties
    found = []
    for name in PLAIN:
        codec = _Rows(name)
        (codes,) = codec.encode(1, torch.from_numpy(x))
        rebuilt = codec.rebuild([codes]).numpy()
        found.append(
            {
                "codec": name,
                "rows": x.astype("<f4").tobytes().hex(),
                "codes": codes.tobytes().hex(),
                "rebuilt": rebuilt.astype("<f4").tobytes().hex(),
            }
        )
    return found


def vectors() -> dict[str, Any]:
    return {"size": SIZE, "packed": packed(), "rows": rows()}


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
    print(f"written to {PATH.name}")
