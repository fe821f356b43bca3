"""Models in llama.cpp's GGUF files, written anew as a Hugging Face folder.

The package ``gguf``, llama.cpp's own, reads them and turns quantized weights back into numbers.
What this adds is names, the config, and the order of the rows of queries and keys: for the
architecture ``llama`` GGUF has the two halves of each head interleaved, Hugging Face one after the
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from astra_mesh import limits
from astra_mesh.bundle.configs import bad_file, save_json
from astra_mesh.bundle.gguf_check import AGAIN, check_whole
from astra_mesh.bundle.gguf_names import FREQUENCIES, check_tensors, new_name
from astra_mesh.bundle.tensors import save_tensors
from astra_mesh.bundle.weights import INDEX, SINGLE
from astra_mesh.errors import AstraMeshError, BadBundleError, InputError, UnsupportedModelError

if TYPE_CHECKING:
    from gguf import GGUFReader

_KINDS: Final = ("llama", "qwen2", "qwen3")  # architecture, and model_type of the config
_ROTATED: Final = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
# Number formats that stay; all others are codes of at most 8 bits, and float16 is finer.
_KEPT: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LLAMA3: Final = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class GgufFile:
    """One GGUF file, opened.

    Raises:
        InputError: the package ``gguf`` is not installed, or the file is none of its kind.
        BadBundleError: the file is damaged, or its tensors are not those that its metadata say.
        UnsupportedModelError: it holds a model of another kind, or in another form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = path.absolute()  # messages name its folder
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
        shapes = {name: tuple(map(int, reversed(one.shape))) for name, one in self._tensors.items()}
        check_tensors(path, shapes, self.config)
        self._check_runs()

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
            if old == FREQUENCIES:
                continue
            name, part = new_name(self.path, old)
            values = _values(self.path, tensor)
            if self.kind == "llama" and part in _ROTATED:
                values = _halves_apart(values, self.config[_ROTATED[part]])
            made = torch.from_numpy(np.array(values, order="C"))  # of its own, not the file
            yield name, made.to(_KEPT.get(tensor.tensor_type.name, torch.float16))

    # --- the config -------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        heads = self._size("attention.head_count")
        hidden = self._size("embedding_length")
        if self._number("expert_count", 0):
            raise UnsupportedModelError(f"{self.path.name} is a mixture of experts: not supported")
        head_dim = self._size("attention.key_length", hidden // heads)
        if self._number("attention.value_length", head_dim) != head_dim:
            raise UnsupportedModelError(f"{self.path.name}: keys and values differ in size")
        context = self._size("context_length")
        window = self._number("attention.sliding_window", 0) or context
        config = {
            "model_type": self.kind,
            "hidden_size": hidden,
            "intermediate_size": self._size("feed_forward_length"),
            "num_hidden_layers": self._size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._size("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": min(context, window),  # beyond it not all is attended to
            "vocab_size": self._words(),
            "rms_norm_eps": self._real("attention.layer_norm_rms_epsilon", 1e-6),
            "rope_theta": self._real("rope.freq_base", 1e4),
            "tie_word_embeddings": "output.weight" not in self._tensors,
        }
        if self._number("rope.dimension_count", head_dim) != head_dim:
            raise UnsupportedModelError(f"{self.path.name} rotates a part of each head only")
        return config | self._scaling(config) | self._ends()

    def _check_runs(self) -> None:
        """Say of this file, not of a config.json that nobody has seen, why no model can be so."""
        from astra_mesh.families import read_spec
        from astra_mesh.families.llama import inverse_frequency

        try:
            read_spec(self.config)
            inverse_frequency(self.config, self.config["head_dim"])
        except AstraMeshError as error:
            text = f"{self.path.name} describes a model that cannot be run ({error.message})"
            raise UnsupportedModelError(text) from error

    def _scaling(self, config: Mapping[str, Any]) -> dict[str, Any]:
        kind = str(self._value("rope.scaling.type", "none"))
        if kind == "linear":
            factor = self._real("rope.scaling.factor", 1.0)
            return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
        if kind != "none":
            raise UnsupportedModelError(
                f"{self.path.name} stretches its context by {kind[:20]!a}, which is not supported"
            )
        if FREQUENCIES not in self._tensors:
            return {}
        return {"rope_scaling": self._llama3(config)}

    def _llama3(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The rule of Llama 3.1 whose divisors of each frequency the file lists."""
        from astra_mesh.families.llama import inverse_frequency

        divisors = _values(self.path, self._tensors[FREQUENCIES]).astype(np.float32)
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
        found = [self.fields[key] for key in keys if type(self.fields.get(key)) is int]
        return {"eos_token_id": list(dict.fromkeys(found))} if found else {}

    def _value(self, name: str, default: Any) -> Any:
        return self.fields.get(f"{self.kind}.{name}", default)

    def _number(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if isinstance(value, list):
            raise UnsupportedModelError(
                f"{self.path.name} has a {self.kind}.{name} of its own for each block, which "
                "astra-mesh does not run"
            )
        if type(value) is not int or value < 0:
            raise self._wrong(name, value, "no whole number")
        return value

    def _size(self, name: str, default: int | None = None) -> int:
        size = self._number(name, default)
        if size == 0:
            raise self._wrong(name, size, "where there must be some")
        return size

    def _real(self, name: str, default: float) -> float:
        value = self._value(name, default)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, value, "no number")
        return float(value)

    def _wrong(self, name: str, value: Any, why: str) -> BadBundleError:
        about = "is missing" if value is None else f"is {str(value)[:40]!a}, {why}"
        return bad_file(self.path, f"its {self.kind}.{name} {about}", AGAIN)

    def _words(self) -> int:
        """Tokens of the vocabulary."""
        name = "token_embd.weight"
        if name not in self._tensors:
            raise bad_file(self.path, f"has no tensor {name}", AGAIN)
        return int(self._tensors[name].shape[-1])


def _open(path: Path) -> GGUFReader:
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"reading {path.name} needs the package gguf: pip install 'astra-mesh[gguf]', or "
            "pip install gguf"
        ) from error
    check_whole(path, {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()})
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # of a damaged file it raises whatever happens
        raise bad_file(path, f"cannot be read as GGUF ({str(error)[:200]})", AGAIN) from error


def _fields(reader: GGUFReader, path: Path) -> dict[str, Any]:
    """The metadata: numbers, texts, and lists of these."""
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:
        text = f"its metadata cannot be read ({str(error)[:200]})"
        raise bad_file(path, text, AGAIN) from error


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
