"""Short schedules of faults against real peers; `make nemesis` runs more and longer ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.forks import python
from tests.timings import patient
from tools.lab import nemesis

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("forks"),
]

# A busy machine notices later, and is asked less.
SETTINGS = nemesis.Settings(devices=3, seconds=6.0, deadline_s=patient(40.0), slack_s=patient(4.0))


@pytest.mark.parametrize("seed", range(1, 17))
def test_the_promises_are_kept(seed: int) -> None:
    settings = replace(SETTINGS, python=python())
    ((history, broken),) = nemesis.run([seed], settings, lambda text: None)
    assert broken == [], "\n".join(broken)
    assert len(history.faults) >= 2
    assert sum(not one.error for one in history.asked) >= 6
