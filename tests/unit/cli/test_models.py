"""``astra-mesh models``: the table, and what is said of copies and of files that are not there."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from astra_mesh.bundle import write_manifest
from astra_mesh.bundle.install import is_wanted
from astra_mesh.bundle.store import user_models_path
from astra_mesh.cli.app import app
from astra_mesh.cli.models import Row, table
from tests.bundles import GPT2, VIT, gpt2_tensors, vit_tensors, word_tokenizer, write_bundle

RATES = [16, 32, 64, 128]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "words", GPT2, gpt2_tensors(GPT2, 3))


def call(*argv: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["models", *argv])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_names_and_ids_are_whole_in_80_columns() -> None:
    about = ("vit", 5_717_416, ("classify", "embed"), 22_900_000)
    rows = [
        Row("vit_tiny_patch16_224", *about, {"vq": RATES, "vq-h0": RATES}, "a" * 64, "x"),
        Row("TinyLlama-1.1B-Chat-v1.0-more", *about, {}, "b" * 64, "x"),
        Row("tiny-gpt2", *about, {"vq": RATES}, "c" * 64, "x"),
    ]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table([rows[0], rows[2]], 80))
        console.print(table(rows, 80))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 80
    short, long = text.split("name  ")[1:]
    for one in (short, long):
        for part in ("aaaaaaaa", "cccccccc", "5.7 M", "21.8 MiB", "vq 16/32/64/128", "tiny-gpt2 "):
            assert part in one
    assert "vit_tiny_patch16_224 " in short
    assert "bbbbbbbb" in long


def test_two_folders_with_the_same_weights_are_said_to_be_one_model(words: Path) -> None:
    _, said = call("add", str(words), "--name", "first")
    assert "one model" not in said
    _, said = call("add", str(words), "--name", "second")
    sentence = "first and second are one model (the same weights): either name will do"
    assert sentence in said
    _, said = call("list")
    assert sentence in said
    out, _ = call("add", str(words), "--name", "third", "--json")
    assert json.loads(out)["copies"] == ["first", "second"]
    _, said = call("list")
    assert "first, second and third are one model (the same weights): any name will do" in said


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer.json"])
def test_of_copies_that_read_texts_in_another_way_the_one_that_counts_is_named(
    words: Path, tmp_path: Path, file: str
) -> None:
    bare = shutil.copytree(words, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    (words / "chat_template.jinja").write_text("{{ messages[0].content }}")
    other = shutil.copytree(words, tmp_path / "again")
    call("add", str(words), "--name", "zwords")
    _, said = call("add", str(other))
    assert "either name will do" in said
    assert "differ" not in said
    (other / file).unlink()
    _, said = call("add", str(other), "--name", "less")
    sentence = "differ, and peers use those of {}, by any name: to use others, keep only the folder"
    assert sentence.format("again") in said
    shutil.rmtree(user_models_path() / "again")
    _, said = call("list")
    assert sentence.format("zwords").replace("any", "either") in said


def test_no_model_takes_the_name_of_a_shipped_one(words: Path) -> None:
    result = CliRunner().invoke(app, ["models", "add", str(words), "--name", "tiny-gpt2"])
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "there is a model tiny-gpt2 in " in said
    assert "choose another --name" in said
    assert not (user_models_path() / "tiny-gpt2").exists()


@pytest.mark.parametrize("damage", ["missing", "short", "altered"])
def test_a_damaged_model_is_in_the_table_and_says_how_it_is_mended(
    words: Path, damage: str
) -> None:
    call("add", str(words))
    path = user_models_path() / "words" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4] if damage == "short" else data[:-4] + b"none")
    if damage == "missing":
        path.unlink()
    out, said = call("list")
    assert re.search(r"^words +unusable", out, re.MULTILINE)
    assert "words: words/model.safetensors " in said
    assert "`astra-mesh models pull words`" in said
    out, _ = call("list", "--json")
    (row,) = (one for one in json.loads(out)["models"] if one["name"] == "words")
    assert "model.safetensors" in row["problem"]


def test_another_model_of_the_same_size_is_no_copy(words: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", GPT2, gpt2_tensors(GPT2, 4))
    call("add", str(words))
    _, said = call("add", str(other))
    assert "one model" not in said


def test_a_damaged_model_beside_it_does_not_matter(words: Path) -> None:
    call("add", str(words), "--name", "first")
    shutil.copytree(words, user_models_path() / "damaged")
    (user_models_path() / "damaged" / "config.json").write_text("{")
    _, said = call("add", str(words), "--name", "second")
    assert "first and second are one model" in said


def test_a_file_that_reads_texts_or_pictures_is_missed(words: Path, tmp_path: Path) -> None:
    pictures = write_bundle(tmp_path / "pictures", VIT, vit_tensors(VIT))
    for folder, file, fails in (
        (words, "tokenizer.json", "takes token ids but no text"),
        (pictures, "preprocessor_config.json", "takes no pictures"),
    ):
        _, said = call("add", str(folder), "--name", f"whole-{folder.name}")
        assert "it has no" not in said.replace("it has no codebook", "")
        (folder / file).unlink()
        _, said = call("add", str(folder))
        target = user_models_path() / folder.name
        assert f"it has no {file}, so it {fails}: copy the model's {file} into {target}" in said
        out, _ = call("add", str(folder), "--name", f"bare-{folder.name}", "--json")
        assert json.loads(out)["lacks"] == file


def test_a_tokenizer_that_was_copied_is_taken_by_the_command_that_is_named(words: Path) -> None:
    call("add", str(words))
    folder = user_models_path() / "words"
    (folder / "special_tokens_map.json").write_text("{}")
    found = CliRunner().invoke(app, ["models", "verify", "words"])
    assert found.exit_code == 1
    command = f"models verify {folder} --take-new"
    assert command in found.stderr.replace("\n", "")
    out, _ = call(*command.split()[1:])
    assert "taken into the manifest: special_tokens_map.json" in out
    out, _ = call("verify", "words", "--take-new", "--json")
    assert json.loads(out)["taken"] == []


UNFIT = {
    "broken": ("{", r"tokenizer\.json is no tokenizer that can be used"),
    "of a larger model": (word_tokenizer(200), "has 200 tokens and the model 64"),
    "of a smaller model": (word_tokenizer(20), "has 20 tokens and the model 64"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_tokenizer_that_cannot_be_the_model_s_is_told(words: Path, kind: str) -> None:
    text, sentence = UNFIT[kind]
    call("add", str(words), "--name", "mine")
    folder = user_models_path() / "mine"
    (folder / "tokenizer.json").unlink()
    write_manifest(folder)
    (folder / "tokenizer.json").write_text(text)
    _, said = call("list")
    assert re.search(sentence, said)
    found = CliRunner().invoke(app, ["models", "verify", "mine", "--take-new"])
    assert found.exit_code == 1
    assert re.search(sentence, " ".join(found.stderr.split()))
    _, said = call("add", str(shutil.copytree(words, words.with_name("fine"))))
    assert "tokenizer.json" not in said
    (words / "tokenizer.json").write_text(text)
    out, _ = call("add", str(words), "--json")
    assert re.search(sentence, json.loads(out)["fault"])


def test_no_pull_is_recommended_of_what_came_unfit_from_here(words: Path) -> None:
    (words / "tokenizer.json").write_text('{"version": "1.0"}')
    _, said = call("add", str(words), "--name", "mine")
    folder = user_models_path() / "mine"
    assert "models pull" not in said
    assert re.search(r"mine/tokenizer\.json is no tokenizer that can be used \(.*model", said)
    assert f"came so with the model; delete {folder} and add the model again" in said
    assert "came so with the model" in call("list")[1]
    (folder / "tokenizer.json").write_text("{")  # not as it came: others may have it
    assert "`astra-mesh models pull mine`" in call("list")[1]
    (folder / "tokenizer.json").unlink()
    write_manifest(folder)
    (folder / "tokenizer.json").write_text("{")
    _, said = call("list")
    assert f"copy this model's tokenizer.json into {folder}" in said
    assert "models pull" not in said


def test_tokens_that_were_added_and_rows_to_spare_are_no_fault(words: Path) -> None:
    for name, count in (("padded", 59), ("added", 66)):
        (words / "tokenizer.json").write_text(word_tokenizer(count))
        out, _ = call("add", str(words), "--name", name, "--json")
        assert json.loads(out)["fault"] == ""


def test_picture_settings_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    pictures = write_bundle(tmp_path / "pictures", VIT, vit_tensors(VIT))
    (pictures / "preprocessor_config.json").write_text('{"size": "large"}')
    _, said = call("add", str(pictures))
    assert "preprocessor_config.json" in said


def test_sizes_hold_the_codebook_and_few_parameters_are_counted() -> None:
    out, _ = call("list", "--json")
    (row,) = (one for one in json.loads(out)["models"] if one["name"] == "tiny-gpt2")
    read = [one for one in Path(row["path"]).iterdir() if is_wanted(one.name)]
    assert row["size_bytes"] == sum(path.stat().st_size for path in read) > 16e6
    row = Row("tiny", "gpt2", 264, ("generate",), 1100, {}, "a" * 64, "x")
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table([row, replace(row, name="more", parameters=1_400)], 80))
    assert " 264 " in captured.get()
    assert " 1.4 k " in captured.get()
