"""What decoding costs a receiver, by codebook and rate: numbers that follow from the sizes alone.

Time is measured on the device (:mod:`astra_mesh.peer.measure`); these say what it depends on.
"""

from __future__ import annotations

from dataclasses import dataclass

from astra_mesh.families.spec import ModelSpec
from astra_mesh.quant.codebook import UNLIMITED, Codebook, sources

BYTES = 4  # of a float32 number in a table
ROUGH_BYTES = 8  # beside a row's numbers of one byte each


@dataclass(frozen=True)
class DecodeCost:
    """Of one rate; per token and block where nothing else is said."""

    bits: int
    stages: int
    codes: int
    table_rows: int  # that tables add up, in the block with the longest history
    table_bytes: int  # of all blocks' tables
    table_products: int  # multiplications beside the rows: the first block's part
    project_products: int  # multiplications of the other way: prediction and projection


def table_rows(codebook: Codebook, block: int, stages: int) -> int:
    """Rows that decoding one token of ``block`` adds up from tables."""
    codes = sum(codebook.groups[:stages])
    if not codebook.history:
        return codes
    depth = block if codebook.history == UNLIMITED else min(block, codebook.history + 1)
    return codes * depth


def table_bytes(
    codebook: Codebook,
    stages: int,
    kv_size: int,
    number_bytes: int = BYTES,
    *,
    rough: bool | None = None,
) -> int:
    """Memory of the tables of all blocks: rows, offsets, what the first block is multiplied by.

    ``number_bytes`` is of a number that the model computes in; ``rough`` as in
    :class:`astra_mesh.quant.vector.VectorCodec`, None: as in a peer.
    """
    width = 2 * kv_size
    rough = not codebook.history if rough is None else rough
    row_bytes = width + ROUGH_BYTES if rough else width * number_bytes
    others = codebook.hidden_size + 1 if codebook.history else 1
    size = 0
    for block in range(codebook.first_block, codebook.first_block + codebook.blocks):
        size += table_rows(codebook, block, stages) * codebook.size * row_bytes
        size += others * width * number_bytes
    return size


def decode_costs(codebook: Codebook, spec: ModelSpec) -> list[DecodeCost]:
    """Of all rates, ascending."""
    last = codebook.first_block + codebook.blocks - 1
    hidden, keys_values = spec.hidden_size, 2 * spec.kv_size
    predictions = len(sources(codebook.history, last)) if codebook.history else 0
    found = []
    for stages, bits in codebook.rates.items():
        tables = codebook.codec == "vq"
        found.append(
            DecodeCost(
                bits=bits,
                stages=stages,
                codes=sum(codebook.groups[:stages]),
                table_rows=table_rows(codebook, last, stages) if tables else 0,
                table_bytes=table_bytes(codebook, stages, spec.kv_size) if tables else 0,
                table_products=hidden * keys_values if codebook.history else 0,
                project_products=predictions * hidden * hidden + hidden * keys_values,
            )
        )
    return found
