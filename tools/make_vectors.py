"""Writes tests/vectors/protocol.json: example frames of every message type, with their meaning.

Run it after a change of the protocol (``python -m tools.make_vectors``), and read the difference: a
frame that changed is a new protocol version. docs/protocol.md shows some of the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import AnyMessage, encode

PATH = Path(__file__).parent.parent / "tests" / "vectors" / "protocol.json"

A, B = m.PeerId("a1" * 32), m.PeerId("b2" * 32)
MODEL, CODEBOOK = m.ModelId("0d" * 32), m.CodebookId("c0" * 32)
REQUEST = m.RequestId(0x1122334455667788)

TIMING = m.Timing(fixed_s=0.001, per_token_s=0.0002, per_pair_s=1e-8)
DEVICE = m.Device(host="h1", cores=2.0, host_cores=4.0, threads=2, system="Linux aarch64")
OFFER = m.ModelOffer(
    id=MODEL,
    name="tiny-gpt2",
    family="gpt2",
    tasks=[m.Task.GENERATE],
    codebooks=[m.CodebookOffer(id=CODEBOOK, codec="vq", rates=[64, 128], default_rate=128)],
    timing=TIMING,
    loaded=True,
)
PLAN = m.Plan(
    model=MODEL,
    codec="vq",
    codebook=CODEBOOK,
    shards=[m.Shard(peer=A, start=0, stop=3), m.Shard(peer=B, start=3, stop=5)],
    rates=[m.LinkRate(sender=A, receiver=B, stages=2)],
    answering=B,
    class_token="none",
    predicted_s=0.25,
)
SAMPLING = m.Sampling(max_new_tokens=8, seed=7)
PEER_REPORT = m.PeerReport(
    peer=A,
    tokens=3,
    compute_s=0.125,
    encode_s=0.0,
    decode_s=0.0,
    wait_s=0.5,
    finished_s=0.75,
    sent_bytes={B: 48},
    precision="int8",
)
REPORT = m.Report(
    plan=PLAN,
    predicted_s=0.25,
    actual_s=0.5,
    total_s=1.5,
    bits_per_token=128.0,
    peers=[PEER_REPORT],
    new_tokens=8,
    finish="length",
)

EXPECTED = m.ExpectedCost(
    measure="perplexity", loss=0.0078125, peers=4, data="valid.txt", sequences=193
)
BOOK = m.CodebookOffer(
    id=CODEBOOK,
    codec="vq",
    rates=[64, 128],
    default_rate=128,
    encode_token_s=[0.000030517578125, 0.00006103515625],
    decode_token_s=[0.0000152587890625, 0.000030517578125],
    project_token_s=[0.000030517578125, 0.000030517578125],
)

MESSAGES: dict[str, AnyMessage] = {
    "hello": m.Hello(
        magic=m.MAGIC,
        version=m.PROTOCOL_VERSION,
        peer=A,
        name="laptop",
        role=m.Role.PEER,
        window_bytes=16_777_216,
        device=DEVICE,
        models=[OFFER],
    ),
    "hello of a client": m.Hello(
        magic=m.MAGIC,
        version=m.PROTOCOL_VERSION,
        peer=B,
        name="cli",
        role=m.Role.CLIENT,
        window_bytes=1_048_576,
    ),
    "hello of a tab": m.Hello(
        magic=m.MAGIC,
        version=m.PROTOCOL_VERSION,
        peer=B,
        name="phone",
        role=m.Role.PEER,
        window_bytes=16_777_216,
        device=DEVICE,
        models=[OFFER],
        via=A,
    ),
    "link refused": m.LinkRefused(reason=m.Reason.DUPLICATE),
    "goodbye": m.Goodbye(text="bye"),
    "ping": m.Ping(1),
    "ping with padding": m.Ping(2, bytes(4)),
    "pong": m.Pong(1),
    "credit": m.Credit(8_388_608),
    "status": m.Status(models=[OFFER]),
    "status with links": m.Status(
        models=[],
        links=[
            m.LinkInfo(peer=B, round_trip_s=0.002, send_bps=9.4e7, host="192.0.2.7", port=7475),
            m.LinkInfo(peer=A),
        ],
    ),
    "status with copies": m.Status(
        models=[msgspec.structs.replace(OFFER, also=["words", "words-2"])]
    ),
    "status with a measured codebook": m.Status(
        models=[msgspec.structs.replace(OFFER, codebooks=[BOOK])]
    ),
    "throughput": m.Throughput(1e7),
    "roster": m.Roster(
        mesh=bytes(range(16)),
        entries=[
            m.RosterEntry(
                certificate=b"\x30\x00",
                name="kitchen",
                generation=2,
                member=True,
                until=0,
                by=m.DeviceId("d4" * 32),
                signature=b"\x30\x06",
            )
        ],
    ),
    "prepare": m.Prepare(request=REQUEST, model=MODEL),
    "propose": m.Propose(
        request=REQUEST,
        task=m.Task.GENERATE,
        plan=PLAN,
        inputs=m.Inputs(tokens=[1, 2, 3, 4, 50256]),
        sampling=SAMPLING,
    ),
    "propose with an image": m.Propose(
        request=REQUEST,
        task=m.Task.CLASSIFY,
        plan=PLAN,
        inputs=m.Inputs(image=b"\xff\xd8\xff"),
    ),
    "accept": m.Accept(request=REQUEST),
    "refuse": m.Refuse(request=REQUEST, reason=m.Reason.BUSY),
    "codes": m.Codes(REQUEST, 1, 0, 0, 2, bytes([0, 17, 255, 3])),
    "pooled": m.Pooled(REQUEST, 3.0, bytes.fromhex("0000803f00000040")),
    "token": m.Token(REQUEST, 0, 640, " time"),
    "progress": m.Progress(REQUEST, [1500, 0, 0, 0, 2300, 4, 1, 2]),
    "done": m.Done(request=REQUEST, report=PEER_REPORT),
    "cancel": m.Cancel(request=REQUEST, text="the client left"),
    "fail": m.Fail(request=REQUEST, code="peer-lost", text="lost board (b2b2b2b2)"),
    "ask for text": m.Ask(
        request=REQUEST,
        task=m.Task.GENERATE,
        model="tiny-gpt2",
        text="Once upon a",
        sampling=SAMPLING,
        options=m.Options(use=m.Use.ALL),
    ),
    "ask with a loss": m.Ask(
        request=REQUEST,
        task=m.Task.EMBED,
        model="tiny-bert",
        text="a sentence",
        options=m.Options(max_loss=0.0625),
    ),
    "ask with an image": m.Ask(
        request=REQUEST, task=m.Task.CLASSIFY, model="vit-tiny", image=b"\x89PNG"
    ),
    "planned": m.Planned(
        request=REQUEST,
        plan=PLAN,
        names={A: "laptop", B: "board"},
        bits_per_token=128.0,
        solo_s=0.5,
        reason="2 peers are twice as fast",
        prompt_tokens=5,
    ),
    "planned with an expected cost": m.Planned(
        request=REQUEST,
        plan=PLAN,
        names={A: "laptop"},
        bits_per_token=128.0,
        solo_s=0.5,
        reason="shortest predicted time",
        prompt_tokens=5,
        expected=EXPECTED,
    ),
    "refer": m.Refer(
        request=REQUEST,
        peer=B,
        name="laptop",
        address="192.0.2.7:7474",
        reason="laptop is predicted to answer in 1.5 s, board in 12.0 s",
    ),
    "result": m.Result(
        request=REQUEST, report=REPORT, labels=[m.Label(label="cat", probability=0.75)]
    ),
    "list peers": m.ListPeers(request=REQUEST),
    "peers": m.Peers(
        request=REQUEST,
        peers=[
            m.PeerInfo(
                peer=A,
                name="laptop",
                address="192.0.2.7:7100",
                self=True,
                device=DEVICE,
                models=[OFFER],
                round_trip_s=0.002,
            )
        ],
    ),
    "subscribe": m.Subscribe(request=REQUEST),
    "event": m.Event(request=REQUEST, kind="peer-joined", peer=B, name="board"),
    "event-of-a-request": m.Event(
        request=REQUEST,
        kind="request-ended",
        text="answered",
        about=m.RequestNews(
            key=7,
            task=m.Task.GENERATE,
            model="tiny-gpt2",
            took_s=0.5,
            new_tokens=12,
            peers=["laptop", "board"],
            sent_bytes=2048,
            notes=["2 of 6 parts came too late"],
            outcome="answered",
        ),
    ),
}


def to_json(value: Any) -> Any:
    """Plain JSON; bytes become ``{"hex": ...}``."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    return value


def from_json(value: Any) -> Any:
    """The inverse of :func:`to_json`."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value


def vectors() -> list[dict[str, Any]]:
    """All vectors, as they stand in the file."""
    return [
        {
            "name": name,
            "message": type(message).__name__,
            "body": to_json(msgspec.to_builtins(message, builtin_types=(bytes,))),
            "frame": encode(message).hex(),
        }
        for name, message in MESSAGES.items()
    ]


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
    print(f"{len(MESSAGES)} vectors written to {PATH.name}")
