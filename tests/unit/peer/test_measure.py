"""What a device says about its own speed is always usable for planning."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from astra_mesh.families import build_model
from astra_mesh.peer.measure import _fit, measure
from astra_mesh.quant.codecs import PLAIN, make_codec
from tests.bundles import GPT2, gpt2_tensors
from tests.unit.peer.fakes import small_model


@pytest.mark.parametrize("codec", PLAIN)
@pytest.mark.parametrize("kind", ["gpt2", "vit", "bert"])
def test_times_are_finite_and_not_negative(kind: str, codec: str) -> None:
    model = small_model(kind)
    timing = measure(model, make_codec(codec, model), 1)
    values = msgspec.structs.astuple(timing)
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert timing.fixed_s + timing.per_token_s + timing.per_pair_s > 0
    assert timing.encode_token_s > 0
    assert timing.decode_token_s > 0
    assert timing.head_s > 0
    assert (timing.step_s > 0) is (kind == "gpt2")


@pytest.mark.parametrize("context", [1, 2, 8, 9])
def test_models_with_a_tiny_context(context: int) -> None:
    config = GPT2 | {"n_positions": context}
    timing = measure(build_model(config, gpt2_tensors(config)), None, 1)
    assert all(value >= 0 for value in msgspec.structs.astuple(timing))
    assert timing.fixed_s + timing.per_token_s + timing.per_pair_s > 0


def test_the_fit_finds_what_made_the_times() -> None:
    sizes = [8, 64, 256]
    pairs = [size * size / 2 for size in sizes]
    times = [1e-3 + 2e-5 * n + 3e-8 * p for n, p in zip(sizes, pairs, strict=True)]
    assert _fit(sizes, pairs, times) == pytest.approx((1e-3, 2e-5, 3e-8))


def test_the_fit_is_never_negative() -> None:
    g = np.random.default_rng(1)
    for _ in range(200):
        times = list(g.uniform(1e-9, 1e-2, 3))
        found = _fit([8, 64, 256], [64, 4096, 65536], times)
        assert min(found) >= 0
        assert 0 < sum(found) < math.inf
