"""Models of true sizes with random weights and codebooks, made on the spot: for timing only.

Arithmetic, message sizes and memory are those of the real models; the answers mean nothing, and the
quality of the codes even less. Files go to a cache folder outside the repository.

    python -m tools.bench.sizes          # make them all
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import platformdirs
import torch
from PIL import Image
from torch import Tensor

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import save_tensors
from astra_mesh.families import ModelSpec, read_spec
from astra_mesh.quant.codebook import UNLIMITED, BlockBook, Codebook, as_stored, check
from astra_mesh.wire.messages import ModelId

VERSION: Final = "2"  # of what is made; another one makes all anew
CODEWORDS: Final = 256
RANK: Final = 0.7  # coordinates that are coded, of the hidden size: as fitted for MiniLM-L6
ASTRA_CODEWORDS: Final = 1024
ASTRA_GROUPS: Final = (1, 16, 32)  # 10, 160 and 320 bits
MEMORYLESS_BITS: Final = 128  # one stage of 16 groups
MEMORYLESS: Final = f"codebook-{MEMORYLESS_BITS}.safetensors"

# One code, then another: 16 and 32 bits. More codes with unlimited history make tables of up to a
# gigabyte in each peer, too many for eight peers in one machine.
PREDICTIVE: Final = {2: (1, 1), 3: (1, 1, 2)}  # groups of each stage, by number of stages


class Form(NamedTuple):
    """How the memoryless codebook is made."""

    rank: float = RANK
    first_block: int = 1  # 0: the first block is coded, too


PLAIN: Final = "plain"
FORMS: Final = {
    PLAIN: Form(),
    "half": Form(rank=RANK / 2),
    "first": Form(first_block=0),
    "half-first": Form(rank=RANK / 2, first_block=0),
}


def _vit(edge: int) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": edge,
        "patch_size": 16,
        "id2label": {str(i): f"class {i}" for i in range(1000)},
    }


CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "vit-base": _vit(224),  # ViT-Base/16: 197 tokens
    "vit-base-1024": _vit(512),  # the same with 1,025 tokens
    "gpt2-124m": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 4096,  # GPT-2 itself has 1,024
        "vocab_size": 50257,
    },
    "llama-125m": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}


def default_cache() -> Path:
    """Where the models lie: $ASTRA_MESH_BENCH_CACHE, or the user's cache folder."""
    chosen = os.environ.get("ASTRA_MESH_BENCH_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_path("astra-mesh")) / "bench"


def text_limit(name: str) -> int | None:
    """Tokens that a model takes at most; None: it reads pictures, which always have as many."""
    spec = read_spec(CONFIGS[name])
    return spec.max_tokens if spec.vocab_size else None


def ensure(
    name: str, cache: Path, config: Mapping[str, Any] | None = None, form: str = PLAIN
) -> Path:
    """The folder of a model, made if it is not there: ``bundle`` (with the ``vq`` codebooks) and
    ``astra`` (the codebooks of the published form, which peers do not load).

    ``config`` replaces that of :data:`CONFIGS`, for tests; ``form`` is one of :data:`FORMS`.
    """
    config = dict(CONFIGS[name] if config is None else config)
    target = cache / f"{name}-{VERSION}" if form == PLAIN else cache / f"{name}-{VERSION}-{form}"
    if target.exists():
        return target
    plain = None if form == PLAIN else ensure(name, cache, config)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as work:
        folder = Path(work) / name
        if plain is None:
            _write(folder, name, config)
        else:
            shutil.copytree(plain, folder, copy_function=os.link)
            bundle, spec = folder / name, read_spec(config)
            (bundle / MEMORYLESS).unlink()
            memoryless(spec, open_bundle(bundle).model_id, FORMS[form]).save(bundle / MEMORYLESS)
        shutil.move(folder, target)
    return target


def _write(folder: Path, name: str, config: dict[str, Any]) -> None:
    bundle, spec = folder / name, read_spec(config)
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if "image_size" in config:
        edge = {"height": config["image_size"], "width": config["image_size"]}
        settings = {"image_processor_type": "ViTImageProcessor", "size": edge}
        (bundle / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_tensors(bundle / "model.safetensors", random_weights(config))
    model = open_bundle(bundle).model_id
    memoryless(spec, model).save(bundle / MEMORYLESS)
    predictive(spec, model).save(bundle / "codebook.safetensors")
    (folder / "astra").mkdir()
    for groups in ASTRA_GROUPS:
        published(spec, model, groups).save(folder / "astra" / f"{groups}.safetensors")


# --- weights --------------------------------------------------------------------------------------


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint of the config: matrices N(0, 0.02), norms one, biases zero."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"vit": _vit_shapes, "gpt2": _gpt2_shapes, "llama": _llama_shapes}
    found = {}
    for name, shape in shapes[config["model_type"]](config).items():
        if len(shape) > 1:
            found[name] = torch.randn(shape, generator=g) * 0.02
        else:
            found[name] = torch.full(shape, float(name.endswith("weight")))
    return found


Shapes = dict[str, tuple[int, ...]]


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _dense(name: str, outer: int, inner: int) -> Shapes:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def _gpt2_shapes(config: Mapping[str, Any]) -> Shapes:
    d, at = config["n_embd"], "transformer"
    found: Shapes = {
        f"{at}.wte.weight": (config["vocab_size"], d),
        f"{at}.wpe.weight": (config["n_positions"], d),
    }
    found |= _norm(f"{at}.ln_f", d)
    layers = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d)}
    layers |= {"mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
    for i in range(config["n_layer"]):
        found |= _norm(f"{at}.h.{i}.ln_1", d) | _norm(f"{at}.h.{i}.ln_2", d)
        for name, (inner, outer) in layers.items():
            found[f"{at}.h.{i}.{name}.weight"] = (inner, outer)
            found[f"{at}.h.{i}.{name}.bias"] = (outer,)
    return found


def _llama_shapes(config: Mapping[str, Any]) -> Shapes:
    d, f = config["hidden_size"], config["intermediate_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    found: Shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], d),
        "model.norm.weight": (d,),
        "lm_head.weight": (config["vocab_size"], d),
    }
    matrices = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d)}
    matrices |= {"self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d)}
    matrices |= {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in matrices.items():
            found[f"model.layers.{i}.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{i}.{name}.weight"] = (d,)
    return found


def _vit_shapes(config: Mapping[str, Any]) -> Shapes:
    d, f, p = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    tokens = (config["image_size"] // p) ** 2 + 1
    found: Shapes = {
        "vit.embeddings.cls_token": (1, 1, d),
        "vit.embeddings.position_embeddings": (1, tokens, d),
        "vit.embeddings.patch_embeddings.projection.weight": (d, 3, p, p),
        "vit.embeddings.patch_embeddings.projection.bias": (d,),
    }
    found |= _norm("vit.layernorm", d) | _dense("classifier", len(config["id2label"]), d)
    for i in range(config["num_hidden_layers"]):
        at = f"vit.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            found |= _dense(f"{at}.attention.attention.{part}", d, d)
        found |= _dense(f"{at}.attention.output.dense", d, d)
        found |= _dense(f"{at}.intermediate.dense", f, d) | _dense(f"{at}.output.dense", d, f)
        found |= _norm(f"{at}.layernorm_before", d) | _norm(f"{at}.layernorm_after", d)
    return found


# --- codebooks ------------------------------------------------------------------------------------


def memoryless(spec: ModelSpec, model: ModelId, form: Form = FORMS[PLAIN]) -> Codebook:
    """``vq``, 128 bits: 16 groups in one stage, no history."""
    groups = (MEMORYLESS_BITS // 8,)
    return _codebook(spec, model, 0, groups, {1: groups}, form=form)


def predictive(spec: ModelSpec, model: ModelId) -> Codebook:
    """``vq`` with unlimited history at 16 and 32 bits."""
    return _codebook(spec, model, UNLIMITED, PREDICTIVE[max(PREDICTIVE)], PREDICTIVE)


def remembering(spec: ModelSpec, model: ModelId) -> Codebook:
    """``vq`` with unlimited history as `fit --history all` makes it, nearly all coordinates coded:
    16 to 128 bits."""
    groups = (1, 1, 2, 4, 8)
    levels = {stages: groups[:stages] for stages in (2, 3, 4, 5)}
    return _codebook(spec, model, UNLIMITED, groups, levels, form=Form(rank=0.995))


def staged(spec: ModelSpec, model: ModelId, groups: tuple[int, ...], size: int) -> Codebook:
    """``vq`` without history, with so many groups of ``size`` codewords in each stage."""
    return _codebook(spec, model, 0, groups, {len(groups): groups}, size)


def _codebook(
    spec: ModelSpec,
    model: ModelId,
    history: int,
    groups: tuple[int, ...],
    levels: Mapping[int, Sequence[int]],
    size: int = CODEWORDS,
    form: Form = FORMS[PLAIN],
) -> Codebook:
    g = torch.Generator().manual_seed(1)
    d = spec.hidden_size
    turn = torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    book = Codebook(
        codec="vq",
        model=model,
        hidden_size=d,
        first_block=form.first_block,
        history=history,
        groups=groups,
        size=size,
        default_stages=max(levels),
        levels={
            stages: tuple(
                _block_book(cuts, turn[: round(form.rank * d)], history, g, size)
                for _ in range(form.first_block, spec.num_hidden_layers)
            )
            for stages, cuts in levels.items()
        },
    )
    check(book)
    return book


def _block_book(
    groups: Sequence[int], turn: Tensor, history: int, g: torch.Generator, size: int
) -> BlockBook:
    """Random codewords in randomly rotated coordinates (the rows of ``turn``, (R, D)); the
    prediction is most of what was."""
    rank, d = turn.shape
    return as_stored(
        BlockBook(
            tuple(torch.randn(n, size, -(-rank // n), generator=g) * 0.3 for n in groups),
            tuple(_order(n, rank, g) for n in groups),
            torch.zeros(d),
            turn.contiguous(),
            turn.T.contiguous(),
            None if history == 0 else 0.9 * torch.eye(d).unsqueeze(0),
        )
    )


def _order(groups: int, rank: int, g: torch.Generator) -> Tensor:
    """The coordinates in any order, padded with ``rank`` where the groups do not divide them."""
    order = torch.full((groups * -(-rank // groups),), rank)
    order[:rank] = torch.randperm(rank, generator=g)
    return order


def published(spec: ModelSpec, model: ModelId, groups: int) -> Codebook:
    """``astra``: so many groups of 1,024 codewords of the embedding itself."""
    g = torch.Generator().manual_seed(2)
    shape = (groups, ASTRA_CODEWORDS, spec.hidden_size // groups)
    books = [
        as_stored(BlockBook((torch.randn(shape, generator=g) * 0.3,)))
        for _ in range(spec.num_hidden_layers)
    ]
    book = Codebook(
        codec="astra",
        model=model,
        hidden_size=spec.hidden_size,
        first_block=0,
        history=0,
        groups=(groups,),
        size=ASTRA_CODEWORDS,
        default_stages=1,
        levels={1: tuple(books)},
    )
    check(book)
    return book


# --- inputs ---------------------------------------------------------------------------------------


def random_tokens(vocab: int, count: int) -> list[int]:
    """Token ids."""
    return [int(one) for one in np.random.default_rng(3).integers(vocab, size=count)]


def random_picture(edge: int) -> bytes:
    """A JPEG file of edge x edge pixels, as large as a soft photo of that size."""
    coarse = np.random.default_rng(4).integers(256, size=(edge // 8, edge // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(coarse).resize((edge, edge), Image.Resampling.BICUBIC)
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=sorted(CONFIGS), default=sorted(CONFIGS))
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    for name in args.models:
        print(ensure(name, args.cache))


if __name__ == "__main__":
    main()
