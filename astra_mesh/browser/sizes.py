"""What a model costs a tab: numbers that follow from its sizes alone."""

from __future__ import annotations

from astra_mesh import limits
from astra_mesh.errors import UnsupportedModelError
from astra_mesh.families import ModelSpec


def block_numbers(spec: ModelSpec) -> int:
    """Numbers in one block's matrices."""
    attention = spec.hidden_size * (2 * spec.q_size + 2 * spec.kv_size)
    wide = 3 if spec.family == "llama" else 2
    return attention + wide * spec.hidden_size * spec.intermediate_size


def blocks_bytes(spec: ModelSpec) -> int:
    """Memory that a tab needs for all blocks, in float32."""
    return 4 * spec.num_hidden_layers * block_numbers(spec)


def fetched_bytes(spec: ModelSpec, half: bool) -> int:
    """What a tab fetches of the blocks' numbers: three bytes of each at most, two where the
    checkpoint has 16 bits (numbers of bfloat16 beyond float16's take three, which is rare).
    """
    return (2 if half else 3) * blocks_bytes(spec) // 4


def check_size(name: str, spec: ModelSpec) -> None:
    """UnsupportedModelError where a tab cannot hold the blocks."""
    needed = blocks_bytes(spec)
    if needed > limits.TAB_MODEL_BYTES:
        raise UnsupportedModelError(
            f"{name} needs {needed >> 20} MiB of memory for its blocks; a browser tab is given "
            f"{limits.TAB_MODEL_BYTES >> 20} MiB at most: use a smaller model with tabs"
        )
