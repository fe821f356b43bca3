"""Decoding and the choice of tokens."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import torch
from torch import Tensor

from astra_mesh.engine.decode import Decoder, step_all
from astra_mesh.engine.reference import decode, hidden_rows, run_plan, run_solo
from astra_mesh.engine.sampling import Sampler, check_sampling, truncate
from astra_mesh.errors import InputError
from astra_mesh.families import ModelInput
from astra_mesh.families.precision import PRECISIONS, Precision, convert
from astra_mesh.plan.layout import make_layout
from astra_mesh.wire.messages import Sampling
from tests.unit.engine.plans import HISTORIES, close, deep_model, input_of, random_codec
from tests.unit.families.making import CAUSAL, CONTEXT, make_model

# --- the cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_step_equals_the_prefill_of_the_longer_prompt(kind: str) -> None:
    model = make_model(kind)
    tokens = input_of(model, 9).tokens
    assert tokens is not None
    decoder = Decoder(run_solo(model, ModelInput(tokens=tokens), "last", 8), Sampling())
    for _ in range(8):
        whole = run_solo(model, ModelInput(tokens=tokens), "all")
        assert close(decoder.logits, model.logits(hidden_rows([whole]))[-1])
        token = decoder.step()
        assert token is not None
        tokens = torch.cat([tokens, torch.tensor([token])])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", CAUSAL)
def test_steps_of_several_texts_equal_those_taken_alone(kind: str, precision: Precision) -> None:
    """Texts of different lengths, of which the shorter ones end first."""
    model = make_model(kind)
    convert(model, precision)
    sizes = ((3, 2), (9, 7), (5, 4))  # tokens of the prompt, new tokens

    def decoders() -> list[Decoder]:
        inputs = [input_of(model, tokens) for tokens, _ in sizes]
        return [
            Decoder(run_solo(model, one, "last", 8), Sampling(max_new_tokens=new))
            for one, (_, new) in zip(inputs, sizes, strict=True)
        ]

    together, alone = decoders(), decoders()
    for _ in range(8):
        tokens = step_all(together)
        assert tokens == [one.step() for one in alone]
        for ours, theirs in zip(together, alone, strict=True):
            if precision in ("fp32", "int8"):
                assert close(ours.logits, theirs.logits)
            assert (ours.position, ours.finish) == (theirs.position, theirs.finish)
    assert tokens == [None] * 3


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("kind", CAUSAL)
def test_decoding_continues_from_what_codes_left(kind: str, history: int) -> None:
    """A step attends the rows that the answering shard holds, exact and rebuilt, as they are."""
    model = deep_model(kind)
    codec, inputs = random_codec(model, history=history), input_of(model, 16)
    layout = make_layout(model.spec, [(0, 6), (6, 11), (11, 16)], pooling="last", stages=2)
    run = run_plan(model, layout, codec, inputs, 4)[-1]
    held = [rows[:16].clone() for rows in run.rows]
    decoder = Decoder(run, Sampling(max_new_tokens=4))
    token = decoder.step()
    assert token is not None
    x = model.embed(ModelInput(tokens=torch.tensor([0] * 16 + [token])), 16, 17)
    for index, rows in enumerate(held):
        block = model.block(index)
        query, row = block.query_key_value(block.normalize(x), 16)
        key, value = torch.cat([rows, row]).unbind(1)  # (17, H_kv, E)
        scores = torch.einsum("hgte,she->hgts", query, key) / model.spec.head_dim**0.5
        heads = torch.einsum("hgts,she->thge", scores.softmax(-1), value)
        x = block.mix(x, heads.reshape(1, -1))
    assert close(decoder.logits, model.logits(model.final(x))[0])


def endings(prompt: int, stop: set[int] | None = None, new: int = 5) -> tuple[list[int], str]:
    model = make_model("gpt2")
    run = run_solo(model, input_of(model, prompt), "last", new)
    decoder = Decoder(run, Sampling(max_new_tokens=new), stop or ())
    found = list(iter(decoder.step, None))
    assert decoder.step() is None  # stays ended
    return found, decoder.finish


def test_texts_end_by_length() -> None:
    tokens, finish = endings(9)
    assert (len(tokens), finish) == (5, "length")


def test_texts_end_by_a_stop_token_that_is_not_returned() -> None:
    tokens, _ = endings(9)
    stop = tokens[3]
    shorter, finish = endings(9, {stop})
    assert shorter == tokens[: tokens.index(stop)]
    assert finish == "eos"


@pytest.mark.parametrize(("prompt", "count"), [(CONTEXT, 1), (CONTEXT - 1, 2), (CONTEXT - 3, 4)])
def test_texts_end_with_the_context(prompt: int, count: int) -> None:
    """The last token that fits is still followed by one that nothing follows."""
    tokens, finish = endings(prompt)
    assert (len(tokens), finish) == (count, "context")


# --- sampling -------------------------------------------------------------------------------------

LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.5, 1.0, -3.0, 0.0])
DRAWS = 1500


def expected(logits: Tensor, options: Sampling) -> dict[int, float]:
    """Probabilities by the definitions, on plain numbers."""
    weights = {i: float(w) for i, w in enumerate((logits.double() / options.temperature).exp())}
    order = sorted(weights, key=lambda i: -weights[i])
    if options.top_k:
        order = order[: options.top_k]
    total = sum(weights[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        if reached >= options.top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


OPTIONS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.5),
    Sampling(temperature=1.7, top_k=3),
    Sampling(temperature=1.0, top_p=0.7),
    Sampling(temperature=1.0, top_p=1e-6),
    Sampling(temperature=1.0, top_p=5e-324),  # 0 in float32
    Sampling(temperature=2.0, top_k=4, top_p=0.8),
    Sampling(temperature=1.0, top_k=100),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_draws_follow_the_definition(options: Sampling) -> None:
    wanted = expected(LOGITS, options)
    kept = truncate(LOGITS / options.temperature, options).isfinite().nonzero().flatten().tolist()
    assert sorted(wanted) == kept
    sampler = Sampler(msgspec.structs.replace(options, seed=11))
    counts = Counter(sampler.choose(LOGITS) for _ in range(DRAWS))
    assert set(counts) <= set(wanted)
    chi2 = sum((counts[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in wanted.items())
    assert chi2 < 30  # 6 degrees of freedom: exceeded once in 25,000 seeds


def test_greedy_takes_the_largest() -> None:
    assert {Sampler(Sampling(top_k=2, top_p=0.5)).choose(LOGITS) for _ in range(5)} == {0}


def test_a_seed_repeats_a_text_and_another_changes_it() -> None:
    model = make_model("llama")
    inputs = input_of(model, 5)

    def text(seed: int | None) -> list[int]:
        options = Sampling(max_new_tokens=16, temperature=1.5, seed=seed)
        return decode([run_solo(model, inputs, "last", 16)], options)

    assert text(3) == text(3)
    assert text(3) != text(4)
    assert text(-1) == text(-1)
    assert text(None) != text(None)


def test_a_tiny_temperature_is_greedy() -> None:
    assert Sampler(Sampling(temperature=1e-42, seed=1)).choose(LOGITS * 1e6) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        Sampling(max_new_tokens=0),
        Sampling(temperature=-0.1),
        Sampling(temperature=float("nan")),
        Sampling(temperature=101.0),
        Sampling(top_k=-1),
        Sampling(top_p=0.0),
        Sampling(top_p=1.1),
        Sampling(top_p=float("nan")),
    ],
)
def test_values_that_make_no_sense(wrong: Sampling) -> None:
    with pytest.raises(InputError, match=r"max_new|temperature|top_"):
        check_sampling(wrong)
    with pytest.raises(InputError):
        Sampler(wrong)
