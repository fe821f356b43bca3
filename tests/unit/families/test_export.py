"""A model written as a checkpoint is the same model, to this package and to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_mesh.bundle.tensors import save_tensors
from astra_mesh.engine.reference import hidden_rows, pooled, run_solo
from astra_mesh.families import Model, ModelInput, build_model, export_config, export_weights
from tests.unit.families.making import CONFIGS, KINDS, Tensors, make_input, make_tensors
from tests.unit.families.test_against_transformers import SIZES, TEXT_MODELS, both, close

VIT = {k: v for k, v in SIZES.items() if not k.startswith(("vocab", "max"))}
VIT |= {"image_size": (24, 40), "patch_size": 8, "num_labels": 7}
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT", "ForImageClassification", VIT),
    "vit without qkv bias": ("ViT", "ForImageClassification", VIT | {"qkv_bias": False}),
    "bert": ("Bert", "ForSequenceClassification", SIZES | {"num_labels": 5}),
}
MODELS = TEXT_MODELS | OTHERS


def changed(model: Model) -> Model:
    """The model after some training: every parameter elsewhere, norms and biases too."""
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def answers(model: Model, inputs: ModelInput) -> Tensor:
    """Next-token logits (T, vocab), or class logits (classes,) and the mean row (D,) in one."""
    if model.spec.causal:
        return model.logits(hidden_rows([run_solo(model, inputs, "all")]))
    logits = model.classify(pooled([run_solo(model, inputs, "class")]))
    return torch.cat([logits, pooled([run_solo(model, inputs, "mean")])])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_building_of_an_export_gives_the_same_answers(kind: str, tied: bool) -> None:
    config = CONFIGS[kind] | {"tie_word_embeddings": tied}
    tensors = make_tensors(kind)
    if kind == "gpt2" and not tied:
        tensors["lm_head.weight"] = torch.randn_like(tensors["transformer.wte.weight"])
    model = changed(build_model(config, tensors))
    exported = export_weights(config, model)
    assert ("lm_head.weight" in exported) == (model.spec.causal and not tied)
    again = build_model(export_config(config), exported)
    wanted, found = (answers(one, make_input(model)) for one in (model, again))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert wanted.std() > 0.2
    assert not close(answers(build_model(config, tensors), make_input(model)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_the_names_and_shapes_it_was_read_from(kind: str) -> None:
    tensors = make_tensors(kind)
    found = export_weights(CONFIGS[kind], build_model(CONFIGS[kind], tensors))
    assert shapes(found) == shapes(tensors)
    assert all(one.dtype == torch.float32 and not one.requires_grad for one in found.values())


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_an_export_is_a_copy() -> None:
    """Training may go on while it is written."""
    model = build_model(CONFIGS["llama"], make_tensors("llama"))
    exported = export_weights(CONFIGS["llama"], model)
    before = {name: tensor.clone() for name, tensor in exported.items()}
    changed(model)
    assert all(torch.equal(exported[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("case", MODELS)
def test_transformers_reads_an_export(tmp_path: Path, case: str) -> None:
    """The same answers as our model's, every tensor used and none missing."""
    import transformers

    name, head, settings = MODELS[case]
    _, ours = both(tmp_path, name, head, settings)
    config = json.loads((tmp_path / "config.json").read_text())
    changed(ours)
    save_tensors(tmp_path / "model.safetensors", export_weights(config, ours), {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(export_config(config)))
    theirs, info = getattr(transformers, name + head).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    generator = torch.Generator().manual_seed(1)
    if name == "ViT":
        pixels = torch.randn(3, 24, 40, generator=generator)
        inputs, given = ModelInput(pixels=pixels), pixels
    else:
        count = min(45, ours.spec.max_tokens)
        tokens = torch.randint(97, (count,), generator=generator)
        inputs, given = ModelInput(tokens=tokens), tokens
    with torch.no_grad():
        wanted = theirs.eval()(given[None]).logits[0]
    found = answers(ours, inputs)
    assert close(found[: len(wanted)], wanted)
    assert wanted.std() > 0.2


def test_only_vit_without_bias_has_another_config() -> None:
    for config in CONFIGS.values():
        assert export_config(config) == config
    bare = CONFIGS["vit"] | {"qkv_bias": False}
    assert export_config(bare) == bare | {"qkv_bias": True}
