"""Models that the package ``gguf`` wrote, read back as Hugging Face folders."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from typer.testing import CliRunner

from astra_mesh import limits
from astra_mesh.bundle import Bundle, install
from astra_mesh.bundle.gguf import GgufFile
from astra_mesh.bundle.gguf_text import make_tokenizer, settings_of
from astra_mesh.bundle.store import user_models_path
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.cli.app import app
from astra_mesh.engine.reference import hidden_rows, run_solo
from astra_mesh.errors import BadBundleError, InputError, UnsupportedModelError
from astra_mesh.families import ModelInput, build_model

D, F, HEADS, KV, BLOCKS, VOCAB, CONTEXT = 64, 96, 4, 2, 2, 96, 128
BASE: dict[str, Any] = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e4,
}
PLAIN = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16}
TEXTS = [
    "The 1234 quick brown foxes, it's 7 o'clock: don't   jump!\n\n  over   the dog's tail.",
    "Straße naïve 日本語 \t tabs",
]


def make(kind: str, tied: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under their Hugging Face names."""
    draw = torch.Generator().manual_seed(seed)
    head = D // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, D),
        "model.norm.weight": (D,),
    }
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, D)
    for index in range(BLOCKS):
        at = f"model.layers.{index}."
        for name, heads in (("q", HEADS), ("k", KV), ("v", KV)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (heads * head, D)
            if kind == "qwen2":
                shapes[f"{at}self_attn.{name}_proj.bias"] = (heads * head,)
        if kind == "qwen3":
            shapes |= {f"{at}self_attn.{name}_norm.weight": (head,) for name in "qk"}
        shapes[f"{at}self_attn.o_proj.weight"] = (D, D)
        shapes |= {f"{at}mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (D, F)
        shapes |= {f"{at}{name}_layernorm.weight": (D,) for name in ("input", "post_attention")}
    return {
        name: torch.randn(shape, generator=draw) / (D**0.5 if len(shape) == 2 else 4)
        + (1.0 if "norm" in name else 0.0)
        for name, shape in shapes.items()
    }


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter lays out queries and keys of the architecture llama."""
    shape = rows.shape
    half = shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write(
    path: Path, kind: str, tensors: dict[str, torch.Tensor], stored: str = "F32", **more: Any
) -> Path:
    """A GGUF file by the package's own writer and its own table of names."""
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}.get(
        kind, gguf.MODEL_ARCH.QWEN3
    )
    names = gguf.get_tensor_name_map(arch, BLOCKS)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_block_count(BLOCKS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_context_length(CONTEXT)
    writer.add_layer_norm_rms_eps(BASE["rms_norm_eps"])
    writer.add_rope_freq_base(BASE["rope_theta"])
    add_words(writer)
    for key, value in more.items():
        getattr(writer, key)(*value)
    for name, tensor in tensors.items():
        values = tensor.numpy()
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleaved(values, HEADS if "q_proj" in name else KV)
        new = names.get_name(name, (".weight", ".bias"))
        assert new is not None, name
        wanted = Kind.F32 if values.ndim == 1 else Kind[stored]
        if wanted in (Kind.F32, Kind.F16):
            writer.add_tensor(new, values.astype(np.float32 if wanted is Kind.F32 else np.float16))
        else:
            writer.add_tensor(new, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_words(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"w{i}" for i in range(VOCAB - 1)] + ["<end>"])
    writer.add_token_types([1] * (VOCAB - 1) + [3])
    writer.add_token_merges([])
    writer.add_eos_token_id(VOCAB - 1)
    writer.add_chat_template("{{ messages[0].content }}")


def logits_of(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> torch.Tensor:
    model = build_model(config, weights)
    tokens = torch.arange(40) * 7 % VOCAB
    return model.logits(hidden_rows([run_solo(model, ModelInput(tokens=tokens), "all")]))


def add(path: Path, name: str = "mine") -> Bundle:
    return install.add_gguf(GgufFile(path), name)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_model_computes_what_it_did(kind: str, tmp_path: Path) -> None:
    tensors = make(kind)
    bundle = add(write(tmp_path / "m.gguf", kind, tensors))
    expected = logits_of({**BASE, "model_type": kind}, tensors)
    found = logits_of(bundle.config, load_weights(bundle))
    assert torch.allclose(found, expected, atol=1e-5)
    assert bundle.path == user_models_path() / "mine"
    assert bundle.config["eos_token_id"] == [VOCAB - 1]
    assert bundle.entries is not None
    assert TextTokenizer.from_bundle(bundle).decode([3]) == "w3"


@pytest.mark.parametrize(("stored", "most"), [("F32", 1e-4), ("Q8_0", 2e-2)])
def test_transformers_reads_the_same_file_alike(stored: str, most: float, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = write(tmp_path / "m.gguf", "llama", make("llama"), stored)
    theirs = LlamaForCausalLM(LlamaConfig(**load_gguf_checkpoint(str(path))["config"])).eval()
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)
    theirs.load_state_dict(read["tensors"])
    with torch.inference_mode():
        expected = theirs(torch.arange(40)[None] * 7 % VOCAB).logits[0]
    bundle = add(path)
    assert torch.allclose(logits_of(bundle.config, load_weights(bundle)), expected, atol=most)


@pytest.mark.parametrize(
    ("stored", "most"),
    [("F16", 5e-3), ("BF16", 4e-2), ("Q8_0", 5e-2), ("Q5_1", 0.3), ("Q4_0", 0.6)],
)
def test_quantized_weights_cost_what_their_bits_cost(
    stored: str, most: float, tmp_path: Path
) -> None:
    tensors = make("llama", tied=True)
    bundle = add(write(tmp_path / "m.gguf", "llama", tensors, stored))
    assert bundle.config["tie_word_embeddings"] is True
    weights = load_weights(bundle)
    wide = torch.bfloat16 if stored == "BF16" else torch.float16
    assert weights["model.layers.0.mlp.up_proj.weight"].dtype is wide
    expected = logits_of({**BASE, "model_type": "llama", "tie_word_embeddings": True}, tensors)
    found = logits_of(bundle.config, weights)
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < most


def test_large_models_come_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WEIGHT_FILE_BYTES", 60_000)
    tensors = make("llama")
    bundle = add(write(tmp_path / "m.gguf", "llama", tensors))
    assert len(bundle.weight_paths) > 2
    expected = logits_of({**BASE, "model_type": "llama"}, tensors)
    assert torch.allclose(logits_of(bundle.config, load_weights(bundle)), expected, atol=1e-5)


def test_the_positions_of_llama_3(tmp_path: Path) -> None:
    from astra_mesh.families.llama import inverse_frequency

    rule = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {**BASE, "model_type": "llama"}
    plain, scaled = (
        inverse_frequency(one, D // HEADS) for one in (config, {**config, "rope_scaling": rule})
    )
    divisors = (plain / scaled).numpy()
    assert divisors.max() == pytest.approx(8.0)
    more: dict[str, Any] = {"add_tensor": ("rope_freqs.weight", divisors)}
    tensors = make("llama")
    found = GgufFile(write(tmp_path / "m.gguf", "llama", tensors, **more)).config
    assert found["rope_scaling"] == pytest.approx(rule)
    more = {"add_tensor": ("rope_freqs.weight", divisors[::-1].copy())}
    with pytest.raises(UnsupportedModelError, match="other than that of Llama"):
        GgufFile(write(tmp_path / "n.gguf", "llama", tensors, **more))


def test_the_command_names_it_like_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "small.Q8_0.gguf", "llama", make("llama"), "Q8_0")
    result = CliRunner().invoke(app, ["models", "add", str(path), "--json"])
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)
    assert about["name"] == "small.Q8_0"
    assert about["path"] == str(user_models_path() / "small.Q8_0")
    (tmp_path / "no.gguf").write_text("no model")
    result = CliRunner().invoke(app, ["models", "add", str(tmp_path / "no.gguf"), "--json"])
    assert result.exit_code == 2
    assert "no.gguf is no GGUF file" in json.loads(result.stdout)["error"]["message"]


def test_what_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make("llama")
    path = write(tmp_path / "m.gguf", "llama", tensors)
    other = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma2")
    other.add_block_count(2)
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    with pytest.raises(UnsupportedModelError, match="gemma2"):
        GgufFile(tmp_path / "gemma.gguf")
    for more, text in (
        ({"add_expert_count": (8,)}, "mixture of experts"),
        ({"add_rope_scaling_type": (gguf.RopeScalingType.YARN,)}, "yarn"),
        ({"add_rope_dimension_count": (8,)}, "part of each head"),
        ({"add_tensor": ("blk.0.ffn_gate_inp.weight", np.zeros((2, D), np.float32))}, "unknown"),
    ):
        with pytest.raises(UnsupportedModelError, match=text):
            add(write(tmp_path / "x.gguf", "llama", tensors, **more))
    assert not list(user_models_path().glob("*")) if user_models_path().exists() else True
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="pip install"):
        GgufFile(path)


# --- tokenizers -----------------------------------------------------------------------------------


def corpus() -> list[str]:
    text = "the quick brown fox jumps over a lazy dog and it's not 1234 o'clock don't"
    words = text.split()
    return [" ".join(words[i:] + words[:i]) + "!\n" for i in range(len(words))] + TEXTS


def test_byte_level_tokens_are_those_of_the_original(tmp_path: Path) -> None:
    original = Tokenizer(BPE())
    original.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    original.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    original.train_from_iterator(corpus(), trainer)
    state = json.loads(original.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "tokenizer.ggml.token_type": [3 if one == "<|end|>" else 1 for one in tokens],
        "tokenizer.ggml.bos_token_id": 0,
    }
    made = make_tokenizer(fields, tmp_path / "m.gguf")
    for text in [*TEXTS, "a<|end|>b"]:
        assert made.encode(text).ids == original.encode(text).ids
        assert made.decode(made.encode(text).ids) == original.decode(original.encode(text).ids)
    begun = make_tokenizer({**fields, "tokenizer.ggml.add_bos_token": True}, tmp_path / "m.gguf")
    assert begun.encode("fox").ids == [0, *original.encode("fox").ids]
    llama = make_tokenizer({**fields, "tokenizer.ggml.pre": "llama-bpe"}, tmp_path / "m.gguf")
    cut = [piece for piece, _ in llama.pre_tokenizer.pre_tokenize_str("It's 12345 days")]
    assert cut == ["It", "'s", "Ġ", "123", "45", "Ġdays"]
    qwen = make_tokenizer({**fields, "tokenizer.ggml.pre": "qwen2"}, tmp_path / "m.gguf")
    cut = [piece for piece, _ in qwen.pre_tokenizer.pre_tokenize_str("a 123")]
    assert cut == ["a", "Ġ", "1", "2", "3"]
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json beside it"):
        make_tokenizer({**fields, "tokenizer.ggml.pre": "tekken"}, tmp_path / "m.gguf")
    with pytest.raises(BadBundleError, match="tokenizer"):
        make_tokenizer({"tokenizer.ggml.model": "gpt2"}, tmp_path / "m.gguf")


def test_sentencepiece_tokens_are_those_of_sentencepiece(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus() * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    original = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = range(original.get_piece_size())
    types = [
        2 if original.is_unknown(i) else 3 if original.is_control(i) else 6 if original.is_byte(i)
        else 1
        for i in numbers
    ]  # fmt: skip
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [original.id_to_piece(i) for i in numbers],
        "tokenizer.ggml.scores": [original.get_score(i) for i in numbers],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": original.bos_id(),
        "tokenizer.ggml.unknown_token_id": original.unk_id(),
        "tokenizer.chat_template": "{{ bos_token }}",
    }
    made = make_tokenizer(fields, tmp_path / "m.gguf")
    for text in [*corpus(), "Ωmega ✓"]:
        ids = original.encode(text)
        assert made.encode(text).ids == [original.bos_id(), *ids]
        assert made.decode(ids) == original.decode(ids)
    assert settings_of(fields) == {"chat_template": "{{ bos_token }}", "bos_token": "<s>"}


def test_a_tokenizer_beside_the_file_takes_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", make("llama"))
    beside = Tokenizer(BPE({"other": 0}, [])).to_str()
    (tmp_path / "tokenizer.json").write_text(beside)
    assert (add(path).path / "tokenizer.json").read_text() == beside
