"""Configs, weights and inputs that a family does not take; and what every family has in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from astra_mesh.engine.reference import hidden_rows, run_solo
from astra_mesh.errors import (
    AstraMeshError,
    BadBundleError,
    EmptyPromptError,
    InputError,
    PromptTooLongError,
    UnsupportedModelError,
    WrongTaskError,
)
from astra_mesh.families import ModelInput, build_model, read_spec
from tests.unit.families.making import (
    CAUSAL,
    CONFIGS,
    CONTEXT,
    KINDS,
    VOCAB,
    make_input,
    make_model,
    make_tensors,
)

# --- configs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, 3, "t5", ["gpt2"], ""])
def test_unknown_families(kind: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="supported: gpt2, vit, llama"):
        read_spec({"model_type": kind})


UNSUPPORTED = [
    ("gpt2", {"activation_function": "mish"}, "mish"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer"),
    ("gpt2", {"n_layer": 513}, "513 blocks"),
    ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary"),
]
BAD = [
    *(("gpt2", {"n_embd": value}, "n_embd") for value in (0, -1, 1.5, "32", True, 1 << 30)),
    ("gpt2", {"n_head": 5}, "5 heads"),
    ("gpt2", {"vocab_size": None}, "vocab_size"),
    ("gpt2", {"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon"),
    ("gpt2", {"layer_norm_epsilon": "small"}, "layer_norm_epsilon"),
    ("gpt2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ("vit", {"num_attention_heads": 7}, "7 heads"),
    ("vit", {"patch_size": 5}, "do not tile"),
    ("vit", {"patch_size": [4, 2]}, "do not tile"),
    ("vit", {"image_size": True}, "image_size"),
    ("vit", {"image_size": [12, 20, 3]}, "image_size"),
    ("vit", {"image_size": [12, 1 << 40]}, "image_size"),
    ("bert", {"num_attention_heads": 5}, "5 heads"),
    ("llama", {"num_key_value_heads": 3}, "3 key/value heads"),
    ("llama", {"head_dim": 9}, "even"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "above zero"),
    ("llama", {"rope_theta": -1.0}, "above zero"),
    (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        "low_freq_factor",
    ),
    ("llama", {"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
]


@pytest.mark.parametrize(
    ("kind", "change", "text", "error"),
    [(*case, UnsupportedModelError) for case in UNSUPPORTED]
    + [(*case, BadBundleError) for case in BAD],
)
def test_configs_that_cannot_be_used(
    kind: str, change: dict[str, Any], text: str, error: type[AstraMeshError]
) -> None:
    with pytest.raises(error, match=text):
        build_model(CONFIGS[kind] | change, make_tensors(kind))


def test_mistral_has_a_window_unless_the_config_says_none() -> None:
    config = CONFIGS["llama"] | {"model_type": "mistral", "max_position_embeddings": 32768}
    assert read_spec(config).max_tokens == 4096
    assert read_spec(config | {"sliding_window": None}).max_tokens == 32768
    assert read_spec(config | {"sliding_window": 100}).max_tokens == 100


def test_qwen_uses_its_window_only_if_told() -> None:
    config = CONFIGS["qwen2"] | {"sliding_window": 16}
    assert read_spec(config).max_tokens == CONTEXT
    assert read_spec(config | {"use_sliding_window": True}).max_tokens == 16


def test_a_bert_without_classifier_embeds_only() -> None:
    config = CONFIGS["bert"] | {"architectures": ["BertModel"]}
    bare = {
        name.removeprefix("bert."): tensor
        for name, tensor in make_tensors("bert").items()
        if not name.startswith(("classifier", "bert.pooler"))
    }
    model = build_model(config, bare)
    assert model.spec.tasks == ("embed",)
    with pytest.raises(WrongTaskError, match="it can embed"):
        model.require("classify")
    with pytest.raises(WrongTaskError, match="no classifier"):
        model.classify(torch.zeros(32))


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_needed(kind: str) -> None:
    tensors = make_tensors(kind)
    for name in tensors:
        if kind == "vit" and name.endswith(".bias") and ".layer." in name and "norm" not in name:
            continue  # linear layers of a ViT's blocks may have no bias
        rest = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(BadBundleError, match="lack"):
            build_model(CONFIGS[kind], rest)


def test_biases_of_queries_keys_and_values_come_together() -> None:
    tensors = make_tensors("vit")
    del tensors["vit.encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(BadBundleError, match=r"key\.bias"):
        build_model(CONFIGS["vit"], tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_is_checked(kind: str) -> None:
    tensors = make_tensors(kind)
    for name, tensor in tensors.items():
        if name.startswith("classifier"):
            continue  # any number of classes
        wrong = torch.zeros(tensor.shape[0] + 1, *tensor.shape[1:])
        with pytest.raises(BadBundleError, match=r"has shape .* where config\.json implies"):
            build_model(CONFIGS[kind], tensors | {name: wrong})


def test_half_precision_files_run_in_single_precision() -> None:
    halves: dict[str, Tensor] = {k: v.half() for k, v in make_tensors("gpt2").items()}
    assert build_model(CONFIGS["gpt2"], halves).block(0).qkv.weight.dtype == torch.float32


def test_labels_come_from_the_config() -> None:
    assert make_model("vit").labels == {0: "cat", 1: "dog", 2: "cow"}
    assert make_model("bert").labels == {0: "LABEL_0", 1: "LABEL_1"}


def test_bfloat16_keeps_rotation_exact() -> None:
    """Frequencies rounded to bfloat16 would turn position 40 by up to 0.16 rad too far."""
    exact, rounded = make_model("llama"), make_model("llama", dtype=torch.bfloat16)
    x = torch.randn(CONTEXT, 2, 8)
    full, half = exact.block(0).rope, rounded.block(0).rope
    assert full is not None
    assert half is not None
    assert (full(x, 0) - half(x.bfloat16(), 0)).abs().max() < 0.05


# --- inputs ---------------------------------------------------------------------------------------


def tokens(*ids: int) -> ModelInput:
    return ModelInput(tokens=torch.tensor(ids, dtype=torch.int64))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "vit"])
def test_texts_that_cannot_be_read(kind: str) -> None:
    model = make_model(kind)
    assert model.count_tokens(tokens(0, VOCAB - 1)) == 2
    with pytest.raises(EmptyPromptError):
        model.count_tokens(tokens())
    with pytest.raises(PromptTooLongError, match=f"{CONTEXT + 1} tokens"):
        model.count_tokens(tokens(*([1] * (CONTEXT + 1))))
    for wrong in (-1, VOCAB):
        with pytest.raises(InputError, match=f"0..{VOCAB - 1}"):
            model.count_tokens(tokens(3, wrong))
    with pytest.raises(InputError, match="reads text"):
        model.count_tokens(ModelInput(pixels=torch.zeros(3, 12, 20)))


@pytest.mark.parametrize("types", [[0], [0, 2], [0, -1], [0, 1, 0]])
def test_token_types_that_do_not_fit(types: list[int]) -> None:
    given = ModelInput(tokens=torch.tensor([1, 2]), token_types=torch.tensor(types))
    with pytest.raises(InputError, match=r"token types .* each of 2 tokens"):
        make_model("bert").count_tokens(given)


def test_images_that_do_not_fit() -> None:
    model = make_model("vit")
    assert model.count_tokens(make_input(model)) == 16
    for shape in ((3, 20, 12), (1, 12, 20), (12, 20)):
        with pytest.raises(InputError, match="the model reads"):
            model.count_tokens(ModelInput(pixels=torch.zeros(shape)))
    with pytest.raises(InputError, match="reads an image"):
        model.count_tokens(tokens(1))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_tasks(kind: str) -> None:
    model = make_model(kind)
    wrong = "classify" if kind in CAUSAL else "generate"
    with pytest.raises(WrongTaskError, match=f"cannot {wrong}"):
        model.require(wrong)
    with pytest.raises(WrongTaskError):
        model.classify(torch.zeros(32)) if kind in CAUSAL else model.logits(torch.zeros(32))


# --- the block ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_a_range_is_a_part_of_embedding_all(kind: str) -> None:
    model = make_model(kind)
    inputs = make_input(model)
    count = model.count_tokens(inputs)
    whole = model.embed(inputs, 0, count)
    for start in range(count + 1):
        for stop in range(start, count + 1):
            torch.testing.assert_close(
                model.embed(inputs, start, stop), whole[start:stop], atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_block_equals_the_engine(kind: str) -> None:
    model = make_model(kind)
    inputs = make_input(model)
    x = model.embed(inputs, 0, model.count_tokens(inputs))
    for index in range(model.spec.num_hidden_layers):
        x = model.block(index)(x, model.spec.causal)
    found = hidden_rows([run_solo(model, inputs, "all")])
    torch.testing.assert_close(model.final(x), found, atol=1e-5, rtol=1e-5)
