"""What the fields of each message may hold, beyond their types: one table, and the walk over it.

Numbers need no entry to be finite, not negative and below 2**63: the codec checks that for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from astra_mesh import limits
from astra_mesh.wire import messages as m

Check = Callable[[Any], bool]

_HEX_ID: Final = re.compile(r"[0-9a-f]{64}")
_TOKEN_LIMIT: Final = 2**31
_RATE_BITS: Final = 2**31  # per token and block
_HOUR_US: Final = 3_600_000_000
_MARKS: Final = 6  # kinds of marks, as in astra_mesh.engine.timeline


def sanitise(text: str, limit: int = limits.REASON_CHARS) -> str:
    """Text of a peer made safe for logs, terminals and pages: one printable line, not too long.

    Control characters (also those that change the direction of text) become spaces; a cut is shown
    by "...".
    """
    head = text[: limit + 1]
    clean = head if head.isprintable() else "".join(c if c.isprintable() else " " for c in head)
    clean = clean.strip()
    if len(text) > limit:
        clean = clean[: max(0, limit - 3)] + "..."
    return clean[:limit]


def validate(message: msgspec.Struct) -> None:
    """Check every field of a message and of the structs in it against the table.

    Raises:
        ValueError: A field is out of range; the text names it, not its value.
    """
    kind = type(message)
    for field, check in _RULES.get(kind, {}).items():
        value = getattr(message, field)
        if value is not None and not check(value):
            raise ValueError(f"{kind.__name__}.{field} is out of range")
    for field in _NESTED[kind]:
        _validate_inside(getattr(message, field))
    whole = _WHOLE.get(kind)
    if whole is not None and not whole(message):
        raise ValueError(f"the fields of {kind.__name__} do not fit together")


def _validate_inside(value: object) -> None:
    if isinstance(value, msgspec.Struct):
        validate(value)
    elif isinstance(value, list):
        for item in value:
            _validate_inside(item)


# --- checks ---------------------------------------------------------------------------------------


def _is_id(value: str) -> bool:
    return _HEX_ID.fullmatch(value) is not None


def _is_id_or_empty(value: str) -> bool:
    return value == "" or _is_id(value)


def _line(limit: int, empty: bool = False) -> Check:
    """One line of printable text."""
    return lambda value: (empty or value != "") and len(value) <= limit and value.isprintable()


def _text(limit: int) -> Check:
    return lambda value: len(value) <= limit


def _prompt(value: str) -> bool:
    return len(value) <= limits.TEXT_BYTES and len(value.encode()) <= limits.TEXT_BYTES


def _size(limit: int) -> Check:
    """At most so many items or bytes."""
    return lambda value: len(value) <= limit


def _between(low: float, high: float) -> Check:
    return lambda value: bool(low <= value <= high)


def _below(limit: int) -> Check:
    return _between(0, limit - 1)


def _tokens(value: Collection[int]) -> bool:
    return len(value) <= limits.PROMPT_TOKENS and max(value, default=0) < _TOKEN_LIMIT


def _texts(limit: int, chars: int) -> Check:
    return lambda value: len(value) <= limit and all(len(text) <= chars for text in value)


def _by_peer(value: Collection[str]) -> bool:
    return len(value) <= limits.PEERS_PER_PLAN and all(map(_is_id, value))


def _rate_changes(value: dict[str, list[int]]) -> bool:
    """Pairs by peer: block, bits per token."""
    most = 2 * (limits.RATE_CHANGES + limits.STAGES)
    return _by_peer(value) and all(
        len(one) % 2 == 0
        and len(one) <= most
        and all(0 <= block < limits.BLOCKS for block in one[::2])
        and all(0 < bits <= _RATE_BITS for bits in one[1::2])
        for one in value.values()
    )


def _marks(value: list[int]) -> bool:
    """Groups of four: microseconds, mark, block, part."""
    if len(value) % 4 or len(value) > 4 * limits.PROGRESS_MARKS:
        return False
    highest = (_HOUR_US, _MARKS - 1, limits.BLOCKS - 1, limits.PEERS_PER_PLAN)
    return all(max(value[i::4], default=0) <= most for i, most in enumerate(highest))


def _positive(value: float) -> bool:
    return value > 0


# --- the table ------------------------------------------------------------------------------------

_name = _line(limits.NAME_CHARS)
_word = _line(32)
_word_or_empty = _line(32, empty=True)
_sentence = _text(limits.REASON_CHARS)
_models = _size(limits.MODELS_PER_PEER)
_links = _size(limits.LINKS_TOLD)
_port = _below(65_536)
_tasks = _size(len(m.Task))
_rates = _size(limits.STAGES)
_stages = _between(0, limits.STAGES)
_position = _between(0, limits.PROMPT_TOKENS)

_RULES: Final[dict[type[msgspec.Struct], dict[str, Check]]] = {
    m.CodebookOffer: {
        "id": _is_id,
        "codec": _word,
        "rates": _rates,
        "encode_token_s": _rates,
        "decode_token_s": _rates,
        "project_token_s": _rates,
    },
    m.ModelOffer: {
        "id": _is_id,
        "name": _name,
        "family": _word,
        "precision": _word,
        "tasks": _tasks,
        "codebooks": _size(limits.CODEBOOKS_PER_MODEL),
        "also": lambda value: len(value) <= limits.NAMES_PER_MODEL and all(map(_name, value)),
    },
    m.Device: {
        "host": _line(128, empty=True),
        "system": _line(128, empty=True),
        "software": _line(128, empty=True),
    },
    m.Hello: {
        "magic": lambda value: value == m.MAGIC,
        "peer": _is_id,
        "name": _name,
        "window_bytes": _between(limits.WINDOW_MIN_BYTES, limits.WINDOW_MAX_BYTES),
        "models": _models,
        "port": _port,
        "via": _is_id_or_empty,
    },
    m.LinkInfo: {"peer": _is_id, "host": _line(limits.HOST_CHARS, empty=True), "port": _port},
    m.Status: {"models": _models, "links": _links},
    m.LinkRefused: {"text": _sentence},
    m.Goodbye: {"text": _sentence},
    m.Ping: {"padding": _size(limits.PING_PADDING_BYTES)},
    m.Credit: {"size": _between(1, limits.WINDOW_MAX_BYTES)},
    m.Throughput: {"bps": _positive},
    m.RosterEntry: {
        "certificate": lambda value: 0 < len(value) <= limits.CERTIFICATE_BYTES,
        "name": _name,
        "generation": _between(1, limits.ROSTER_GENERATIONS),
        "by": _is_id,
        "signature": _size(limits.SIGNATURE_BYTES),
    },
    m.Roster: {
        "mesh": lambda value: len(value) == limits.MESH_ID_BYTES,
        "entries": _size(limits.ROSTER_ENTRIES),
    },
    m.Shard: {"peer": _is_id, "start": _position, "stop": _position},
    m.LinkRate: {"sender": _is_id, "receiver": _is_id, "stages": _stages},
    m.Plan: {
        "model": _is_id,
        "codec": _word,
        "codebook": _is_id_or_empty,
        "shards": lambda value: 1 <= len(value) <= limits.PEERS_PER_PLAN,
        "rates": _size(limits.PEERS_PER_PLAN * (limits.PEERS_PER_PLAN - 1)),
        "answering": _is_id,
        "class_token": _word_or_empty,
    },
    m.Sampling: {"max_new_tokens": _between(0, limits.NEW_TOKENS), "top_k": _below(_TOKEN_LIMIT)},
    m.Inputs: {"tokens": _tokens, "token_types": _tokens, "image": _size(limits.IMAGE_BYTES)},
    m.Prepare: {"model": _is_id},
    m.Refuse: {"text": _sentence},
    m.Codes: {
        "block": _below(limits.BLOCKS),
        "stage": _below(limits.STAGES),
        "first": _position,
        "count": _between(1, limits.PROMPT_TOKENS),
        "data": _size(limits.CODES_DATA_BYTES),
    },
    m.Pooled: {"vector": lambda value: len(value) <= limits.VECTOR_BYTES and len(value) % 4 == 0},
    m.Progress: {"marks": _marks},
    m.PeerReport: {
        "peer": _is_id,
        "tokens": _position,
        "sent_bytes": _by_peer,
        "decode_steps": _between(0, limits.NEW_TOKENS),
        "late_parts": _between(0, limits.BLOCKS * limits.PEERS_PER_PLAN),
        "rates": _rate_changes,
        "precision": _word_or_empty,
    },
    m.Cancel: {"text": _sentence},
    m.Fail: {"code": _word, "text": _sentence},
    m.Token: {
        "index": _below(limits.NEW_TOKENS),
        "token": _below(_TOKEN_LIMIT),
        "text": _text(limits.TOKEN_TEXT_CHARS),
    },
    m.Options: {
        "max_peers": _between(0, limits.PEERS_PER_PLAN),
        "codec": _word_or_empty,
        "class_token": _word_or_empty,
        "max_loss": _between(0.0, 1.0),
    },
    m.Ask: {
        "model": _name,
        "text": _prompt,
        "tokens": _tokens,
        "image": _size(limits.IMAGE_BYTES),
        "answered": _tokens,
    },
    m.ExpectedCost: {
        "measure": _word,
        "peers": _between(1, limits.PEERS_PER_PLAN),
        "data": _name,
    },
    m.Planned: {
        "names": lambda value: _by_peer(value) and all(map(_name, value.values())),
        "reason": _sentence,
        "prompt_tokens": _position,
        "elsewhere": _texts(limits.CLIENT_PLACES, 128),
    },
    m.Refer: {"peer": _is_id, "name": _name, "address": _line(128), "reason": _sentence},
    m.Label: {"label": _sentence, "probability": _between(0.0, 1.0 + 1e-3)},
    m.Report: {
        "peers": _size(limits.PEERS_PER_PLAN),
        "new_tokens": _between(0, limits.NEW_TOKENS),
        "finish": _word_or_empty,
        "notes": _texts(limits.NOTES, limits.REASON_CHARS),
    },
    m.Result: {
        "labels": _size(limits.LABELS),
        "vector": lambda value: len(value) <= limits.VECTOR_BYTES and len(value) % 4 == 0,
    },
    m.PeerInfo: {
        "peer": _is_id,
        "name": _name,
        "address": _text(128),
        "models": _models,
        "port": _port,
        "via": _is_id_or_empty,
        "links": _links,
    },
    m.Peers: {"peers": _size(limits.LINKS)},
    m.RequestNews: {
        "model": _name,
        "new_tokens": _between(0, limits.NEW_TOKENS),
        "peers": _texts(limits.PEERS_PER_PLAN, limits.REASON_CHARS),
        "notes": _texts(limits.NOTES, limits.REASON_CHARS),
        "outcome": _text(limits.REASON_CHARS),
    },
    m.Event: {
        "kind": _word,
        "peer": _is_id_or_empty,
        "name": _line(limits.NAME_CHARS, empty=True),
        "text": _sentence,
    },
}


def _ask_fits(ask: m.Ask) -> bool:
    return sum(given is not None for given in (ask.text, ask.tokens, ask.image)) == 1


def _book_fits(book: m.CodebookOffer) -> bool:
    counts = {len(book.encode_token_s), len(book.decode_token_s)}
    measured = len(book.encode_token_s)
    return counts in ({0}, {len(book.rates)}) and len(book.project_token_s) in {0, measured}


def _shard_fits(shard: m.Shard) -> bool:
    return shard.start <= shard.stop


def _codes_fit(codes: m.Codes) -> bool:
    return codes.first + codes.count <= limits.PROMPT_TOKENS


_WHOLE: Final[dict[type[msgspec.Struct], Callable[[Any], bool]]] = {
    m.Ask: _ask_fits,
    m.CodebookOffer: _book_fits,
    m.Shard: _shard_fits,
    m.Codes: _codes_fit,
}


def _holds_struct(kind: msgspec.inspect.Type) -> bool:
    """Whether a field of this type can hold a struct."""
    if isinstance(kind, msgspec.inspect.StructType):
        return True
    if isinstance(kind, msgspec.inspect.ListType):
        return _holds_struct(kind.item_type)
    return isinstance(kind, msgspec.inspect.UnionType) and any(map(_holds_struct, kind.types))


def _nested_fields() -> dict[object, tuple[str, ...]]:
    """Of each struct, the fields that the walk goes into."""
    found: dict[object, tuple[str, ...]] = {}
    for kind in (*m.TYPES.values(), *_RULES, m.Timing):
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        found[kind] = tuple(field.name for field in info.fields if _holds_struct(field.type))
    return found


_NESTED: Final = _nested_fields()
