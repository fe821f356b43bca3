"""The manifest: written, read back, and compared with the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from astra_mesh.bundle import find_bundle, open_bundle, take_new, verify, write_manifest
from astra_mesh.bundle.manifest import read_manifest
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.errors import BadBundleError
from tests.unit.bundle.making import make_bundle, make_sharded


def with_manifest(folder: Path) -> Path:
    make_bundle(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("a card, which may change")
    (folder / ".hidden.json").write_text("{}")
    write_manifest(folder)
    return folder


def test_a_manifest_lists_what_programs_read_and_verifies(tmp_path: Path) -> None:
    bundle = open_bundle(with_manifest(tmp_path / "m"))
    assert verify(bundle) == ["config.json", "model.safetensors", "tokenizer.json"]
    (bundle.path / "README.md").write_text("changed")
    verify(bundle)
    assert open_bundle(bundle.path).model_id == bundle.model_id


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "m")
    first = (folder / "manifest.json").read_bytes()
    write_manifest(str(folder))
    assert (folder / "manifest.json").read_bytes() == first


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_altered_file_is_named_when_the_model_is_identified(tmp_path: Path, name: str) -> None:
    folder = with_manifest(tmp_path / "m")
    if name == "config.json":
        (folder / name).write_text((folder / name).read_text().replace("gpt2", "bert"))
    else:
        flip_last_byte(folder / name)
    bundle = open_bundle(folder)
    with pytest.raises(BadBundleError, match=rf"m/{name} is not the file that the manifest lists"):
        _ = bundle.model_id
    with pytest.raises(BadBundleError, match=name):
        verify(bundle)


def test_altered_weights_do_not_load(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "m")
    flip_last_byte(folder / "model.safetensors")
    with pytest.raises(BadBundleError, match="SHA-256 differs"):
        load_weights(open_bundle(folder))


def test_a_cut_file_is_found_at_opening(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "m")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(BadBundleError, match="an incomplete copy"):
        find_bundle(str(folder))
    (folder / "model.safetensors").write_bytes(data + b"x")
    with pytest.raises(BadBundleError, match="altered"):
        find_bundle(str(folder))


def test_a_listed_file_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadBundleError, match=r"tokenizer\.json is missing"):
        open_bundle(folder)


def test_verify_names_a_file_that_is_not_listed(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "m")
    (folder / "codebook.safetensors").write_bytes(b"x")
    bundle = open_bundle(folder)
    with pytest.raises(BadBundleError, match=r"codebook\.safetensors is not in the manif") as error:
        verify(bundle)
    assert f"`astra-mesh models verify {folder} --take-new` takes it" in error.value.message


def test_new_files_are_taken_into_the_manifest_and_altered_ones_are_not(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "m")
    (folder / "codebook.safetensors").write_bytes(b"x")
    assert take_new(open_bundle(folder)) == ["codebook.safetensors"]
    assert "codebook.safetensors" in verify(open_bundle(folder))
    assert take_new(open_bundle(folder)) == []
    (folder / "extra.json").write_bytes(b"{}")
    before = (folder / "manifest.json").read_bytes()
    flip_last_byte(folder / "codebook.safetensors")
    with pytest.raises(BadBundleError, match="SHA-256 differs"):
        take_new(open_bundle(folder))
    assert (folder / "manifest.json").read_bytes() == before


def test_verify_without_a_manifest_says_so(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "m"))
    assert bundle.entries is None
    with pytest.raises(BadBundleError, match=r"no manifest\.json.*verify .*--take-new"):
        verify(bundle)
    assert take_new(bundle)
    assert verify(open_bundle(tmp_path / "m"))


def test_a_sharded_bundle_verifies(tmp_path: Path) -> None:
    folder = make_sharded(tmp_path / "m")
    write_manifest(folder)
    assert len(verify(open_bundle(folder))) == 4


def test_an_upper_case_hash_is_the_same_hash(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "m")
    content = json.loads((folder / "manifest.json").read_text())
    for file in content["files"].values():
        file["sha256"] = file["sha256"].upper()
    (folder / "manifest.json").write_text(json.dumps(content))
    verify(open_bundle(folder))


ENTRY = {"sha256": "0" * 64, "size": 1}
BAD_MANIFESTS = {
    "no object": ([], "where an object"),
    "other format": ({"format": "x/9", "files": {}}, "its format is not"),
    "no files": ({"format": "astra-mesh-manifest/1"}, "malformed"),
    "files as list": ({"format": "astra-mesh-manifest/1", "files": []}, "malformed"),
    "size as text": (
        {"format": "astra-mesh-manifest/1", "files": {"a": {**ENTRY, "size": "1"}}},
        "malformed",
    ),
    "unknown field": (
        {"format": "astra-mesh-manifest/1", "files": {"a": {**ENTRY, "x": 1}}},
        "malformed",
    ),
    "traversal": (
        {"format": "astra-mesh-manifest/1", "files": {"../config.json": ENTRY}},
        "not a plain file name",
    ),
    "absolute": (
        {"format": "astra-mesh-manifest/1", "files": {"/etc/passwd": ENTRY}},
        "not a plain file name",
    ),
}


@pytest.mark.parametrize(("content", "problem"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_bad_manifest_is_refused(tmp_path: Path, content: object, problem: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BadBundleError, match=problem):
        read_manifest(tmp_path)
