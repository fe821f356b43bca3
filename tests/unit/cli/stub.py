"""A client without a mesh, for the commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from astra_mesh.client import Classification, Embedding, Token
from astra_mesh.errors import AstraMeshError
from astra_mesh.wire.messages import (
    Device,
    Event,
    Hello,
    Label,
    ModelId,
    ModelOffer,
    PeerId,
    PeerInfo,
    PeerReport,
    Plan,
    Planned,
    Report,
    RequestId,
    Role,
    Shard,
    Task,
)

ME, OTHER = PeerId("a" * 64), PeerId("b" * 64)
DEVICE = Device(host="h", cores=2.0, host_cores=2.0, threads=1, system="Linux test")


def plan(peers: Sequence[PeerId]) -> Plan:
    return Plan(
        model=ModelId("c" * 64),
        codec="vq",
        codebook="",  # type: ignore[arg-type]
        shards=[Shard(peer=peer, start=3 * i, stop=3 * i + 3) for i, peer in enumerate(peers)],
        rates=[],
        answering=peers[-1],
        class_token="none",
        predicted_s=0.010,
    )


def planned(peers: Sequence[PeerId], names: dict[str, str]) -> Planned:
    return Planned(
        request=RequestId(1),
        plan=plan(peers),
        names={peer: names[peer] for peer in peers},
        bits_per_token=32.0 if len(peers) > 1 else 0.0,
        solo_s=0.020,
        reason="shortest predicted time",
        prompt_tokens=3 * len(peers),
    )


def report(peers: Sequence[PeerId], new_tokens: int) -> Report:
    return Report(
        plan=plan(peers),
        predicted_s=0.010,
        actual_s=0.012,
        total_s=0.112,
        bits_per_token=32.0 if len(peers) > 1 else 0.0,
        peers=[
            PeerReport(
                peer=peer,
                tokens=3,
                compute_s=0.004,
                encode_s=0.001,
                decode_s=0.002,
                wait_s=0.003,
                finished_s=0.01,
                sent_bytes={ME: 2048} if peer == OTHER else {},
            )
            for peer in peers
        ],
        new_tokens=new_tokens,
        finish="length" if new_tokens else "",
        notes=["a note"],
    )


class StubGeneration:
    def __init__(self, mesh: StubMesh) -> None:
        self._mesh = mesh
        self.planned: Planned | None = None
        self.report: Report | None = None
        self.text = ""

    async def __aenter__(self) -> StubGeneration:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def __aiter__(self) -> Any:
        if self._mesh.error is not None:
            raise self._mesh.error
        self.planned = planned(self._mesh.plan_peers, self._mesh.names)
        for index, text in enumerate(self._mesh.texts):
            self.text += text
            yield Token(index + 7, text, index)
        self.report = report(self._mesh.plan_peers, len(self._mesh.texts))


class StubMesh:
    """What the commands call; ``asked`` holds the arguments of the last call."""

    def __init__(self) -> None:
        self.error: AstraMeshError | None = None
        self.texts = ["Once", " upon", " a\x1b[31m", " time"]
        self.plan_peers = [OTHER, ME]
        self.names: dict[str, str] = {ME: "here", OTHER: "there"}
        self.near: list[str] = []  # who is not paired
        self.count = 2
        self.asked: dict[str, Any] = {}
        self.closed = self.embedded = False
        self.peer = Hello(
            magic="astra-mesh", version=1, peer=ME, name="here", role=Role.PEER, window_bytes=1
        )

    def connect(self, address: str | None = None, *, peers: Sequence[str] = ()) -> Any:
        self.asked = {"address": address, "peers": list(peers)}

        async def open_it() -> StubMesh:
            if isinstance(self.error, AstraMeshError) and self.error.code == "no-peer":
                raise self.error
            return self

        return open_it()

    async def close(self) -> None:
        self.closed = True

    def alone(self) -> None:
        self.plan_peers, self.count = [ME], 1

    def generate(self, model: str, prompt: str, **options: Any) -> StubGeneration:
        self.asked.update(model=model, prompt=prompt, **options)
        return StubGeneration(self)

    async def classify(self, model: str, what: Any, **options: Any) -> Classification:
        self.asked.update(model=model, what=what, **options)
        if self.error is not None:
            raise self.error
        labels = [Label(label="[bold]cat[/bold]", probability=0.75)]
        return Classification(
            labels, planned(self.plan_peers, self.names), report(self.plan_peers, 0)
        )

    async def embed(self, model: str, text: str, **options: Any) -> Embedding:
        self.asked.update(model=model, text=text, **options)
        vector = np.arange(8, dtype=np.float32)
        return Embedding(vector, None, report(self.plan_peers, 0))

    async def events(self) -> AsyncIterator[Event]:
        yield Event(
            request=RequestId(1), kind="request-started", name="here", text="generate with toy"
        )
        await asyncio.Event().wait()

    async def strangers(self) -> list[str]:
        return self.near

    async def peers(self) -> list[PeerInfo]:
        offer = ModelOffer(
            id=ModelId("c" * 64), name="toy", family="gpt2", tasks=[Task.GENERATE, Task.EMBED]
        )
        return [
            PeerInfo(
                peer=peer,
                name=self.names[peer],
                address="10.0.0.7:7475",
                self=peer == ME,
                device=DEVICE,
                models=[offer],
                round_trip_s=None if peer == ME else 0.0021,
                send_bps=None if peer == ME else 94e6,
                receive_bps=None if peer == ME else 2.5e9,
            )
            for peer in (ME, OTHER)
        ][: self.count]
