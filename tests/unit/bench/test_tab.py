"""The command line of the measurement of a tab."""

from __future__ import annotations

import pytest

from tools.bench.tab import LARGE, SHIPPED, arguments


def test_models_are_all_those_that_there_are() -> None:
    assert arguments([]).models == [*SHIPPED, *LARGE]
    assert arguments(["--models", "vit-tiny", "gpt2-124m"]).models == ["vit-tiny", "gpt2-124m"]


@pytest.mark.parametrize("name", ["vit-tiny,tiny-gpt2", "gpt2", ""])
def test_a_name_that_is_none_is_refused_with_those_that_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments(["--models", name])
    told = capsys.readouterr().err
    assert f"invalid choice: {name!r}" in told
    assert all(one in told for one in (*SHIPPED, *LARGE))
