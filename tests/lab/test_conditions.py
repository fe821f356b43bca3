"""Delays, losses, rates, the shared medium and CPU quotas have the effect that they promise."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.timings import patient
from tools.lab import cpu
from tools.lab.accuracy import burn, ping, throughput_mbps
from tools.lab.cpu import make_group
from tools.lab.network import Lan
from tools.lab.system import LabError, new_stem

pytestmark = pytest.mark.lab


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(["a", "b", "c"], delayed=["a"], medium=True, seed=1) as network:
        yield network


class TestDelay:
    def test_what_the_device_sends_is_late_by_the_delay(self, lan: Lan) -> None:
        lan.set_delay("a", 20)
        assert 20 <= ping(lan, "a", "b", 20).quantile(0.5) < 20 + patient(3)
        lan.set_delay("a", 0)
        assert ping(lan, "a", "b", 20).quantile(0.5) < patient(3)

    def test_jitter_spreads_it(self, lan: Lan) -> None:
        lan.set_delay("a", 20, 10)
        found = ping(lan, "a", "b", 40)
        assert 10 <= found.quantile(0.1) < 18
        assert found.quantile(0.9) > 22

    def test_streams_pass_unharmed_and_fast(self, lan: Lan) -> None:
        assert throughput_mbps(lan, "a", "b", 4_000_000) > 30
        assert throughput_mbps(lan, "b", "a", 4_000_000) > 30

    def test_an_unplugged_cable_with_delay_is_dead(self, lan: Lan) -> None:
        lan.unplug("a")
        assert ping(lan, "b", "c", 3, 0.2).lost == 0
        assert ping(lan, "b", "a", 3, 0.1).lost == 3
        lan.plug("a")
        assert ping(lan, "b", "a", 3).lost == 0

    def test_only_cables_that_were_made_for_it_have_one(self, lan: Lan) -> None:
        with pytest.raises(LabError, match="made without delay"):
            lan.set_delay("b", 20)
        with pytest.raises(LabError, match="made without delays"), Lan(["a"]) as plain:
            plain.set_delay("a", 20)


def test_frames_are_lost_both_ways_until_it_is_lifted(lan: Lan) -> None:
    assert ping(lan, "a", "b", 5).lost < 5  # now they know each other's hardware addresses
    lan.set_loss("b", 30)
    lost = ping(lan, "a", "b", 200, 0.02).lost
    assert 60 < lost < 150  # 102 are expected; the deviation is 7
    assert ping(lan, "a", "c", 50, 0.2).lost == 0
    lan.set_loss("b", 0)
    assert ping(lan, "a", "b", 50, 0.2).lost == 0


def test_each_way_has_its_own_rate(lan: Lan) -> None:
    lan.set_rates("c", 4, None)
    assert 2 < throughput_mbps(lan, "c", "b", 400_000) < 4.5
    assert throughput_mbps(lan, "b", "c", 4_000_000) > 30


class TestMedium:
    def test_one_alone_gets_its_whole_rate(self, lan: Lan) -> None:
        lan.set_medium(8)
        assert 4 < throughput_mbps(lan, "a", "b", 500_000) < 8.5

    def test_two_at_once_share_it(self, lan: Lan) -> None:
        lan.set_medium(8)
        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(throughput_mbps, lan, "a", "b", 500_000)
            other = pool.submit(throughput_mbps, lan, "b", "c", 500_000)
            assert min(one.result(), other.result()) < 7
        assert time.monotonic() - began > 0.9 * 8 * 1.0 / 8

    def test_there_is_none_unless_it_was_made(self) -> None:
        with pytest.raises(LabError, match="without a shared medium"), Lan(["a"]) as plain:
            plain.set_medium(8)


class TestQuota:
    @pytest.mark.parametrize("cores", [0.5, 0.25])
    def test_a_busy_program_gets_its_share_in_short_turns(self, cores: float) -> None:
        group = make_group(new_stem(), "burn", cores)
        try:
            share, pause_ms = burn(group, 1.5)
        finally:
            group.close()
        assert cores * 0.6 < share < cores * 1.15  # other programs may take from it
        assert pause_ms < patient(80)  # with the usual period it is 50 or 75 at least

    def test_closing_kills_what_is_left_in_it(self) -> None:
        group = make_group(new_stem(), "sleep", 0.5)
        into = 'echo $$ > "$0" && exec sleep 60'
        with subprocess.Popen(["sh", "-c", into, str(group.door)]) as sleeper:
            while not group.door.read_text():
                time.sleep(0.01)
            assert group.usage().used_s < 1
            group.close()
        assert sleeper.returncode == -9
        assert not group.folder.exists()
        group.close()

    def test_a_sweep_leaves_living_owners_alone(self) -> None:
        group = make_group(new_stem(), "mine", 0.5)
        try:
            assert group.folder.name not in cpu.sweep()
            assert group.folder.is_dir()
        finally:
            group.close()


def test_nothing_of_it_is_left_on_the_machine() -> None:
    before = set(Path("/sys/class/net").iterdir())
    with Lan(["a"], delayed=["a"], medium=True):
        assert set(Path("/sys/class/net").iterdir()) == before
    assert set(Path("/sys/class/net").iterdir()) == before
