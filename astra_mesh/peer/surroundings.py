"""What answering a request needs of the peer around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from astra_mesh.mesh.link import Link
from astra_mesh.peer.lessons import Lessons
from astra_mesh.peer.likelihoods import Noted
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.participants import Participants
from astra_mesh.peer.spot_check import SpotChecks
from astra_mesh.plan.cost import Candidate
from astra_mesh.plan.cost import Link as LinkProfile
from astra_mesh.wire.messages import ModelId, PeerId, Plan, RequestId

# Of (loaded, *codebooks): peers with the model and one of the codebooks, loaded and measured there.
FindCandidates = Callable[..., Awaitable[list[Candidate]]]


@dataclass(frozen=True)
class Surroundings:
    """What an answer needs of the peer around it."""

    me: Callable[[Loaded], Candidate]
    candidates: FindCandidates
    wake: Callable[[ModelId], None]  # lets others load a model
    left_out: Callable[..., list[str]]  # notes on who has the model and is no candidate
    loading: Callable[..., list[str]]  # notes on who only still loads it
    strangers: Callable[[ModelId], list[str]]  # names of peers that do not have a model
    links: Callable[[], Mapping[tuple[PeerId, PeerId], LinkProfile]]
    find_link: Callable[[PeerId], Link | None]
    address: Callable[[PeerId], str]  # where a client can ask another peer; "": nowhere
    elsewhere: Callable[[ModelId], list[str]]  # addresses of other peers that hold a model
    open: Callable[[Participants], None]  # codes and messages for them are delivered from now on
    close: Callable[[RequestId], None]
    lessons: Lessons
    busy: Callable[[], bool]  # with other requests
    watched: Callable[[], bool]  # somebody looks on: participants are to tell their progress
    checks: SpotChecks
    noted: Callable[[RequestId], Noted | None]  # where log-probabilities are wanted
    # Who has no shard of a plan may be told why, but for those that it was planned again without.
    passed_over: Callable[[Plan, str, Collection[PeerId]], None]
