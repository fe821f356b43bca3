"""A stranger with addresses of its own floods a peer's port."""

from __future__ import annotations

import time

import pytest

from astra_mesh import limits
from tests.timings import patient
from tools.bench.flood import asked, attacked, attacker, give_addresses, scenario, start
from tools.lab.house import House

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(180)]

TOKENS = 16
FLOOD_S = 2.0


def test_handshakes_of_strangers_are_few_from_one_address_and_from_many() -> None:
    one = limits.STRANGER_HANDSHAKES_BURST, limits.STRANGER_HANDSHAKES_PER_S
    many = limits.STRANGERS_HANDSHAKES_BURST, limits.STRANGERS_HANDSHAKES_PER_S
    with House(scenario(None), timelines=False) as house:
        start(house)
        addresses = give_addresses(house)
        for kind, (burst, per_s) in {"handshake": one, "handshake-many": many}.items():
            done: dict[str, int] = {}
            with attacker(house, kind, addresses) as process:
                began = time.monotonic()
                with attacked(process, done):
                    time.sleep(patient(FLOOD_S))
                    asked(house, TOKENS)  # by both peers
                most = burst + per_s * (time.monotonic() - began)
            assert done["opened"] > 2 * most, "no flood"
            assert burst / 2 < done["handshakes"] <= most, kind
            time.sleep(burst / per_s)  # until all turns are back
