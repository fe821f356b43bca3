"""What a device says about its own speed is always usable for planning."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from astra_mesh.families import build_model
from astra_mesh.peer.measure import _fit, _pairs, measure
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


SIZES = [8, 64, 256]
PAIRS = [float(size * size) for size in SIZES]


def test_the_fit_finds_what_made_the_times() -> None:
    rest = [1e-3 + 2e-5 * n for n in SIZES]
    times = [t + 3e-8 * p for t, p in zip(rest, PAIRS, strict=True)]
    assert _fit(SIZES, times, rest) == pytest.approx((1e-3, 2e-5))


def test_the_fit_is_never_negative() -> None:
    g = np.random.default_rng(1)
    for _ in range(200):
        times = g.uniform(1e-9, 1e-2, 3)
        found = _fit(
            SIZES, list(times), list(times - g.uniform(0, 1e-2, 3))
        )  # attention alone took longer
        assert min(found) >= 0
        assert math.isfinite(sum(found))


def test_long_inputs_are_foreseen_from_noisy_times_of_short_ones() -> None:
    """A pair's time was once fitted, too: a tenth of noise made 1,024 tokens take twice as long."""
    g, tokens = np.random.default_rng(2), 1024
    exact = np.array([1e-3 + 7e-5 * n for n in SIZES])
    pair_s = 3.5e-8
    truth = 1e-3 + 7e-5 * tokens + pair_s * 0.75 * tokens**2
    for _ in range(200):
        times = (exact + pair_s * np.array(PAIRS)) * g.uniform(0.95, 1.1, 3)
        noisy_s = pair_s * g.uniform(0.95, 1.1)
        rest = times - noisy_s * np.array(PAIRS)
        fixed, per_token = _fit(SIZES, list(times), list(rest))
        found = fixed + per_token * tokens + noisy_s * 0.75 * tokens**2
        assert 0.85 * truth < found < 1.25 * truth


@pytest.mark.parametrize(
    ("kind", "tokens", "pairs"),
    [("vit", 5, 25), ("gpt2", 5, 25), ("gpt2", 512, 512**2), ("gpt2", 1024, 0.75 * 1024**2)],
)
def test_pairs_are_those_that_the_kernel_computes(kind: str, tokens: int, pairs: float) -> None:
    """torch 2.13, 12 heads, one thread: 2.3, 9.3, 26.8 ms for 256, 512, 1,024 causal tokens."""
    assert _pairs(small_model(kind), tokens) == pairs
