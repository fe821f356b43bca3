"""Finding bundles: by path, by name, in order; and what a bundle's identity depends on."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest
import torch

from astra_mesh.bundle import (
    Bundle,
    find_bundle,
    find_named,
    list_bundles,
    model_folders,
    open_bundle,
    store,
    user_models_path,
    write_manifest,
)
from astra_mesh.bundle.specs import spec_of
from astra_mesh.bundle.tensors import load_weights, save_tensors
from astra_mesh.errors import BadBundleError, UnknownModelError, UnsupportedModelError
from tests.unit.bundle.making import make_bundle, make_sharded


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of models."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(folder))
    monkeypatch.setattr(store, "_shipped", list)
    return folder


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


# --- finding --------------------------------------------------------------------------------------


def test_a_name_is_found_in_the_first_folder_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, shipped = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    for folder, names in ((second, "ab"), (user_models_path(), "abc"), (shipped, "abcd")):
        for name in names:
            make_bundle(folder / name)
    monkeypatch.setenv("ASTRA_MESH_MODELS", os.pathsep.join(map(str, (first, second))))
    monkeypatch.setattr(store, "_shipped", lambda: [shipped])
    make_bundle(first / "a")
    assert [find_bundle(name).path.parent for name in "abcd"] == [
        first,
        second,
        user_models_path(),
        shipped,
    ]
    assert [bundle.name for bundle in list_bundles()] == list("abcd")


def test_a_source_checkout_ships_the_models_folder_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "repo" / "astra_mesh"
    monkeypatch.setattr(store, "__file__", str(package / "bundle" / "store.py"))
    assert model_folders() == [user_models_path()]
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "pyproject.toml").write_text("")
    assert model_folders()[-1] == tmp_path / "repo" / "models"
    (package / "_shipped").mkdir(parents=True)
    assert model_folders()[-1] == package / "_shipped"


def test_a_path_is_opened_as_it_is(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "mine")
    assert find_bundle(str(tmp_path / "mine")).name == "mine"
    monkeypatch.chdir(tmp_path)
    assert find_bundle("./mine").path == tmp_path / "mine"
    assert find_bundle("mine").path == tmp_path / "mine"
    monkeypatch.chdir(tmp_path / "mine")
    assert find_bundle(".").name == "mine"


def test_a_file_is_told_from_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UnknownModelError, match="is a file, and a model is a folder"):
        find_bundle(str(tmp_path / "photo.jpg"))
    with pytest.raises(UnknownModelError, match="there is no folder"):
        find_bundle(str(tmp_path / "nothing"))


def test_a_name_from_elsewhere_never_opens_a_path(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "./mine", str(tmp_path / "mine"), "../mine", "", "\0", "a" * 10_000):
        with pytest.raises(UnknownModelError):
            find_named(name)


@pytest.mark.parametrize("name", ["", "\0", "\n", "x" * 5_000, "\ud800", "no/such", "/", "~/none"])
def test_an_odd_name_is_an_unknown_or_bad_model(models: Path, name: str) -> None:
    with pytest.raises((UnknownModelError, BadBundleError)) as caught:
        find_bundle(name)
    assert caught.value.message.isprintable()


def test_an_unknown_name_lists_what_there_is_and_the_closest(models: Path) -> None:
    for name in ("tiny-gpt2", "vit-tiny"):
        make_bundle(models / name)
    with pytest.raises(UnknownModelError) as caught:
        find_bundle("tiny-gtp2")
    assert caught.value.message == (
        "no model called 'tiny-gtp2' on this device; did you mean tiny-gpt2? "
        "Models here: tiny-gpt2, vit-tiny"
    )
    with pytest.raises(UnknownModelError, match=r"this device; models here: tiny-gpt2, vit-tiny$"):
        find_bundle("zzz")


def test_an_unknown_name_without_any_models_says_what_to_set(models: Path) -> None:
    with pytest.raises(UnknownModelError, match="no models yet: set ASTRA_MESH_MODELS"):
        find_bundle("x")


def test_a_long_list_is_cut(models: Path) -> None:
    for i in range(25):
        make_bundle(models / f"m{i:02}")
    with pytest.raises(UnknownModelError, match=r"m19 and 5 more$"):
        find_bundle("zzz")


def test_a_broken_bundle_is_left_out_and_reported_once(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_bundle(models / "good")
    broken = make_bundle(models / "broken")
    (broken / "model.safetensors").unlink()
    (models / "no-bundle").mkdir()
    (models / "file").write_text("")
    make_bundle(models / ".hidden")
    make_bundle(models / "bad name")
    with caplog.at_level(logging.WARNING):
        assert [b.name for b in list_bundles()] == ["good"] == [b.name for b in list_bundles()]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "a model bundle cannot be used: broken/model.safetensors is missing; "
        "copy the bundle again from where it came, or get what is damaged from another peer: "
        "`astra-mesh models pull broken`"
    )


# --- opening --------------------------------------------------------------------------------------


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "m", n_layer=3)
    (folder / "model.safetensors").write_bytes(b"no safetensors at all")
    assert open_bundle(folder).config == {"model_type": "gpt2", "n_layer": 3}


def test_a_folder_without_config_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError) as found:
        find_bundle(str(tmp_path))
    assert found.value.message == f"'{tmp_path}' holds no model: it has no config.json"


def test_weights_of_a_model_that_cannot_run_are_not_asked_for(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "m", model_type="t5")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"^m/config\.json: model_type 't5' is not"):
        open_bundle(folder)


def test_errors_of_a_config_name_its_file(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m"))
    with pytest.raises(BadBundleError, match=r"^m/config\.json lacks "):
        spec_of(bundle)


def test_only_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadBundleError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        open_bundle(folder)


def test_a_sharded_model_opens_and_loads(tmp_path: Path) -> None:
    bundle = open_bundle(make_sharded(tmp_path / "m"))
    assert [p.name[6:11] for p in bundle.weight_paths] == ["00001", "00002"]
    weights = load_weights(bundle)
    assert weights["a"].tolist() == [0, 0]
    assert weights["b"].tolist() == [1, 1]


FIRST = "model-00001-of-00002.safetensors"
BAD_MAPS = {
    "parent": ({"a": "../x.safetensors"}, "not a plain file name"),
    "absolute": ({"a": "/tmp/x.safetensors"}, "not a plain file name"),
    "backslash": ({"a": "..\\x.safetensors"}, "not a plain file name"),
    "pickle": ({"a": "x.bin"}, "no safetensors file"),
    "missing shard": ({"a": "x.safetensors"}, "is missing"),
    "number": ({"a": 3}, "no safetensors file"),
    "empty": ({}, "no weight_map"),
    "list": ([], "no weight_map"),
}


@pytest.mark.parametrize(("weight_map", "problem"), BAD_MAPS.values(), ids=BAD_MAPS.keys())
def test_a_bad_index_is_refused(tmp_path: Path, weight_map: dict[str, str], problem: str) -> None:
    with pytest.raises(BadBundleError, match=problem):
        open_bundle(make_sharded(tmp_path / "m", weight_map))


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    more = make_sharded(tmp_path / "more", {"a": FIRST, "z": FIRST})
    with pytest.raises(BadBundleError, match="tensor 'z' is in no shard"):
        load_weights(open_bundle(more))
    second = "model-00002-of-00002.safetensors"
    twice = make_sharded(tmp_path / "twice", {"a": FIRST, "c": second})
    save_tensors(twice / second, {"a": torch.zeros(1)})
    with pytest.raises(BadBundleError, match="has the tensor 'a', which is in another file too"):
        load_weights(open_bundle(twice))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
def test_a_link_that_leaves_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_bundle(tmp_path / "m")
    write_manifest(folder)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(BadBundleError, match="leads out of the bundle"):
        open_bundle(folder)


def test_files_are_reached_only_inside_the_bundle(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m"))
    with pytest.raises(BadBundleError):
        bundle.file("../secret")
    with pytest.raises(BadBundleError):
        bundle.has("/etc/passwd")


def test_an_odd_folder_name_is_shown_safely(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / ("a\nb" + "x" * 100)))
    assert bundle.name == "a?b" + "x" * 61


def test_optional_json(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m"))
    assert bundle.optional_json("generation_config.json") == {}
    (bundle.path / "generation_config.json").write_text('{"a": 1}')
    assert bundle.optional_json("generation_config.json") == {"a": 1}


# --- identity -------------------------------------------------------------------------------------


def test_the_model_id_is_the_hash_of_config_and_weights(tmp_path: Path) -> None:
    folder = make_sharded(tmp_path / "m")
    files = sorted(folder.glob("*-of-*.safetensors"))
    whole = b"".join([b"astra-mesh-model/1\0", digest(folder / "config.json"), *map(digest, files)])
    assert open_bundle(folder).model_id == hashlib.sha256(whole).hexdigest()


def test_the_model_id_is_the_same_wherever_it_lies_and_whatever_it_is_called(
    tmp_path: Path,
) -> None:
    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two")
    (two / "tokenizer.json").write_text("{}")
    write_manifest(two)
    assert open_bundle(one).model_id == open_bundle(two).model_id


def test_the_model_id_follows_config_and_weights(tmp_path: Path) -> None:
    kinds: list[Bundle] = [
        open_bundle(make_bundle(tmp_path / "a")),
        open_bundle(make_bundle(tmp_path / "b", weights=2.0)),
        open_bundle(make_bundle(tmp_path / "c", eos_token_id=1)),
    ]
    assert len({bundle.model_id for bundle in kinds}) == 3


def test_codebooks_by_suffix(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "m")
    for name in ("codebook", "codebook-fast", "codebook-64.h2", "codebook-", "codebooks"):
        (folder / f"{name}.safetensors").write_bytes(b"")
    bundle = open_bundle(folder)
    assert {k: p.name for k, p in bundle.codebook_paths.items()} == {
        "": "codebook.safetensors",
        "64.h2": "codebook-64.h2.safetensors",
        "fast": "codebook-fast.safetensors",
    }


def test_the_real_models_open(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(data_dir / "models"))
    monkeypatch.setattr(store, "_shipped", list)
    bundles = {bundle.name: bundle for bundle in list_bundles()}
    assert {"stories260K", "vit_tiny_patch16_224", "bert_sst2"} <= bundles.keys()
    weights = load_weights(bundles["stories260K"])
    assert weights["model.embed_tokens.weight"].shape == (512, 64)
