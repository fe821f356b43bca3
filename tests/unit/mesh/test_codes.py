"""Codes that people type, and join keys."""

from contextlib import suppress

import pytest

from astra_mesh.errors import InputError
from astra_mesh.mesh.codes import (
    ALPHABET,
    CODE_CHARS,
    _check_digit,
    _is_trivial,
    as_uri,
    new_code,
    new_key,
    read_key,
    read_secret,
)


def test_codes_are_typed_in_many_ways() -> None:
    code = new_code()
    for text in (code, code.lower(), f" {code} ", code.replace("-", ""), code.replace("-", " ")):
        secret = read_secret(text)
        assert (secret.text, secret.id) == (code, b"")
        assert secret.password == code.replace("-", "").encode()
    assert len({new_code() for _ in range(100)}) == 100


def test_the_check_digit_finds_every_wrong_character_and_every_swap() -> None:
    for _ in range(20):
        code = new_code().replace("-", "")
        for place in range(CODE_CHARS):
            for char in set(ALPHABET) - {code[place]}:
                with pytest.raises(InputError, match="mistyped"):
                    read_secret(code[:place] + char + code[place + 1 :])
        for place in range(CODE_CHARS - 1):
            swapped = code[:place] + code[place + 1] + code[place] + code[place + 2 :]
            if swapped != code:
                with pytest.raises(InputError, match="mistyped"):
                    read_secret(swapped)


@pytest.mark.parametrize("text", ["", "K7QM", "K7QM-2XR0", "K7QM-2XR8T", "K" * 5000, "ÄÖÜß-ÄÖÜß"])
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(InputError, match="no pairing code"):
        read_secret(text)


@pytest.mark.parametrize("body", ["2222222", "2323232", "2345678", "ZYXWVUT", "2468ACE", "AABBCCA"])
def test_trivial_codes_are_not_made_and_not_tried(body: str) -> None:
    """No device shows one, and it would use up one of three tries there."""
    assert _is_trivial(body)
    with pytest.raises(InputError, match="was mistyped: no device shows such a simple one"):
        read_secret(body + _check_digit(body))


@pytest.mark.parametrize("text", ["abc", "", "mk-aaaaaaaa"])
def test_a_peer_is_told_of_join_keys_not_of_codes(text: str) -> None:
    with pytest.raises(InputError, match="no join key: one begins with amk-") as error:
        read_key(text)
    assert not text or text not in error.value.message.replace("amk-", "")
    with pytest.raises(InputError, match="a part of it is missing"):
        read_key(new_key()[:-3])
    key = new_key()
    assert read_key(key) == read_secret(key)


def test_join_keys() -> None:
    key = new_key()
    secret = read_secret(key)
    assert secret == read_secret(f" {key.upper()} ")
    assert len(secret.password) == 16
    assert len(secret.id) == 8
    assert secret.id not in secret.password
    for size in range(4, len(key)):
        with pytest.raises(InputError, match="join key"):
            read_secret(key[:size])
    for place in range(4, len(key)):
        changed = key[:place] + ("a" if key[place] != "a" else "b") + key[place + 1 :]
        with suppress(InputError):  # some bits of the last character mean nothing
            assert read_secret(changed).password == secret.password


def test_the_text_of_a_qr() -> None:
    code = new_code()
    secret = read_secret(as_uri(code, ["192.168.1.5:7475", "[fd00::1]:7475"]))
    assert secret.text == code
    assert secret.addresses == ("192.168.1.5:7475", "[fd00::1]:7475")
    assert read_secret(as_uri(new_key(), [])).id
    shouted = read_secret(as_uri(code, ["192.168.1.5:7475"]).upper())
    assert (shouted.text, shouted.addresses) == (code, ("192.168.1.5:7475",))
    assert read_secret(as_uri(new_key(), []).upper()).id
    for text in ("astra-mesh://pair?at=10.0.0.7:7475", "astra-mesh://pair?code=", "astra-mesh:"):
        with pytest.raises(InputError, match=r"that was scanned or copied .* holds no code"):
            read_secret(text)
    for text in (
        "astra-mesh:",
        "astra-mesh://pair?code=x",
        "astra-mesh://[",
        "astra-mesh:?" + "&" * 99,
    ):
        with pytest.raises(InputError):
            read_secret(text)
