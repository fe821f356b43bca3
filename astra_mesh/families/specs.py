"""What a model is, read from its Hugging Face ``config.json``; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from astra_mesh.errors import BadBundleError, UnsupportedModelError
from astra_mesh.families.config import Config
from astra_mesh.families.spec import ModelSpec

MISTRAL_WINDOW: Final = 4096  # where its config does not mention one (null means none)


def read_gpt2(values: Mapping[str, Any]) -> ModelSpec:
    """Of one kind, see :func:`read_spec`."""
    config = Config(values)
    config.reject("scale_attn_by_inverse_layer_idx", False)
    config.reject("scale_attn_weights", True)
    config.reject("add_cross_attention", False)
    hidden = config.size("n_embd", "hidden_size")
    heads = config.size("n_head", "num_attention_heads")
    return ModelSpec(
        family="gpt2",
        hidden_size=hidden,
        intermediate_size=config.size("n_inner", default=4 * hidden),
        num_hidden_layers=config.blocks("n_layer", "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=config.head_dim(hidden, heads),
        vocab_size=config.size("vocab_size"),
        max_tokens=config.size("n_positions", "n_ctx", "max_position_embeddings"),
        causal=True,
        has_class_token=False,
        tasks=("generate",),
    )


def _pair(value: Any, name: str) -> tuple[int, int]:
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(type(v) is int and 0 < v <= 1 << 14 for v in pair):
        raise BadBundleError(
            f"config.json: {name} must be one or two whole numbers, it is {value!r}"
        )
    return int(pair[0]), int(pair[1])


def geometry(values: Mapping[str, Any]) -> tuple[tuple[int, int, int], int]:
    """Shape (C, H, W) of the pictures and edge of a patch, in pixels."""
    height, width = _pair(values.get("image_size", 224), "image_size")
    patch, other = _pair(values.get("patch_size", 16), "patch_size")
    if patch != other or height % patch or width % patch:
        raise BadBundleError(
            f"config.json: patches {patch}x{other} do not tile an image of {height}x{width}"
        )
    return (Config(values).size("num_channels", default=3), height, width), patch


def read_vit(values: Mapping[str, Any]) -> ModelSpec:
    """Of one kind, see :func:`read_spec`."""
    config = Config(values)
    (_, height, width), patch = geometry(values)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    return ModelSpec(
        family="vit",
        hidden_size=hidden,
        intermediate_size=config.size("intermediate_size"),
        num_hidden_layers=config.blocks("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=config.head_dim(hidden, heads),
        vocab_size=0,
        max_tokens=(height // patch) * (width // patch) + 1,
        causal=False,
        has_class_token=True,
        tasks=("classify",),
    )


def _context(config: Config) -> int:
    """Positions that are exact: a sliding window, where one is in use, caps them."""
    longest = config.size("max_position_embeddings", default=2048)
    if config.values.get("model_type") == "mistral":
        window = config.values.get("sliding_window", MISTRAL_WINDOW)
    else:
        used = config.get("use_sliding_window", False)
        window = config.values.get("sliding_window") if used else None
    return (
        longest if window is None else min(longest, config.size("sliding_window", default=window))
    )


def read_llama(values: Mapping[str, Any]) -> ModelSpec:
    """Of one kind, see :func:`read_spec`."""
    config = Config(values)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise BadBundleError(f"config.json: {heads} heads cannot share {kv_heads} key/value heads")
    stated = values.get("head_dim") is not None
    head_dim = config.size("head_dim") if stated else config.head_dim(hidden, heads)
    if head_dim % 2:
        raise BadBundleError(f"config.json: head_dim must be even to be rotated, it is {head_dim}")
    return ModelSpec(
        family="llama",
        hidden_size=hidden,
        intermediate_size=config.size("intermediate_size"),
        num_hidden_layers=config.blocks("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=config.size("vocab_size"),
        max_tokens=_context(config),
        causal=True,
        has_class_token=False,
        tasks=("generate",),
    )


def read_bert(values: Mapping[str, Any]) -> ModelSpec:
    """Of one kind, see :func:`read_spec`."""
    config = Config(values)
    config.reject("position_embedding_type", "absolute")
    config.reject("is_decoder", False)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    names = values.get("architectures") or []
    classifies = any("SequenceClassification" in str(name) for name in names)
    return ModelSpec(
        family="bert",
        hidden_size=hidden,
        intermediate_size=config.size("intermediate_size"),
        num_hidden_layers=config.blocks("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=config.head_dim(hidden, heads),
        vocab_size=config.size("vocab_size"),
        max_tokens=config.size("max_position_embeddings"),
        causal=False,
        has_class_token=True,
        tasks=("classify", "embed") if classifies else ("embed",),
    )


_READERS: Final[dict[str, Callable[[Mapping[str, Any]], ModelSpec]]] = {
    "gpt2": read_gpt2,
    "vit": read_vit,
    "llama": read_llama,
    "mistral": read_llama,
    "qwen2": read_llama,
    "qwen3": read_llama,
    "bert": read_bert,
}


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a Hugging Face ``config.json``; UnsupportedModelError, BadBundleError."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise UnsupportedModelError(
            f"config.json: model_type {kind!r} is not supported; supported: {', '.join(_READERS)}"
        )
    return _READERS[kind](config)
