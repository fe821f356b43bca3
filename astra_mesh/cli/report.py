"""What an answer cost, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from astra_mesh.cli.console import clean
from astra_mesh.cli.formats import Format, formats_line, offered
from astra_mesh.naming import Names, listed

if TYPE_CHECKING:
    from astra_mesh.wire.messages import ExpectedCost, PeerInfo, Planned, Report, RequestNews

_CARED_S: Final = 0.05  # that loading or lost peers took and a person may care for


def report_block(
    planned: Planned | None, report: Report, found: Sequence[PeerInfo] = ()
) -> RenderableType:
    """Who did what, what went over the links, and how long it took beside the prediction.

    Args:
        planned: The plan that it ran under, if it was told.
        report: What the answer cost.
        found: Peers, whose offers say what their number formats cost.
    """
    names = Names(planned.names if planned is not None else {})
    lines = [Text(line, style="dim") for line in report_lines(planned, report, names, found)]
    table = Padding(_table(report, names), (0, 0, 0, 2))
    return Group(Text(_headline(report, names), style="dim"), table, *lines)


def seconds(value: float) -> str:
    """A duration, as exact as a person cares."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms"


def amount(size: float) -> str:
    """A number of bytes."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def request_line(about: RequestNews, later_s: float = 0.0) -> str:
    """How a request stands, ``later_s`` after it was told: in one line but for the notes."""
    took = seconds(about.took_s + later_s)
    count = about.new_tokens
    about_it = [
        f"{about.outcome}, took {took}" if about.outcome else f"{took} so far",
        f"{count} new token{'s' if count > 1 else ''}" if count else "",
        f"{amount(about.sent_bytes)} sent" if about.sent_bytes else "",
        f"on {listed(about.peers, len(about.peers))}" if about.peers else "",
    ]
    return clean(f"{about.task.value} with {about.model}: {', '.join(filter(None, about_it))}")


def _headline(report: Report, names: Names) -> str:
    count = len(report.plan.shards)
    answering = names(report.plan.answering)
    if count == 1:
        return f"{answering} alone"
    return f"{count} peers, {answering} answered"


def _table(report: Report, names: Names) -> Table:
    table = Table(box=None, pad_edge=False, style="dim", header_style="dim bold")
    table.add_column("peer")
    for column in ("tokens", "compute", "encode", "decode", "wait"):
        table.add_column(column, justify="right")
    told = {one.peer: one for one in report.peers}
    for shard in report.plan.shards:
        name, tokens = Text(names(shard.peer)), str(shard.stop - shard.start)
        if (one := told.get(shard.peer)) is None:
            table.add_row(name, tokens, "no report")
            continue
        times = (one.compute_s, one.encode_s, one.decode_s, one.wait_s)
        table.add_row(name, tokens, *map(seconds, times))
    return table


def report_lines(
    planned: Planned | None, report: Report, names: Names, found: Sequence[PeerInfo] = ()
) -> Iterator[str]:
    """The lines under the table."""
    if report.bits_per_token:
        yield f"{report.bits_per_token:g} bits per token and block ({report.plan.codec})"
        yield f"sent: {links_line(report, names) or 'nothing'}"
        yield f"expected cost: {cost_line(report.expected)}"
    if line := precision_line(report, names, found):
        yield line
    times = f"predicted {seconds(report.predicted_s)}, took {seconds(report.actual_s)}"
    if report.lost_s >= _CARED_S:
        times += f" after {seconds(report.lost_s)} with peers that were lost"
    if planned is not None and len(report.plan.shards) > 1:
        times += f"; one device predicted {seconds(planned.solo_s)}"
    yield times
    if report.loading_s >= _CARED_S:
        yield f"before that {seconds(report.loading_s)} until the model was loaded"
    if report.new_tokens:
        yield f"{tokens_line(report)}, ended by {report.finish or 'the caller'}"
    if report.lost_s >= _CARED_S and report.took_s:
        yield f"{seconds(report.took_s)} in all"
    if planned is not None and planned.reason:
        yield f"plan: {planned.reason}"
    for note in report.notes:
        yield f"note: {note}"


def tokens_line(report: Report) -> str:
    """How many new tokens came in what time; one token has no rate."""
    count = report.new_tokens
    if count == 1:
        return "1 new token"
    after = max(report.tokens_s or report.total_s - report.actual_s, 1e-9)
    return f"{count} new tokens in {seconds(after)} ({count / after:.0f} a second)"


def precision_line(report: Report, names: Names, found: Sequence[PeerInfo] = ()) -> str:
    """In which number formats the peers computed, and what that costs; "" where it was fp32 on all.

    An offer in another format than that of the answer says nothing of it.
    """
    offers = offered(found, report.plan.model)
    used = []
    for one in report.peers:
        offer = offers.get(one.peer)
        if offer is not None and offer.precision == one.precision:
            used.append(offer._replace(name=names(one.peer)))
        elif one.precision:
            used.append(Format(names(one.peer), one.precision))
    line = formats_line(used)
    return line and f"computed in {line}"


def cost_line(expected: ExpectedCost | None) -> str:
    """What the codes cost in quality, as it was measured."""
    from astra_mesh.bundle.quality import loss_in_words

    if expected is None:
        return "not measured: run astra-mesh eval MODEL --data ... --save"
    loss = loss_in_words(expected.measure, expected.loss)
    where = f"{expected.peers} peers, {expected.sequences} inputs of {clean(expected.data)}"
    return f"{loss} (measured on {where})"


def links_line(report: Report, names: Names) -> str:
    """Bytes of codes by directed link."""
    order = [str(shard.peer) for shard in report.plan.shards]
    sent: dict[tuple[str, str], int] = {}
    for one in report.peers:
        for receiver, size in one.sent_bytes.items():
            sent[one.peer, receiver] = size

    def place(link: tuple[str, str]) -> tuple[int, ...]:
        return tuple(order.index(p) if p in order else len(order) for p in link)

    return ", ".join(
        f"{names(link[0])} → {names(link[1])} {amount(sent[link])}"
        for link in sorted(sent, key=place)
    )
