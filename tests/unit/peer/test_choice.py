"""Which codes a request may use: what was measured decides, an explicit wish wins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.quality import FORMAT, Measured, Quality, TaskQuality
from astra_mesh.errors import CodebookError, InputError
from astra_mesh.peer.choice import Code, choose_codes, expected_cost, stages_of, usual_rate
from astra_mesh.peer.code_times import CodeTimes
from astra_mesh.peer.loaded import Loaded
from astra_mesh.quant.codebook import UNLIMITED, Codebook
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.wire.messages import CodebookId, LinkRate, Options, Plan, Shard
from tests.bundles import GPT2, gpt2_tensors, write_bundle
from tests.unit.peer.fakes import A, B, C, small_model
from tests.unit.peer.test_code_times import fitted

MODEL = small_model()
LONG, SHORT, ASTRA = fitted(MODEL, UNLIMITED), fitted(MODEL, 0), fitted(MODEL, codec="astra")
BOOKS = {book.id: book for book in (LONG, SHORT, ASTRA)}
# Bits: LONG has 8, 16, 32, SHORT 4, 8, 16, 32, ASTRA 16.
LOSSES = {
    (LONG.id, 8): 0.04,
    (LONG.id, 16): 0.012,
    (LONG.id, 32): 0.004,
    (SHORT.id, 8): 0.2,
    (SHORT.id, 16): 0.05,
    (SHORT.id, 32): 0.011,
    (ASTRA.id, 16): 0.3,
}


def row(book: Codebook, bits: int, loss: float, peers: int = 4) -> Measured:
    stages = next(stages for stages, rate in book.rates.items() if rate == bits)
    metrics = {"cosine": 1 - loss}
    return Measured(book.codec, book.id, book.history, stages, bits, peers, metrics)


ROWS = [row(BOOKS[CodebookId(key)], bits, loss) for (key, bits), loss in LOSSES.items()]
PLAIN = Measured("int8", "", 0, 1, 288, 4, {"cosine": 0.9999})


def quality(*rows: Measured, limit: float = 0.015, class_token: str = "none") -> Quality:
    task = TaskQuality(
        data="valid.txt",
        sequences=8,
        tokens=100,
        class_token=class_token,
        shards="even",
        measure="cosine",
        limit=limit,
        baseline={},
        definitions={},
        measured=list(rows or ROWS),
    )
    return Quality(FORMAT, "a" * 64, {"generate": task})


def text_row(book: Codebook, bits: int, increase: float, kl: float) -> Measured:
    metrics = {"nats_increase": increase, "kl": kl}
    return structs.replace(row(book, bits, 0.0), metrics=metrics)


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    bundle = open_bundle(write_bundle(tmp_path / "toy", GPT2, gpt2_tensors(GPT2)))
    return Loaded(bundle, MODEL, dict(BOOKS), None, None, frozenset(), bundle, quality=quality())


def test_the_usual_rate_is_the_one_that_requests_without_a_wish_use(loaded: Loaded) -> None:
    tasks = quality().tasks.values()
    for key, rate in chosen(loaded):
        assert usual_rate(BOOKS[CodebookId(key)], tasks) == rate
    for book in BOOKS.values():
        assert usual_rate(book, []) == book.rate(book.default_stages)
    strict = quality(limit=1e-6).tasks.values()  # none of them
    assert usual_rate(LONG, strict) == LONG.rate(LONG.default_stages)


def test_a_codebook_can_be_named(loaded: Loaded) -> None:
    loaded.names = {LONG.id: "vq", SHORT.id: "vq-h0", ASTRA.id: "astra-g4"}
    assert {key for key, _ in chosen(loaded, codec="vq", max_loss=1.0)} == {LONG.id, SHORT.id}
    assert chosen(loaded, codec="vq-h0") == [(SHORT.id, 32)]
    assert chosen(loaded, codec="vq-h0", rate=8) == [(SHORT.id, 8)]
    assert chosen(loaded, codec="astra-g4", rate=16) == [(ASTRA.id, 16)]
    with pytest.raises(InputError, match=r"has no codes 'vq-h1'; it has vq, vq-h0, astra-g4, fp32"):
        chosen(loaded, codec="vq-h1")


def test_alike_codebooks_are_told_apart(loaded: Loaded) -> None:
    codes, _ = choose_codes(loaded, Options(), "generate")
    assert {code.label for code in codes} == {"predictive", "memoryless"}
    other = fitted(MODEL, 0, seed=1)
    loaded.codebooks[other.id] = other
    loaded.names = {SHORT.id: "vq-h0", other.id: "vq-mine"}
    (code,), _ = choose_codes(loaded, Options(codec="vq-h0"), "generate")
    assert code.label == "memoryless (vq-h0)"


def chosen(loaded: Loaded, **options: object) -> list[tuple[str, int]]:
    codes, _ = choose_codes(loaded, Options(**options), "generate")  # type: ignore[arg-type]
    return [(code.codebook, code.codec.rate(code.stages)) for code in codes]


def notes(loaded: Loaded, **options: object) -> list[str]:
    return choose_codes(loaded, Options(**options), "generate")[1]  # type: ignore[arg-type]


def test_of_each_codebook_the_smallest_rate_within_the_stored_limit(loaded: Loaded) -> None:
    assert chosen(loaded) == [(LONG.id, 16), (SHORT.id, 32)]
    codes, said = choose_codes(loaded, Options(), "generate")
    assert [code.label for code in codes] == ["predictive", "memoryless"]
    assert said == []


def test_a_gain_does_not_hide_that_answers_are_others(loaded: Loaded) -> None:
    """A lower perplexity than one device's, with a divergence beyond the limit."""
    rows = (text_row(LONG, 8, -0.05, 0.3), text_row(LONG, 32, 0.001, 0.002))
    found = quality(*rows, limit=0.02).tasks["generate"]
    found = structs.replace(found, measure="perplexity")
    loaded.quality = Quality(FORMAT, "a" * 64, {"generate": found})
    assert chosen(loaded) == [(LONG.id, 32)]
    assert usual_rate(LONG, loaded.quality.tasks.values()) == 32
    assert chosen(loaded, max_loss=0.5) == [(LONG.id, 8)]
    assert chosen(loaded, max_loss=0.0) == [(LONG.id, 32)]  # the nearest to it
    (note,) = notes(loaded, max_loss=0.0)
    assert "within perplexity +0.0 % and a KL of 0" in note


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (0.005, [(LONG.id, 32)]),
        (0.06, [(LONG.id, 8), (SHORT.id, 16)]),
        (1.0, [(LONG.id, 8), (SHORT.id, 8), (ASTRA.id, 16)]),
    ],
)
def test_a_wanted_loss(loaded: Loaded, loss: float, wanted: list[tuple[str, int]]) -> None:
    assert chosen(loaded, max_loss=loss) == wanted


