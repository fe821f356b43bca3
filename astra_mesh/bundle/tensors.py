"""Tensors from and to safetensors files. Pickles are never opened."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch

from astra_mesh import limits
from astra_mesh.bundle.configs import bad_file, full_disk, no_room, replacing, shown
from astra_mesh.bundle.header import read_header
from astra_mesh.bundle.store import Bundle
from astra_mesh.bundle.weights import INDEX, weight_map
from astra_mesh.errors import BadBundleError, ModelError

PathLike = Path | str


def open_tensors(path_or_paths: PathLike | Iterable[PathLike]) -> dict[str, torch.Tensor]:
    """The tensors of one or several safetensors files, memory-mapped: pages are read when used.

    Writing into a tensor changes neither the file nor other mappings (copy on write).

    Raises:
        BadBundleError: a file is missing, cut short, altered or hostile, or a tensor occurs twice.
    """
    paths = [path_or_paths] if isinstance(path_or_paths, (str, Path)) else list(path_or_paths)
    found: dict[str, torch.Tensor] = {}
    for path in map(Path, paths):
        loaded = _load(path)
        if twice := found.keys() & loaded.keys():
            name = min(twice)
            raise bad_file(path, f"has the tensor {name[:64]!a}, which is in another file too")
        found.update(loaded)
    return found


def _load(path: Path) -> dict[str, torch.Tensor]:
    header = read_header(path)
    try:
        loaded = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise bad_file(path, f"cannot be loaded ({str(error)[:200]})") from error
    if loaded.keys() != header.tensors.keys():
        raise bad_file(path, "changed while it was read", "try again")
    return loaded


def read_metadata(path: PathLike) -> dict[str, str]:
    """The text metadata of a safetensors file, without loading tensors.

    Raises:
        BadBundleError: as :func:`open_tensors`.
    """
    return read_header(Path(path)).metadata


def is_half(bundle: Bundle) -> bool:
    """Whether no weight has more than 16 bits, as the headers of its files say.

    Raises:
        BadBundleError: a file is missing, cut short or altered.
    """
    headers = [read_header(path) for path in bundle.weight_paths]
    kinds = {one.dtype for header in headers for one in header.tensors.values()}
    return kinds.isdisjoint({"F32", "F64"})


def load_weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    """All weights of a bundle, compared with its manifest and checked for NaN and Inf.

    Raises:
        BadBundleError: a file is bad, the shards are not what the index says, or a weight is not
            finite.
    """
    weights = open_tensors([bundle.file(path.name) for path in bundle.weight_paths])
    expected = weight_map(bundle.path)
    if expected and expected.keys() != weights.keys():
        name = min(expected.keys() ^ weights.keys())
        fault = "is in no shard" if name in expected else "is in a shard but not in the index"
        raise bad_file(bundle.path / INDEX, f"its tensor {name[:64]!a} {fault}")
    check_finite(weights, bundle.name)
    return weights


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Looks for NaN and Inf, one pass over the data without copies (fp32: about 4 GB/s a core).

    Args:
        tensors: by name.
        where: the file or bundle, for the message.

    Raises:
        BadBundleError: names the first few tensors that are not finite.
    """
    bad = sorted(name for name, tensor in tensors.items() if not _finite(tensor))
    if bad:
        names = ", ".join(ascii(name[: limits.NAME_CHARS]) for name in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise BadBundleError(
            f"{where}: NaN or Inf in {names}{more}; the training that made them diverged or the "
            "file was damaged: get another copy"
        )


def _finite(tensor: torch.Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # the 8-bit floats have no minimum of their own
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # NaN comes through both
    return bool(torch.isfinite(low) and torch.isfinite(high))


def save_tensors(
    path: PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whole or not at all: if it fails, the old file stays as it was.

    Raises:
        ModelError: the file cannot be written (disk full, no permission).
    """
    target = Path(path)
    ready = _standalone(tensors)
    with replacing(target) as part:
        try:
            safetensors.torch.save_file(ready, part, metadata=dict(metadata or {}))
        except safetensors.SafetensorError as error:
            if no_room(error):
                raise full_disk(target) from error
            text = f"cannot write {shown(target)} ({str(error)[:200]}); nothing was changed"
            raise ModelError(text) from error
        _sort_metadata(part)


def _sort_metadata(path: Path) -> None:
    """The same tensors and texts as the same bytes: the library writes metadata in any order.

    The header is a length (8 bytes, little-endian) and so many bytes of JSON, padded with spaces.
    """
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            stream.seek(8)
            stream.write(text.ljust(size))


def _standalone(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous, and sharing no memory (safetensors refuses those)."""
    ready: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        moved = tensor.detach().to("cpu")
        storage = moved.untyped_storage()
        whole = storage.nbytes() == moved.numel() * moved.element_size()
        if not whole or not moved.is_contiguous() or storage.data_ptr() in seen:
            moved = moved.clone(memory_format=torch.contiguous_format)
        seen.add(moved.untyped_storage().data_ptr())
        ready[name] = moved
    return ready
