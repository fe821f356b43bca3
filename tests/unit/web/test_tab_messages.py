from __future__ import annotations

import json

import pytest

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.web.tab_messages import (
    Close,
    Join,
    Open,
    framed,
    read,
    read_key,
    text_of,
    unframed,
)


def test_what_a_tab_says() -> None:
    assert read('{"type":"join","key":"AA==","name":"phone"}') == Join("AA==", "phone")
    assert read('{"type":"open","channel":1,"to":"ab"}') == Open(1, "ab")  # type: ignore[arg-type]
    assert read('{"type":"close","channel":4294967295}') == Close(2**32 - 1)


BAD = {
    "no JSON": "{",
    "no object": "[]",
    "no type": "{}",
    "another type": '{"type":"welcome"}',
    "a field is missing": '{"type":"open","channel":1}',
    "a field of another type": '{"type":"open","channel":"1","to":"ab"}',
    "zero": '{"type":"close","channel":0}',
    "negative": '{"type":"close","channel":-1}',
    "too large": '{"type":"close","channel":4294967296}',
    "deep": "[" * 2000,
    "a lone surrogate": '{"type":"join","key":"\ud800"}',
    "too long": json.dumps({"type": "join", "key": "A" * limits.TAB_CONTROL_BYTES}),
}


def test_length_is_counted_in_bytes() -> None:
    def said(name: str) -> str:
        return f'{{"type":"join","key":"","name":"{name}"}}'

    room = limits.TAB_CONTROL_BYTES - len(said(""))
    assert read(said("a" * room)) == Join("", "a" * room)
    for name in ("a" * (room + 1), "\u00e9" * (room // 2 + 1)):
        with pytest.raises(ProtocolError, match="too long"):
            read(said(name))


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_message(kind: str) -> None:
    with pytest.raises(ProtocolError):
        read(BAD[kind])


def test_keys() -> None:
    assert read_key("BAEC") == b"\4\1\2"
    for text in ("!", "BAE", "é", "BA EC"):
        with pytest.raises(ProtocolError, match="base64"):
            read_key(text)


def test_what_a_tab_is_told() -> None:
    assert json.loads(text_of("closed", channel=2, why="gone")) == {
        "type": "closed",
        "channel": 2,
        "why": "gone",
    }


def test_payloads_carry_their_channel() -> None:
    assert framed(0x01020304, b"abc") == b"\1\2\3\4abc"
    assert unframed(b"\1\2\3\4abc") == (0x01020304, b"abc")
    assert unframed(bytes(4)) == (0, b"")
    with pytest.raises(ProtocolError):
        unframed(b"\1\2\3")