def test_an_explicit_rate_wins_and_takes_the_better_codebook(loaded: Loaded) -> None:
    assert chosen(loaded, rate=32) == [(LONG.id, 32)]
    assert chosen(loaded, rate=4) == [(SHORT.id, 4)]
    assert chosen(loaded, rate=8, max_loss=0.0) == [(LONG.id, 8)]
    with pytest.raises(InputError, match=r"no rate of 7 bits .* it has 4, 8, 16, 32"):
        chosen(loaded, rate=7)
    loaded.quality = None
    assert chosen(loaded, rate=16) == [(LONG.id, 16)]


def test_an_explicit_codec_wins(loaded: Loaded) -> None:
    assert chosen(loaded, codec="astra") == [(ASTRA.id, 16)]
    assert chosen(loaded, codec="vq", max_loss=1.0) == [(LONG.id, 8), (SHORT.id, 8)]
    assert [book for book, _ in chosen(loaded, codec="int8")] == [""]
    with pytest.raises(InputError, match="unknown codec"):
        chosen(loaded, codec="zip")
    loaded.codebooks.clear()
    assert [book for book, _ in chosen(loaded)] == [""]
    with pytest.raises(CodebookError, match="fit"):
        chosen(loaded, codec="vq")


def test_without_measures_the_codebooks_own_default(loaded: Loaded) -> None:
    loaded.quality = None
    default = (LONG.id, LONG.rate(LONG.default_stages))
    assert chosen(loaded) == [default]
    assert notes(loaded) == []
    assert chosen(loaded, max_loss=0.5) == [default]
    (note,) = notes(loaded, max_loss=0.5)
    assert "nothing was measured: astra-mesh eval toy --data ... --save" in note
    loaded.quality = quality()
    assert choose_codes(loaded, Options(), "embed")[0][0].codebook == LONG.id


def test_entries_of_codebooks_that_are_not_here_are_ignored(loaded: Loaded) -> None:
    del loaded.codebooks[LONG.id]
    assert chosen(loaded) == [(SHORT.id, 32)]
    gone = [replace_row(one, codebook="f" * 64) for one in ROWS]
    loaded.quality = quality(*gone)
    assert chosen(loaded) == [(SHORT.id, SHORT.rate(SHORT.default_stages))]


