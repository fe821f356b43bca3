"""An archive to show to others when something does not work: without names, addresses and keys."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from astra_mesh.client.checks import Finding, versions

_IPV4: Final = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_IPV6: Final = re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?:%\w+)?(?![\w:])", re.I)
_ID: Final = re.compile(r"\b[0-9a-f]{16,}\b")
_KEY: Final = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----|\bamk-[a-z2-7]+", re.S)
_HOME: Final = re.compile(r"(?:/home|/Users)/[^/\s\"']+|/root\b")
_SHORT: Final = 3  # names of fewer characters would hit ordinary words


class Redactor:
    """Replaces what says who and where, the same by the same.

    Args:
        names: Of people, machines and devices.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        own = [platform.node(), platform.node().partition(".")[0], _user()]
        self._names = sorted({n for n in (*own, *names) if len(n) >= _SHORT}, key=len, reverse=True)
        self._known: dict[str, str] = {}

    def text(self, text: str) -> str:
        """A text without them."""
        text = _KEY.sub("[key]", text)
        text = _HOME.sub("~", text.replace(str(Path.home()), "~"))
        for name in self._names:
            text = re.sub(
                rf"(?<!\w){re.escape(name)}(?!\w)", lambda m: self._as("name", m[0]), text
            )
        text = _ID.sub(lambda match: match[0][:8], text)
        text = _IPV4.sub(lambda match: self._as("address", match[0]), text)
        return _IPV6.sub(lambda match: self._as("address", match[0]), text)

    def value(self, value: Any) -> Any:
        """The same for all texts in a value of JSON."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(one) for one in value]
        return value

    def _as(self, kind: str, text: str) -> str:
        if text.startswith(("127.", "0.0.0.0")) or text in ("::", "::1"):
            return text
        number = sum(1 for known in self._known.values() if known.startswith(kind)) + 1
        return self._known.setdefault(text, f"{kind}-{number}")


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


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
