"""``python -m astra_mesh``: the same as the command ``astra-mesh``."""

from __future__ import annotations

from astra_mesh.cli import main

if __name__ == "__main__":
    main()
