"""The trials of fitting: they measure what the engine does, and change what they say they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from astra_mesh.bundle import Bundle
from astra_mesh.quality import EvalSettings, FitOptions, evaluate, evaluation
from astra_mesh.quality.data import load_samples
from astra_mesh.quant.codebook import Codebook
from astra_mesh.quant.codecs import make_codec
from astra_mesh.quant.coders import BlockCoder
from astra_mesh.quant.frame import kv_metric
from tests.unit.quality.making import picture, toy_bundle, words, write
from tools.bench import trials
from tools.bench.trials import Run, Subject, Trial

OPTIONS = FitOptions(
    history=-1, rates=(8,), groups=2, codewords=16, iterations=2, peers=(4,), distributed=False
)


def made(folder: Path, kind: str) -> tuple[Bundle, Path]:
    """A toy model, and thirty inputs for it."""
    bundle = toy_bundle(folder / kind, kind)
    if kind == "gpt2":
        return bundle, write(folder, {"x.txt": words(48 * 30)}) / "x.txt"
    files: dict[str, bytes | str] = {f"{i}.png": picture(8 * i) for i in range(30)}
    return bundle, write(folder / "pictures", files)


@pytest.fixture(params=["gpt2", "vit"])
def of(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Subject, Bundle, Path]:
    bundle, data = made(tmp_path, request.param)
    return trials.subject(bundle.path, data, data, 9), bundle, data


@pytest.mark.parametrize("history", [0, -1])
def test_what_is_measured_is_what_eval_measures(
    of: tuple[Subject, Bundle, Path], history: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, bundle, data = of
    monkeypatch.setattr(evaluation, "make_codec", partial(make_codec, rough=False))
    options = replace(OPTIONS, history=history)
    run = Run(subject, Trial(), options)
    blocks = run.fit()
    book = Codebook(
        "vq", bundle.model_id, subject.model.spec.hidden_size, 1, history, options.stage_groups,
        options.codewords, 1, {1: tuple(run.books)},
    )  # fmt: skip
    book.save(bundle.path / "codebook.safetensors")
    wanted = evaluate(bundle, data, EvalSettings(codecs=("vq",), limit=9)).rows[0].metrics
    kl, agreement = run.measure(blocks).mean(0).tolist()
    assert kl == pytest.approx(wanted["kl"], rel=1e-3, abs=1e-9)
    assert agreement == pytest.approx(wanted["agreement"])
    assert len(load_samples(bundle, data, limit=9)) == 9


def test_heads_of_equal_weight_are_all_keys_and_values(of: tuple[Subject, Bundle, Path]) -> None:
    subject = of[0]
    block = subject.model.block(1)
    centered = torch.randn(50, subject.model.spec.hidden_size)
    heads = torch.ones(2, subject.model.spec.num_key_value_heads)
    whole = block.kv_weight.double()
    torch.testing.assert_close(trials.by_heads(heads)(centered, block), whole.T @ whole)
    unit = trials.by_heads(None)(centered, block)
    covariance = (centered.T @ centered).double() / 50
    assert float((unit * covariance).sum()) == pytest.approx(2 * len(heads[0]))
    assert float((kv_metric(centered, block) * covariance).sum()) == pytest.approx(2)


def test_gradients_come_to_all_coded_blocks_and_leave_nothing_behind(
    of: tuple[Subject, Bundle, Path],
) -> None:
    model = of[0].model
    assert [bool(one.sum() > 0) for one in of[0].by_head] == [
        index > 0 for index in range(model.spec.num_hidden_layers)
    ]
    assert not any("project_key_value" in vars(one) for one in model.block_list)


@pytest.mark.parametrize("correction", ["attention", "remote"])
def test_corrected_attention_is_right_on_average(
    of: tuple[Subject, Bundle, Path], correction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corrected once more, nothing is left to add."""
    subject = of[0]
    run = Run(subject, Trial(correction=correction), OPTIONS)  # type: ignore[arg-type]
    first = run.fit()[1]
    assert first.added is not None
    assert float(first.added.abs().max()) > 0
    plain: Callable[..., trials.Attention] = trials.attention

    def corrected(block: object, batch: object, rebuilt: object) -> trials.Attention:
        found = plain(block, batch, rebuilt)
        if rebuilt is None:
            return found
        assert first.added is not None
        return replace(found, out=found.out + run.share(found) * first.added[:, None])

    batches = trials.batches_of(subject, subject.calibration)
    for batch in batches:
        run.advance(0, batch, None)
    monkeypatch.setattr(trials, "attention", corrected)
    left = run.off(1, batches, replace(first, added=None))
    assert float(left.abs().max()) < 1e-4 * float(first.added.abs().max())


def test_the_shared_error_that_is_sent_leaves_none_but_its_rounding(
    of: tuple[Subject, Bundle, Path],
) -> None:
    subject, found = of[0], []
    for shared in (0, 2, 8, trials.EXACT):
        run = Run(subject, Trial(shared=shared), replace(OPTIONS, history=0))
        run.fit()
        book, batch = run.books[0], trials.batches_of(subject, subject.calibration)[0]
        assert book.analysis is not None
        assert book.center is not None
        residual = batch.coded(subject.model.block(1).normalize(batch.x)) - book.center
        error = residual - run._added(1, batch, trials.Coded(BlockCoder(book)), residual)
        wide = (error @ book.analysis.T).view(*batch.x.shape[:2], -1)[:, 0]
        own = wide[batch.held.owner[0] == 0]  # of one peer
        found.append(float(own.mean(0).norm() / own.norm(dim=1).mean()))
    assert found[0] > found[1] > found[2] > found[3]
    assert found[2] < 0.05
    assert found[3] < 1e-3
