"""Stand-ins for what a peer's rooms talk to: links without sockets, and small models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

from astra_mesh.errors import MeshError, PeerLostError
from astra_mesh.families import Model, build_model
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.probe import Backlog
from astra_mesh.peer.exchange import MeshExchange, partners
from astra_mesh.peer.models import AnyCodec
from astra_mesh.plan.layout import Layout, make_layout
from astra_mesh.quant.codecs import make_codec
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import (
    MAGIC,
    PROTOCOL_VERSION,
    Codes,
    Hello,
    PeerId,
    Pooled,
    Reason,
    RequestId,
    Role,
)
from tests.bundles import BERT, GPT2, VIT, bert_tensors, gpt2_tensors, vit_tensors

A, B, C, D = (PeerId(letter * 64) for letter in "abcd")
REQUEST = RequestId(7)


def hello_of(peer: PeerId) -> Hello:
    return Hello(
        magic=MAGIC,
        version=PROTOCOL_VERSION,
        peer=peer,
        name=f"peer {peer[0]}",
        role=Role.PEER,
        window_bytes=1 << 20,
    )


@dataclass(eq=False)
class FakeLink:
    """Takes down what is done to it."""

    peer: Hello
    address: str = "fake"
    is_open: bool = True
    error: MeshError | None = None  # of the next send
    sent: list[AnyMessage] = field(default_factory=list)
    consumed_messages: list[AnyMessage] = field(default_factory=list)
    ended: list[RequestId] = field(default_factory=list)
    refused: list[tuple[Reason, str]] = field(default_factory=list)
    queued_bytes: int = 0
    under_way: Backlog = field(default_factory=lambda: Backlog(0, math.inf, None))

    def backlog(self) -> Backlog:
        return self.under_way

    @property
    def session(self) -> FakeLink:
        return self

    def send(self, message: AnyMessage, frame: bytes | None = None) -> None:
        if self.error is not None:
            raise self.error
        if not self.is_open:
            raise PeerLostError("the link is not open")
        self.sent.append(message)
        if isinstance(message, Codes):
            self.queued_bytes += len(message.data)
        elif isinstance(message, Pooled):
            self.queued_bytes += len(message.vector)

    async def drain(self) -> None:
        if not self.is_open:
            raise PeerLostError("the link is closed")

    def consumed(self, message: AnyMessage) -> None:
        self.consumed_messages.append(message)

    def end(self, request: RequestId) -> None:
        self.ended.append(request)

    def refuse(self, reason: Reason, text: str = "") -> None:
        self.refused.append((reason, text))


def link_to(peer: PeerId) -> Any:
    """A fake where a :class:`Link` is wanted."""
    return FakeLink(hello_of(peer))


def real(link: FakeLink) -> Link:
    return cast(Link, link)


def small_model(kind: str = "gpt2") -> Model:
    config, tensors = {
        "gpt2": (GPT2, gpt2_tensors(GPT2)),
        "vit": (VIT, vit_tensors(VIT)),
        "bert": (BERT, bert_tensors(BERT)),
    }[kind]
    return build_model(config, tensors)


def layout_for(model: Model, bounds: list[tuple[int, int]], task: str, **more: Any) -> Layout:
    return make_layout(model.spec, bounds, pooling=model.spec.pooling(task), **more)


def exchange_of(
    model: Model,
    layout: Layout,
    shard: int,
    codec: str | AnyCodec = "fp32",
    request: RequestId = REQUEST,
) -> MeshExchange:
    """The exchange of one shard; shard i belongs to peer i of A, B, C, D."""
    peers = [A, B, C, D][: len(layout.bounds)]
    links = {peers[i]: link_to(peers[i]) for i in partners(layout, shard)}
    width = model.spec.hidden_size
    made = make_codec(codec, model) if isinstance(codec, str) else codec
    return MeshExchange(request, layout, peers, shard, made, width, links)
