"""Devices, links and jobs for the planner's tests."""

from __future__ import annotations

from astra_mesh.families import read_spec
from astra_mesh.plan.cost import Candidate, Link
from astra_mesh.plan.planner import Job
from astra_mesh.wire.messages import CodebookId, Device, ModelId, PeerId, Timing, Use
from tests.unit.families.making import CONFIGS

LARGE = {"num_hidden_layers": 12, "n_layer": 12, "n_positions": 4096}
GPT = read_spec(CONFIGS["gpt2"] | LARGE)
BERT = read_spec(CONFIGS["bert"] | LARGE | {"max_position_embeddings": 4096})
FAST = Link(0.002, 1e9)


def device(
    name: str, token_s: float = 1e-4, host: str = "", cores: float = 4, host_cores: float = 4
) -> Candidate:
    """A device of its own unless ``host`` says otherwise; one block of one token in ``token_s``."""
    return Candidate(
        PeerId(name),
        name,
        Device(host=host or name, cores=cores, host_cores=host_cores, threads=int(cores)),
        Timing(
            fixed_s=2e-4,
            per_token_s=token_s,
            per_pair_s=token_s / 5000,
            encode_token_s=token_s / 50,
            decode_token_s=token_s / 100,
            head_s=1e-3,
        ),
    )


def job(
    tokens: int = 512,
    causal: bool = True,
    use: Use = Use.AUTO,
    max_peers: int = 0,
    token_bytes: float = 4.0,
) -> Job:
    """Two stages; ``token_bytes`` is what the first takes, both take twice as much."""
    return Job(
        spec=GPT if causal else BERT,
        model=ModelId("a" * 64),
        codebook=CodebookId("b" * 64),
        codec="vq",
        token_bytes={1: token_bytes, 2: 2 * token_bytes},
        stages=2,
        first_block=1,
        class_token="none" if causal else "single",
        pooling="last" if causal else "class",
        tokens=tokens,
        use=use,
        max_peers=max_peers,
    )


def links(peers: list[Candidate], link: Link = FAST) -> dict[tuple[PeerId, PeerId], Link]:
    return {(a.peer, b.peer): link for a in peers for b in peers if a is not b}
