"""The times of links as one object, so that tests can scale them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from astra_mesh import limits


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of a link, seconds (what each bounds is said in :mod:`astra_mesh.limits`)."""

    hello_s: float = limits.HELLO_TIMEOUT_S
    heartbeat_s: float = limits.HEARTBEAT_S
    silence_s: float = limits.SILENCE_S
    lost_s: float = limits.LOST_S
    tab_lost_s: float = limits.TAB_LOST_S
    close_s: float = limits.CLOSE_TIMEOUT_S
    dial_s: float = limits.DIAL_TIMEOUT_S
    probe_s: float = limits.PROBE_TIMEOUT_S
    handshake_s: float = limits.HANDSHAKE_S  # of a sealed channel

    def scaled(self, factor: float) -> Timings:
        """All times multiplied by ``factor``."""
        return Timings(*(getattr(self, field.name) * factor for field in fields(self)))
