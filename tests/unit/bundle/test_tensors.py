"""Tensors: what is saved comes back, a failed save changes nothing, bad weights are named."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import (
    check_finite,
    load_weights,
    open_tensors,
    read_metadata,
    save_tensors,
)
from astra_mesh.errors import BadBundleError, ModelError
from tests.unit.bundle.making import make_bundle


def test_saved_tensors_come_back_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5).half(), "c": torch.zeros(0, 2)}
    save_tensors(path, tensors, {"made": "here"})
    loaded = open_tensors(str(path))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert read_metadata(path) == {"made": "here"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_tied_strided_and_trained_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.randn(4, 6, requires_grad=True)
    tensors = {"a": base, "b": base, "c": base[:2], "d": base.t(), "e": base[:, ::2]}
    save_tensors(tmp_path / "x.safetensors", tensors)
    loaded = open_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_several_files_make_one_mapping(tmp_path: Path) -> None:
    save_tensors(tmp_path / "1.safetensors", {"a": torch.zeros(1)})
    save_tensors(tmp_path / "2.safetensors", {"b": torch.ones(1)})
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    assert open_tensors(paths).keys() == {"a", "b"}
    with pytest.raises(BadBundleError, match="in another file too"):
        open_tensors([*paths, paths[0]])
    assert open_tensors([]) == {}


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(3)})
    before = path.read_bytes()
    tensor = open_tensors(path)["a"]
    tensor += 1
    assert path.read_bytes() == before
    assert open_tensors(path)["a"].tolist() == [0, 0, 0]


def test_an_open_tensor_survives_a_new_file_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(100_000)})
    old = open_tensors(path)["a"]
    save_tensors(path, {"a": torch.ones(3)})
    assert old.sum() == 0
    assert open_tensors(path)["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SafetensorError("I/O error: it broke"), r"it broke.*nothing was changed"),
        (OSError(28, "full"), "no space left to write .*x.safetensors: make room"),
    ],
)
def test_a_failed_save_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(3)})

    def fail(tensors: object, part: Path, metadata: object) -> None:
        part.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(ModelError, match=text):
        save_tensors(path, {"a": torch.ones(3)})
    assert open_tensors(path)["a"].tolist() == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.fixture
def files_at_most_100_kb() -> Iterator[None]:
    """The operating system refuses to write larger files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("files_at_most_100_kb")
def test_a_real_write_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(3)})
    with pytest.raises(ModelError, match="nothing was changed"):
        save_tensors(path, {"a": torch.ones(100_000)})
    assert open_tensors(path)["a"].tolist() == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
def test_a_value_that_is_not_finite_is_named(dtype: torch.dtype, value: float) -> None:
    bad = torch.zeros(10, 10, dtype=dtype)
    bad[7, 3] = value
    good = torch.zeros(3, dtype=dtype)
    check_finite({"good": good}, "x")
    with pytest.raises(BadBundleError, match=r"^x: NaN or Inf in 'bad';"):
        check_finite({"good": good, "bad": bad}, "x")


def test_only_floats_are_checked_and_the_list_is_short() -> None:
    check_finite({"i": torch.tensor([2**62]), "b": torch.tensor(True), "e": torch.zeros(0)}, "x")
    check_finite({"f8": torch.ones(4).to(torch.float8_e5m2)}, "x")
    nan = torch.tensor(float("nan"))
    with pytest.raises(BadBundleError, match="'a', 'b', 'c' and 2 more"):
        check_finite(dict.fromkeys("edcba", nan), "x")


def test_weights_that_are_not_finite_do_not_load(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m", weights=float("nan")))
    with pytest.raises(BadBundleError, match="m: NaN or Inf in 'w'"):
        load_weights(bundle)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadBundleError, match=r"x\.safetensors is missing"):
        open_tensors(tmp_path / "x.safetensors")


def test_misaligned_data_load(tmp_path: Path) -> None:
    """Nothing in the format forces the data to start at a multiple of the item size."""
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.arange(4.0)})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" "
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert open_tensors(path)["a"].tolist() == [0, 1, 2, 3]