def test_entries_that_do_not_fit_their_codebook_are_ignored(loaded: Loaded) -> None:
    best = row(LONG, 8, 0.0)
    odd = [replace_row(best, stages=1), replace_row(best, bits=24), replace_row(best, stages=60)]
    loaded.quality = quality(*odd, row(SHORT, 32, 0.01))
    assert chosen(loaded) == [(SHORT.id, 32)]


def replace_row(one: Measured, **change: object) -> Measured:
    values = {name: getattr(one, name) for name in one.__struct_fields__}
    return Measured(**values | change)


def test_the_largest_number_of_peers_decides(loaded: Loaded) -> None:
    loaded.quality = quality(*ROWS, row(LONG, 8, 0.001, peers=2), row(LONG, 32, 0.01, peers=8))
    assert chosen(loaded) == [(LONG.id, 32)]


def test_where_no_codebook_will_do_a_plain_codec_does(loaded: Loaded) -> None:
    loaded.quality = quality(*ROWS, PLAIN)
    assert [book for book, _ in chosen(loaded, max_loss=0.001)] == [""]
    (note,) = notes(loaded, max_loss=0.001)
    assert note == "no codebook was measured to stay within cosine 0.9990: int8 is used"
    assert chosen(loaded, max_loss=0.001, codec="vq") == [(LONG.id, 32)]


def test_where_nothing_will_do_the_best_is_taken_and_said(loaded: Loaded) -> None:
    assert chosen(loaded, max_loss=0.0) == [(LONG.id, 32)]
    (note,) = notes(loaded, max_loss=0.0)
    assert note.endswith("the best has 32 bits, cosine 0.9960")


# --- what a plan costs ----------------------------------------------------------------------------


def plan(code: Code, peers: int = 2) -> Plan:
    who = [A, B, C][:peers]
    return Plan(
        model=code.codec.codebook.model if isinstance(code.codec, VectorCodec) else A,  # type: ignore[arg-type]
        codec=code.codec.name,
        codebook=code.codebook,
        shards=[Shard(peer=peer, start=i, stop=i + 1) for i, peer in enumerate(who)],
        rates=[LinkRate(sender=A, receiver=peer, stages=code.stages) for peer in who[1:]],
        answering=who[-1],
        class_token="none",
    )


def test_the_expected_cost_of_a_plan(loaded: Loaded) -> None:
    code = choose_codes(loaded, Options(), "generate")[0][0]
    found = expected_cost(loaded, plan(code), "generate")
    assert found is not None
    assert (found.measure, found.peers, found.data, found.sequences) == (
        "cosine",
        4,
        "valid.txt",
        8,
    )
    assert found.loss == pytest.approx(0.012)
    assert expected_cost(loaded, plan(code, peers=1), "generate") is None
    assert expected_cost(loaded, plan(code), "embed") is None
    assert expected_cost(loaded, plan(replace(code, stages=1)), "generate") is None
    loaded.quality = quality(class_token="distributed")
    assert expected_cost(loaded, plan(code), "generate") is None


def test_what_happened_to_be_better_costs_nothing(loaded: Loaded) -> None:
    loaded.quality = quality(row(LONG, 16, -0.25))
    code = choose_codes(loaded, Options(), "generate")[0][0]
    found = expected_cost(loaded, plan(code), "generate")
    assert found is not None
    assert found.loss == 0.0


def test_the_stages_of_a_plan(loaded: Loaded) -> None:
    code = choose_codes(loaded, Options(), "generate")[0][0]
    assert stages_of(plan(code)) == code.stages
    assert stages_of(plan(code, peers=1)) == 0


# --- decoders -------------------------------------------------------------------------------------


def test_each_rate_has_the_decoder_that_is_faster_here(loaded: Loaded) -> None:
    few, many = LONG.able[0], LONG.able[-1]
    loaded.times[LONG.id] = CodeTimes({}, {}, {}, {few: "table", many: "project"})
    looking, projecting = (loaded.codec("vq", LONG.id, stages) for stages in (few, many))
    assert isinstance(looking, VectorCodec)
    assert isinstance(projecting, VectorCodec)
    assert (looking.decoder, projecting.decoder) == ("table", "project")
    assert loaded.codec("vq", LONG.id, many) is projecting
    assert loaded.codec("vq", LONG.id) is looking
    assert projecting.coder(1, few) is looking.coder(1, few)
    short = loaded.codec("vq", SHORT.id, 1)
    assert isinstance(short, VectorCodec)
    assert short.decoder == "table"  # not measured
