"""A tab's codes (JavaScript, in node) are Python's, and it rebuilds the same from them."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from astra_mesh.quant.codebook import UNLIMITED
from astra_mesh.quant.codecs import VectorCodec
from tests.javascript.golden import write_model
from tests.unit.engine.plans import HISTORIES, deep_model, random_codec

HERE = Path(__file__).parent
TOKENS = 70  # more than a tab codes at once

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")

Numbers = npt.NDArray[np.float32]


def _text(numbers: Tensor) -> dict[str, Any]:
    data = base64.b64encode(numbers.contiguous().numpy().astype("<f4").tobytes()).decode()
    return {"data": data, "columns": numbers.shape[1]}


def _numbers(text: str, columns: int) -> Numbers:
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, columns)


@dataclass
class _Case:
    """All coded blocks at one number of stages, as Python codes them."""

    codec: VectorCodec
    stages: int
    folder: Path
    table_bytes: int | None = None  # at most; None: as tabs have it
    blocks: list[dict[str, Any]] = field(default_factory=list)
    wanted: list[dict[str, Tensor]] = field(default_factory=list)

    @torch.inference_mode()
    def run(self) -> None:
        codec, stages, model = self.codec, self.stages, self.codec.model
        hidden = model.spec.hidden_size
        known = torch.randn(TOKENS, hidden, generator=torch.Generator().manual_seed(1))
        memory = codec.memory(known)
        sender, receiver = codec.sender(stages, known), codec.receiver(stages, known)
        for block in range(codec.first_block, model.spec.num_hidden_layers):
            book = codec.codebook.book(block, stages)
            x = torch.randn(TOKENS, hidden, generator=torch.Generator().manual_seed(9 + block))
            n = x if book.center is None else model.block(block).normalize(x)
            codes = sender.encode(block, x)
            given: dict[str, Any] = {"block": block, "n": _text(n)}
            given["codes"] = [one.flatten().tolist() for one in codes]
            found = {"n": receiver.rebuild(block, codes)}
            if codec.name != "astra":
                found["rows"] = model.block(block).project_key_value(found["n"])
            if memory is not None:
                given["past"] = _text(memory.past(block))
                predicted = memory.predict(block, book, slice(None))
                added = codec.added(block, stages, codes)
                memory.keep(block, slice(None), predicted, added)
                kept = predicted + added if codec.codebook.history == UNLIMITED else added
                found |= {"predicted": predicted, "kept": kept, "sent": kept}
            self.blocks.append(given)
            self.wanted.append(found)

    def described(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "codec": self.codec.name,
            "codebook": self.codec.codebook.id,
            "stages": self.stages,
            "tableBytes": self.table_bytes,
            "blocks": self.blocks,
        }

    def check(self, results: list[dict[str, Any]]) -> None:
        for given, wanted, found in zip(self.blocks, self.wanted, results, strict=True):
            for ours, theirs in zip(given["codes"], found.pop("codes"), strict=True):
                assert np.mean(np.array(ours) == theirs) >= 0.999
            assert found.keys() == wanted.keys()
            for name, numbers in wanted.items():
                theirs = _numbers(found[name], numbers.shape[1])
                most = 1e-4 * float(numbers.abs().max())  # a table's numbers have 16 bits
                np.testing.assert_allclose(theirs, numbers.numpy(), atol=most, err_msg=name)


def _check(cases: list[_Case], folder: Path) -> None:
    for case in cases:
        case.run()
    given, found = folder / "cases.json", folder / "results.json"
    given.write_text(json.dumps([case.described() for case in cases]))
    command = ["node", str(HERE / "run_codes.mjs"), str(given), str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, results in zip(cases, json.loads(found.read_text()), strict=True):
        case.check(results)


@pytest.mark.parametrize("history", HISTORIES)
def test_codes_of_a_codebook(history: int, tmp_path: Path) -> None:
    codec = random_codec(deep_model("gpt2"), groups=3, stages=3, history=history)
    folder = tmp_path / "model"
    write_model(codec.model, [codec], folder)
    _check([_Case(codec, stages, folder) for stages in (1, 2, 3)], tmp_path)


def test_codes_of_all_blocks(tmp_path: Path) -> None:
    codec = random_codec(deep_model("gpt2"), groups=3, stages=2, code_first=True)
    assert codec.first_block == 0
    folder = tmp_path / "model"
    write_model(codec.model, [codec], folder)
    _check([_Case(codec, 2, folder), _Case(codec, 2, folder, table_bytes=0)], tmp_path)


def test_codes_of_the_published_form(tmp_path: Path) -> None:
    codec = random_codec(deep_model("gpt2"), "astra", groups=4)
    folder = tmp_path / "model"
    write_model(codec.model, [codec], folder)
    _check([_Case(codec, 1, folder)], tmp_path)


@pytest.mark.parametrize("history", [0, UNLIMITED])
def test_codes_where_tables_would_be_too_large(history: int, tmp_path: Path) -> None:
    """Codewords are joined and multiplied instead: the same numbers."""
    codec = random_codec(deep_model("gpt2"), groups=3, stages=2, history=history)
    folder = tmp_path / "model"
    write_model(codec.model, [codec], folder)
    _check([_Case(codec, stages, folder, table_bytes=0) for stages in (1, 2)], tmp_path)
