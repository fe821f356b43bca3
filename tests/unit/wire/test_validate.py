"""Sanitising text, and the table of ranges."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_mesh.wire import messages as m
from astra_mesh.wire import validate
from astra_mesh.wire.validate import sanitise


@pytest.mark.parametrize(
    ("text", "limit", "clean"),
    [
        ("plain", 10, "plain"),
        ("two\nlines\tand a tab", 50, "two lines and a tab"),
        ("\x1b[31mred\x1b[0m", 50, "[31mred [0m"),
        ("\u202eright to left", 50, "right to left"),
        ("zero\u200bwidth", 50, "zero width"),
        ("é ü 猫 🐈", 50, "é ü 猫 🐈"),
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghijk", 10, "abcdefg..."),
        ("abc", 2, ".."),
        ("\ud800", 5, ""),
        ("", 5, ""),
    ],
)
def test_sanitise(text: str, limit: int, clean: str) -> None:
    assert sanitise(text, limit) == clean


@given(st.text(), st.integers(0, 50))
def test_sanitised_text_is_printable_and_short(text: str, limit: int) -> None:
    clean = sanitise(text, limit)
    assert clean.isprintable()
    assert len(clean) <= limit
    assert sanitise(clean, limit) == clean


def test_the_table_names_existing_fields() -> None:
    for kind, rules in validate._RULES.items():
        assert set(rules) <= set(kind.__struct_fields__), kind


def test_every_text_and_bytes_field_has_a_rule() -> None:
    structs = [kind for kind in vars(m).values() if isinstance(kind, type)]
    for kind in structs:
        if not issubclass(kind, msgspec.Struct):
            continue
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            kinds = getattr(field.type, "types", (field.type,))
            if any(
                isinstance(k, msgspec.inspect.StrType | msgspec.inspect.BytesType) for k in kinds
            ):
                assert field.name in validate._RULES[kind], f"{kind.__name__}.{field.name}"
