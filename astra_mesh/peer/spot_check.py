"""Now and then, a participant's codes are computed once more by the peer that planned the request.

Off unless a person asks for it (:attr:`PeerConfig.spot_check`): each check costs the share of the
request that the participant computed. Who sent false codes is left out of plans for a while.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from astra_mesh import limits
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.recheck import Deviation, Recheck
from astra_mesh.families import ModelInput
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.kept import Kept
from astra_mesh.peer.loaded import AnyCodec, Loaded
from astra_mesh.plan.layout import Layout
from astra_mesh.wire.messages import Late, PeerId, Plan

log = logging.getLogger(__name__)

# Measured (docs/security.md): honest peers stay below 0.02 over the tokens of a block and 0.3 for
# one token, whatever formats the two ends compute in; codes of anything else are above 0.5.
MOST_MEAN: Final = 0.25
MOST_TOKEN: Final = 0.75


class SpotChecks:
    """The checks of one peer; one at a time, so that little is kept.

    Args:
        share: Of requests that are checked, 0 to 1.
        chance: Whom and when (replaced in tests); nobody must be able to tell beforehand.
        clock: Seconds, steady.
    """

    def __init__(
        self,
        share: float,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share, self._chance = share, chance or random.SystemRandom()
        self._clock = clock
        self._kept: Kept | None = None  # of the one that is under way
        self._shunned: dict[PeerId, float] = {}  # until when

    def begin(self, exchange: MeshExchange, plan: Plan) -> None:
        """Before codes come: whether this request is checked, and whose shard of it."""
        if self._kept is not None or plan.late is not Late.WAIT or not self._share:
            return
        able = checkable(exchange.layout, exchange.shard)
        if able and self._chance.random() < self._share:
            exchange.kept = self._kept = Kept(self._chance.choice(able))

    def end(self, exchange: MeshExchange) -> None:
        """The request is over, in whatever way."""
        if exchange.kept is not None and exchange.kept is self._kept:
            self._kept = None

    def shuns(self, peer: PeerId) -> bool:
        """Whether a peer sent false codes not long ago."""
        until = self._shunned.get(peer, 0.0)
        if until and until <= self._clock():
            del self._shunned[peer]
            return False
        return until > 0

    async def check(
        self,
        exchange: MeshExchange,
        loaded: Loaded,
        codec: AnyCodec,
        given: ModelInput,
        compute: ComputeThread,
    ) -> list[Deviation] | None:
        """Recompute the chosen shard, in steps between which other requests get their turns.

        Returns:
            What was compared; None: this request is not checked.
        """
        kept = exchange.kept
        if kept is None or kept.is_full:
            return None
        pooled = exchange.pooled_of(kept.shard)
        arguments = (loaded.model, exchange.layout, codec, given, kept.shard, kept.codes, pooled)
        steps = (await compute(Recheck, *arguments)).blocks()
        found = []
        while (step := await compute(next, steps, _END)) is not _END:
            if isinstance(step, Deviation):
                found.append(step)
        return found

    def judge(self, peer: PeerId, name: str, found: Sequence[Deviation]) -> str | None:
        """What a check says against a peer, which then is left out for a while; None: nothing."""
        wrong = next((one for one in found if is_false(one)), None)
        if wrong is None:
            return None
        while len(self._shunned) >= limits.CANDIDATES:
            del self._shunned[next(iter(self._shunned))]
        self._shunned[peer] = self._clock() + limits.SHUN_S
        what = "the result" if wrong.pooled else f"the codes of block {wrong.block}"
        text = (
            f"{what} that {name} ({peer[:8]}) sent: not what its share of the request gives "
            f"(off by {wrong.mean:.2g}, by up to {wrong.worst:.2g} for one token); it is left out "
            f"for {limits.SHUN_S / 60:.0f} minutes"
        )
        log.warning("%s", text)
        return text


_END: Final = object()


def checkable(layout: Layout, me: int) -> list[int]:
    """The shards whose work can be computed once more from what comes to shard ``me``."""
    blocks = range(layout.first_block, layout.blocks)

    def alike(shard: int) -> bool:
        """Others send it what they send here."""
        sources = {source for block in blocks for source in layout.sources(shard, block)} - {me}
        return all(layout.stages[one, shard] == layout.stages[one, me] for one in sources)

    senders = {source for block in blocks for source in layout.sources(me, block)}
    if me == layout.answering():
        senders |= {shard for shard in range(len(layout.bounds)) if layout.wanted(shard)} - {me}
    return sorted(shard for shard in senders if alike(shard))


def is_false(one: Deviation) -> bool:
    """Whether no honest peer is so far off."""
    return not (one.mean <= MOST_MEAN and one.worst <= MOST_TOKEN)
