"""Models in llama.cpp's GGUF files, written anew as a Hugging Face folder.

The package ``gguf``, llama.cpp's own, reads them and turns quantized weights back into numbers.
What this adds is names, the config, and the order of the rows of queries and keys: for the
architecture ``llama`` GGUF has the two halves of each head interleaved, Hugging Face one after the
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from astra_mesh import limits
from astra_mesh.bundle.configs import bad_file, save_json
from astra_mesh.bundle.tensors import save_tensors
from astra_mesh.bundle.weights import INDEX, SINGLE
from astra_mesh.errors import AstraMeshError, InputError, UnsupportedModelError

if TYPE_CHECKING:
    from gguf import GGUFReader

SUFFIX: Final = ".gguf"
_KINDS: Final = ("llama", "qwen2", "qwen3")  # architecture, and model_type of the config
_NAMES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROTATED: Final = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
# Number formats that stay; all others are codes of at most 8 bits, and float16 is finer.
_KEPT: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FREQUENCIES: Final = "rope_freqs.weight"
_LLAMA3: Final = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class GgufFile:
    """One GGUF file, opened.

    Raises:
        InputError: the package ``gguf`` is not installed.
        BadBundleError: the file cannot be read.
        UnsupportedModelError: it holds a model of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open(path)
        self.fields = _fields(self._reader, path)
        self.kind = str(self.fields.get("general.architecture", ""))
        if self.kind not in _KINDS:
            raise UnsupportedModelError(
                f"{path.name} holds a model of the architecture {self.kind[:40]!a}; of GGUF files "
                f"astra-mesh reads {', '.join(_KINDS)}, other models from Hugging Face folders"
            )
        self._tensors = {one.name: one for one in self._reader.tensors}
        self.config = self._config()

    @property
    def size_bytes(self) -> int:
        """Of the folder that it becomes, about."""
        wide = {"F32": 4}
        return sum(
            wide.get(one.tensor_type.name, 2) * int(one.n_elements) for one in self._reader.tensors
        )

    def write(self, folder: Path) -> None:
        """Config and weights into a folder, no more than 2 GiB of them in memory at a time.

        Raises:
            AstraMeshError: a tensor is of a kind that the package cannot turn into numbers, or the
                disk is full.
        """
        save_json(folder / "config.json", self.config)
        shards: list[dict[str, torch.Tensor]] = [{}]
        names: list[list[str]] = []
        size = 0
        for name, tensor in self._converted():
            if size and size + tensor.nbytes > limits.WEIGHT_FILE_BYTES:
                names.append(_save(folder, len(names), shards.pop()))
                shards, size = [{}], 0
            shards[0][name] = tensor
            size += tensor.nbytes
        names.append(_save(folder, len(names), shards.pop()))
        _settle(folder, names)

    def _converted(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors with their new names, one at a time."""
        for old, tensor in self._tensors.items():
            if old == _FREQUENCIES:
                continue
            name, part = _new_name(self.path, old)
            values = _values(self.path, tensor)
            if self.kind == "llama" and part in _ROTATED:
                values = _halves_apart(values, self.config[_ROTATED[part]])
            made = torch.from_numpy(np.array(values, order="C"))  # of its own, not the file
            yield name, made.to(_KEPT.get(tensor.tensor_type.name, torch.float16))

    # --- the config -------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        heads = self._number("attention.head_count")
        hidden = self._number("embedding_length")
        if self._number("expert_count", 0):
            raise UnsupportedModelError(f"{self.path.name} is a mixture of experts: not supported")
        head_dim = self._number("attention.key_length", hidden // max(1, heads))
        if self._number("attention.value_length", head_dim) != head_dim:
            raise UnsupportedModelError(f"{self.path.name}: keys and values differ in size")
        context = self._number("context_length")
        window = self._number("attention.sliding_window", 0) or context
        config = {
            "model_type": self.kind,
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": min(context, window),  # beyond it not all is attended to
            "vocab_size": int(self._tensor("token_embd.weight").shape[1]),
            "rms_norm_eps": float(self._value("attention.layer_norm_rms_epsilon", 1e-6)),
            "rope_theta": float(self._value("rope.freq_base", 1e4)),
            "tie_word_embeddings": "output.weight" not in self._tensors,
        }
        if self._number("rope.dimension_count", head_dim) != head_dim:
            raise UnsupportedModelError(f"{self.path.name} rotates a part of each head only")
        return config | self._scaling(config) | self._ends()

    def _scaling(self, config: Mapping[str, Any]) -> dict[str, Any]:
        kind = str(self._value("rope.scaling.type", "none"))
        if kind == "linear":
            factor = float(self._value("rope.scaling.factor", 1.0))
            return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
        if kind != "none":
            raise UnsupportedModelError(
                f"{self.path.name} stretches its context by {kind[:20]!a}, which is not supported"
            )
        if _FREQUENCIES not in self._tensors:
            return {}
        return {"rope_scaling": self._llama3(config)}

    def _llama3(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The rule of Llama 3.1 whose divisors of each frequency the file lists."""
        from astra_mesh.families.llama import inverse_frequency

        divisors = _values(self.path, self._tensors[_FREQUENCIES]).astype(np.float32)
        rule = {**_LLAMA3, "factor": float(divisors.max())}
        plain = inverse_frequency(config, config["head_dim"])
        scaled = inverse_frequency({**config, "rope_scaling": rule}, config["head_dim"])
        expected = (plain / scaled).numpy()
        if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
            raise UnsupportedModelError(
                f"{self.path.name} scales its positions by a rule other than that of Llama 3.1"
            )
        return rule

    def _ends(self) -> dict[str, Any]:
        """Ids that end a text: of the text, of a turn, of a message."""
        keys = [f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom")]
        found = [int(self.fields[key]) for key in keys if key in self.fields]
        return {"eos_token_id": list(dict.fromkeys(found))} if found else {}

    def _value(self, name: str, default: Any) -> Any:
        return self.fields.get(f"{self.kind}.{name}", default)

    def _number(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if type(value) is not int or value < 0:
            raise bad_file(self.path, f"its {self.kind}.{name} is {str(value)[:40]}, no number")
        return value

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise bad_file(self.path, f"has no tensor {name}")
        shape = self._tensors[name].shape
        if len(shape) != 2:
            raise bad_file(self.path, f"its tensor {name} is no matrix")
        return self._tensors[name]


def _open(path: Path) -> GGUFReader:
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"reading {path.name} needs the package gguf: pip install 'astra-mesh[gguf]', or "
            "pip install gguf"
        ) from error
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # of a damaged file it raises whatever happens
        raise bad_file(path, f"is no GGUF file that can be read ({str(error)[:200]})") from error


def _fields(reader: GGUFReader, path: Path) -> dict[str, Any]:
    """The metadata: numbers, texts, and lists of these."""
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:
        raise bad_file(path, f"its metadata cannot be read ({str(error)[:200]})") from error


def _new_name(path: Path, old: str) -> tuple[str, str]:
    """The name of a tensor in a Hugging Face checkpoint, and its part of a block."""
    stem, _, kind = old.rpartition(".")
    at = ""
    if stem.startswith("blk."):
        _, index, stem = stem.split(".", 2)
        at = f"model.layers.{index}."
    if stem not in _NAMES:
        raise UnsupportedModelError(f"{path.name} has a tensor {old[:64]!a}, unknown here")
    return f"{at}{_NAMES[stem]}.{kind}", stem


def _values(path: Path, tensor: Any) -> np.ndarray[Any, Any]:
    """The numbers of a tensor, in float32 or float16."""
    from gguf import quants

    kind = tensor.tensor_type.name
    if kind in ("F32", "F16"):
        return np.asarray(tensor.data)
    try:
        found: np.ndarray[Any, Any] = quants.dequantize(tensor.data, tensor.tensor_type)
    except Exception as error:
        raise UnsupportedModelError(
            f"{path.name}: the package gguf cannot read tensors of the kind {kind} "
            f"({str(error)[:200]}); get the model as Q8_0, Q4_0 or F16"
        ) from error
    return found


def _halves_apart(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of each head (E, ...) from 0, E/2, 1, E/2 + 1, ... to 0, 1, 2, ..."""
    shape = values.shape
    if shape[0] % (2 * heads):
        raise AstraMeshError(f"{shape[0]} rows are no {heads} heads")
    return values.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _save(folder: Path, index: int, tensors: dict[str, torch.Tensor]) -> list[str]:
    save_tensors(folder / _part(index), tensors)
    return list(tensors)


def _part(index: int) -> str:
    return f".part-{index}.safetensors"


def _settle(folder: Path, names: list[list[str]]) -> None:
    """Give the weight files their names, now that their number is known."""
    if len(names) == 1:
        (folder / _part(0)).replace(folder / SINGLE)
        return
    mapping: dict[str, str] = {}
    for index, members in enumerate(names):
        name = f"model-{index + 1:05}-of-{len(names):05}.safetensors"
        (folder / _part(index)).replace(folder / name)
        mapping |= dict.fromkeys(members, name)
    save_json(folder / INDEX, {"metadata": {}, "weight_map": mapping})
