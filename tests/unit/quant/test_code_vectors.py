"""The vectors that Python and JavaScript share."""

from __future__ import annotations

import json

from tools import make_code_vectors


def test_codes_are_what_the_vectors_say() -> None:
    wanted = json.loads(make_code_vectors.PATH.read_text())
    assert make_code_vectors.vectors() == wanted, "run python -m tools.make_code_vectors"
