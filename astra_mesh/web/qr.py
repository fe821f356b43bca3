"""QR codes for the page."""

from __future__ import annotations

from typing import Any

import segno


def drawing(text: str) -> dict[str, Any]:
    """A QR as the path of an SVG whose side is ``size``, its quiet zone included."""
    rows = list(segno.make(text, error="l", micro=False).matrix_iter(border=4))
    dark = [(x, y) for y, row in enumerate(rows) for x, module in enumerate(row) if module]
    return {"size": len(rows), "path": "".join(f"M{x} {y}h1v1h-1z" for x, y in dark)}
