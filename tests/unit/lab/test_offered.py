"""Requests of a scenario that no peer could answer are told before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles import GPT2, VIT, gpt2_tensors, vit_tensors, write_bundle
from tools.lab import runner
from tools.lab.offered import check_requests
from tools.lab.scenario import Device, Options, Request, Scenario, ScenarioError

PROMPT = (1, 2, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "words", GPT2, gpt2_tensors(GPT2))
    write_bundle(folder / "pictures", VIT, vit_tensors(VIT))
    (folder / "broken").mkdir()
    return folder


def scenario(models: Path, request: Request, *offer: str) -> Scenario:
    return Scenario(devices={"a": Device()}, models=str(models), offer=offer, requests=(request,))


def asked(model: str, **more: object) -> Request:
    return Request(device="a", model=model, tokens=PROMPT, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "offer", "message"),
    [
        (asked("word"), (), r"request\[0\].model: no model 'word' is offered; there is pictures"),
        (asked("words"), ("pictures",), r"no model 'words' is offered; there is pictures$"),
        (asked("pictures"), (), r"request\[0\].task: pictures does not generate, it does"),
        (asked("words", options=Options(codec="zip")), (), r"options.codec: no codes 'zip'"),
        (
            Request(device="a", model="words", tokens=(1, 99_999)),
            (),
            r"request\[0\].tokens: words has no token 99999, it has \d+",
        ),
        (asked("words"), ("broken",), r"offer: .*broken.* holds no model"),
    ],
)
def test_what_cannot_be_answered_is_named(
    models: Path, request_: Request, offer: tuple[str, ...], message: str
) -> None:
    wanted = scenario(models, request_, *offer)
    with pytest.raises(ScenarioError, match=message):
        check_requests(wanted)
    with pytest.raises(ScenarioError, match=message):
        runner.run(wanted)


@pytest.mark.parametrize(
    "request_",
    [
        asked("words"),
        asked("words", options=Options(codec="int8")),
        asked("0123abcd"),  # the start of an id
        asked("nothing", may_fail=True),
    ],
)
def test_others_pass(models: Path, request_: Request) -> None:
    check_requests(scenario(models, request_))
