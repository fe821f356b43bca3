"""Models with random weights: well-formed bundles that peers can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.reference import hidden_rows, run_plan
from astra_mesh.families import Model, ModelInput, build_model, read_spec
from astra_mesh.plan.layout import make_layout
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.quant.codecs import VectorCodec, make_codec
from tools.bench.sizes import CONFIGS, MEMORYLESS, ensure, random_picture, random_tokens

SMALL: dict[str, dict[str, Any]] = {
    "vit-base": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 64,
    },
    "gpt2-124m": {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 40, "vocab_size": 50},
    "llama-125m": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40,
        "vocab_size": 50,
    },
}


def drawn(model: Model, bundle: Bundle) -> ModelInput:
    """A text or a picture, as the model reads."""
    if model.spec.vocab_size:
        return ModelInput(tokens=torch.tensor(random_tokens(model.spec.vocab_size, 20)))
    return ModelInput(pixels=ImageProcessor.from_bundle(bundle)(random_picture(64)))


@pytest.mark.parametrize("name", list(SMALL))
def test_a_model_is_made_once_and_runs_with_all_its_codebooks(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name] | SMALL[name]
    folder = ensure(name, tmp_path, config)
    written = (folder / name / "model.safetensors").stat().st_mtime_ns
    assert ensure(name, tmp_path, config) == folder
    assert (folder / name / "model.safetensors").stat().st_mtime_ns == written

    bundle = open_bundle(folder / name)
    model = build_model(bundle.config, load_weights(bundle))
    inputs = drawn(model, bundle)
    count = model.count_tokens(inputs)
    paths = [*bundle.codebook_paths.values(), *sorted((folder / "astra").iterdir())]
    assert len(paths) == 5
    for path in paths:
        book = load_codebook(path, bundle.model_id)
        for stages in book.able:
            layout = make_layout(
                model.spec,
                [(0, count // 2), (count // 2, count)],
                pooling="all",
                first_block=book.first_block,
                stages=stages,
            )
            runs = run_plan(model, layout, make_codec(book.codec, model, book), inputs)
            assert all(bool(run.x.isfinite().all()) for run in runs)


def test_sizes_are_those_of_the_models_that_they_stand_for() -> None:
    specs = {name: read_spec(config) for name, config in CONFIGS.items()}
    assert specs["vit-base"].max_tokens == 197
    assert specs["vit-base-1024"].max_tokens == 1025
    assert specs["gpt2-124m"].max_tokens == specs["llama-125m"].max_tokens == 4096
    assert specs["llama-125m"].num_key_value_heads == 4


@pytest.mark.parametrize("name", list(SMALL))
def test_another_form_of_the_codes_has_the_same_weights(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name] | SMALL[name]
    plain = open_bundle(ensure(name, tmp_path, config) / name)
    other = open_bundle(ensure(name, tmp_path, config, "half-first") / name)
    assert other.model_id == plain.model_id
    assert (other.path / "model.safetensors").samefile(plain.path / "model.safetensors")
    books = [load_codebook(one.path / MEMORYLESS, one.model_id) for one in (plain, other)]
    assert [book.first_block for book in books] == [1, 0]
    ranks = [book.book(1, 1).analysis for book in books]
    assert [len(one) for one in ranks if one is not None] == [22, 11]

    model = build_model(other.config, load_weights(other))
    inputs = drawn(model, other)
    count = model.count_tokens(inputs)
    layout = make_layout(model.spec, [(0, 6), (6, count)], pooling="all", first_block=0)
    codec = VectorCodec(model, books[1])
    hidden = [
        hidden_rows(run_plan(model, layout, one, inputs)) for one in (codec, codec.projecting())
    ]
    torch.testing.assert_close(*hidden, atol=1e-4, rtol=1e-4)
