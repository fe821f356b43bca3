"""The baselines by name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from astra_mesh.families import Model
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.quant.codecs import PlainCodec, make_codec
from tools.bench.baselines.run import Baseline
from tools.bench.baselines.sequence import SequenceParallel
from tools.bench.baselines.single import single
from tools.bench.baselines.tensor import TensorParallel

DTYPES: Final = ("fp32", "bf16")  # that all baselines can compute in, the first unless said
SINGLE: Final = "single"
NAMES: Final = (
    SINGLE,
    "tensor",
    "voltage-fp32",
    "voltage-fp16",
    "voltage-int8",
    "voltage-int4",
    "block-1",
    "block-4",
    "astra-1",
    "astra-16",
    "astra-32",
)


def make(name: str, model: Model, astra: Path) -> Baseline:
    """The baseline of that name; ``astra``: folder of the published form's codebooks.

    Raises:
        ValueError: there is none of that name.
    """
    kind, _, more = name.partition("-")
    if name not in NAMES:
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(NAMES)}")
    if kind == "voltage":
        return SequenceParallel(PlainCodec(more, model))
    if kind == "block":
        return SequenceParallel(PlainCodec("fp32", model), period=int(more))
    if kind == "astra":
        return SequenceParallel(
            make_codec("astra", model, load_codebook(astra / f"{more}.safetensors"))
        )
    return single if name == SINGLE else TensorParallel()
