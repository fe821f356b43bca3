"""Rates and losses on one end of a cable, in the kernel, by `tc` alone.

A rate is a token bucket (tbf) at an interface's exit. A loss is a filter of four instructions of
classic BPF that draws a random number for each frame; it needs no iptables. The shared medium is
one token bucket on an intermediate functional block (ifb) that all ports' frames pass.
"""

from __future__ import annotations

from tools.lab.system import command

# Token bucket: holds this much time's worth of bytes, and at least a few full frames.
BURST_S = 0.004  # a 250 Hz kernel's tick, though the bucket is refilled by a finer clock
BURST_MIN_BYTES = 5 * 1514

_LOSS_PREF, _MEDIUM_PREF = "1", "2"  # frames are lost before they take the medium's time
_LOAD_RANDOM = 0xFFFFF038  # SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h
_DROP, _GO_ON = 2, 0xFFFFFFFF  # TC_ACT_SHOT, TC_ACT_UNSPEC


def set_rate(namespace: str, interface: str, mbps: float | None, queue_ms: float) -> None:
    """Limit what leaves an interface; None lifts it.

    Args:
        namespace: where the interface is.
        interface: its name.
        mbps: megabits per second, counted with Ethernet headers.
        queue_ms: how long a packet may wait for its turn; past it packets are dropped.
    """
    base = ["tc", "-n", namespace, "qdisc"]
    if mbps is None:
        command([*base, "del", "dev", interface, "root"], check=False)
        return
    burst = max(BURST_MIN_BYTES, int(mbps * 1e6 / 8 * BURST_S))
    shape = ["tbf", "rate", f"{round(mbps * 1e6)}bit", "burst", f"{burst}b"]
    command([*base, "replace", "dev", interface, "root", *shape, "latency", f"{queue_ms}ms"])


def set_loss(namespace: str, interface: str, percent: float) -> None:
    """Lose this share of the frames that come in at an interface, and of those that go out.

    The kernel's own random numbers: runs differ, whatever the seed.
    """
    _add_hooks(namespace, interface)
    for direction in ("ingress", "egress"):
        base = ["tc", "-n", namespace, "filter"]
        place = ["dev", interface, direction]
        command([*base, "del", *place, "pref", _LOSS_PREF], check=False)
        if percent > 0:
            filtered = ["bpf", "direct-action", "bytecode", loss_program(percent)]
            command([*base, "add", *place, "pref", _LOSS_PREF, "protocol", "all", *filtered])


def loss_program(percent: float) -> str:
    """Classic BPF in `tc`'s form: drop a frame with this probability, else go on."""
    threshold = min(0xFFFFFFFF, round(percent / 100 * 2**32))
    lines = [
        (0x20, 0, 0, _LOAD_RANDOM),  # A = 32 random bits
        (0x35, 1, 0, threshold),  # if A >= threshold skip the next one
        (0x06, 0, 0, _DROP),
        (0x06, 0, 0, _GO_ON),
    ]
    return f"{len(lines)}," + ",".join(" ".join(map(str, line)) for line in lines)


def _add_hooks(namespace: str, interface: str) -> None:
    """Where filters hang."""
    command(["tc", "-n", namespace, "qdisc", "replace", "dev", interface, "clsact"])


def add_medium(namespace: str, name: str) -> None:
    """The block that all frames will pass."""
    command(["ip", "-n", namespace, "link", "add", name, "type", "ifb"])
    command(["ip", "-n", namespace, "link", "set", name, "up"])


def join_medium(namespace: str, interface: str, medium: str) -> None:
    """Let what comes in at an interface pass the medium first; afterwards it goes on as before."""
    _add_hooks(namespace, interface)
    place = ["dev", interface, "ingress", "pref", _MEDIUM_PREF, "protocol", "all"]
    every = ["u32", "match", "u32", "0", "0"]
    action = ["action", "mirred", "egress", "redirect", "dev", medium]
    command(["tc", "-n", namespace, "filter", "add", *place, *every, *action])
