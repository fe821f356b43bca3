"""The tensors of a GGUF file: their names in a Hugging Face checkpoint, and their shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from astra_mesh import limits
from astra_mesh.bundle.configs import bad_file
from astra_mesh.bundle.gguf_check import AGAIN
from astra_mesh.errors import UnsupportedModelError

FREQUENCIES: Final = "rope_freqs.weight"
_NAME: Final = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
# Part: its name over there, and the sizes of its weight by the names of _sizes.
_PARTS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "token_embd": ("model.embed_tokens", ("words", "hidden")),
    "output_norm": ("model.norm", ("hidden",)),
    "output": ("lm_head", ("words", "hidden")),
}
_BLOCK_PARTS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "attn_norm": ("input_layernorm", ("hidden",)),
    "attn_q": ("self_attn.q_proj", ("queries", "hidden")),
    "attn_k": ("self_attn.k_proj", ("keys", "hidden")),
    "attn_v": ("self_attn.v_proj", ("keys", "hidden")),
    "attn_output": ("self_attn.o_proj", ("hidden", "queries")),
    "attn_q_norm": ("self_attn.q_norm", ("head",)),
    "attn_k_norm": ("self_attn.k_norm", ("head",)),
    "ffn_norm": ("post_attention_layernorm", ("hidden",)),
    "ffn_gate": ("mlp.gate_proj", ("inner", "hidden")),
    "ffn_up": ("mlp.up_proj", ("inner", "hidden")),
    "ffn_down": ("mlp.down_proj", ("hidden", "inner")),
}
_QWEN3_ONLY: Final = ("attn_q_norm", "attn_k_norm")


def new_name(path: Path, old: str) -> tuple[str, str]:
    """The name of a tensor in a Hugging Face checkpoint, and its part of a block.

    Raises:
        UnsupportedModelError: no model of the kinds that are read here has such a tensor.
    """
    match = _NAME.fullmatch(old)
    at, parts = "", _PARTS
    if match and match["block"]:
        at, parts = f"model.layers.{match['block']}.", _BLOCK_PARTS
    if match is None or match["part"] not in parts:
        raise UnsupportedModelError(f"{path.name} has a tensor {old[:64]!a}, unknown here")
    return f"{at}{parts[match['part']][0]}.{match['kind']}", match["part"]


def check_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> None:
    """Compare a file's tensors with what its metadata say.

    Args:
        path: of the file, for messages.
        shapes: of its tensors, by their names there, rows first.
        config: what its metadata came to.

    Raises:
        BadBundleError: one is missing, or of another shape.
        UnsupportedModelError: one is unknown, or there are too many blocks.
    """
    blocks = config["num_hidden_layers"]
    if blocks > limits.BLOCKS:
        raise UnsupportedModelError(
            f"{path.name} has {blocks} blocks; at most {limits.BLOCKS} are allowed"
        )
    for name in _needed(config["model_type"], blocks):
        if name not in shapes:
            raise bad_file(path, f"has no tensor {name}", AGAIN)
    sizes = _sizes(config)
    for name, shape in shapes.items():
        if name == FREQUENCIES:
            continue
        _, part = new_name(path, name)
        _, dimensions = (_PARTS | _BLOCK_PARTS)[part]
        wanted = tuple(sizes[one] for one in dimensions)
        if name.endswith(".bias"):
            wanted = wanted[:1]
        if shape != wanted:
            raise bad_file(
                path,
                f"its tensor {name[:64]} is {_product(shape)} where its metadata say "
                f"{_product(wanted)}",
                AGAIN,
            )


def _needed(kind: str, blocks: int) -> list[str]:
    parts = [one for one in _BLOCK_PARTS if kind == "qwen3" or one not in _QWEN3_ONLY]
    inside = [f"blk.{index}.{part}.weight" for index in range(blocks) for part in parts]
    return ["token_embd.weight", "output_norm.weight", *inside]


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    head = config["head_dim"]
    return {
        "words": config["vocab_size"],
        "hidden": config["hidden_size"],
        "inner": config["intermediate_size"],
        "head": head,
        "queries": head * config["num_attention_heads"],
        "keys": head * config["num_key_value_heads"],
    }


def _product(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
