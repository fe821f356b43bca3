"""An archive to show to others when something does not work: without names, addresses and keys."""

from __future__ import annotations

import json
import os
import platform
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from astra_mesh.client.checks import Finding, versions
from astra_mesh.client.redactor import Redactor


def write_archive(
    path: Path, findings: Iterable[Finding], peers: Any, names: Iterable[str]
) -> list[str]:
    """Write the archive; the names of its files.

    Args:
        path: Of the archive; OSError if it is there already or cannot be written.
        findings: Of ``astra-mesh doctor``.
        peers: The mesh as a peer of this machine lists it, as plain values; None without one.
        names: To be replaced.
    """
    redactor = Redactor(names)
    found = [{"check": f.name, "level": f.level.value, "text": f.text} for f in findings]
    chosen = sorted(name for name in os.environ if name.startswith(("ASTRA_MESH_", "OMP_")))
    documents = {
        "doctor.json": found,
        "versions.json": versions() | {"system": platform.platform()},
        "peers.json": peers,
        "environment.json": {  # tokens and keys are in some of them: only whether they are set
            name: os.environ[name] if name.startswith("OMP_") else "set" for name in chosen
        },
    }
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for name, document in documents.items():
            text = json.dumps(redactor.value(document), indent=2, ensure_ascii=False)
            archive.writestr(name, text + "\n")
    return list(documents)
