"""The command ``astra-mesh``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Ctrl-C ends it quietly with status 130."""
    try:
        from astra_mesh.cli.app import app

        app(prog_name="astra-mesh")
    except KeyboardInterrupt:
        sys.exit(130)
