"""SHA-256 of large files, remembered, so that gigabytes are not read again at each start."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Final

import platformdirs

from astra_mesh.bundle.configs import bad_file, file_size, save_json
from astra_mesh.errors import ModelError

_KEPT_BYTES: Final = 1024 * 1024  # smaller files are hashed again by the next process (1 ms)
_SETTLED_NS: Final = (
    3_000_000_000  # FAT stores times in steps of 2 s: a younger file may still change
)
_ENTRIES: Final = 1_000  # of the cache file, the oldest go first; 200 KB
_CACHE_BYTES: Final = 1024 * 1024

_lock = threading.Lock()
_memory: dict[str, str] = {}


def cache_path() -> Path:
    """Where hashes are remembered between processes."""
    return Path(platformdirs.user_cache_path("astra-mesh")) / "hashes.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits; not read again while its size and times are the same.

    Raises:
        BadBundleError: the file is missing or cannot be read.
    """
    size = file_size(path)
    status = path.stat()
    # The change time tells a file put in place of another with the same size and modification time.
    key = f"{path.resolve()}|{size}|{status.st_mtime_ns}|{status.st_ctime_ns}"
    known = _known(key, size)
    if known is None:
        known = _digest(path)
        newest_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        _remember(key, known, size >= _KEPT_BYTES and time.time_ns() - newest_ns > _SETTLED_NS)
    return known


def forget() -> None:
    """Drops what this process remembers (the cache file stays)."""
    with _lock:
        _memory.clear()


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise bad_file(
            path, f"cannot be read ({error.strerror})", "check its permissions"
        ) from error


def _known(key: str, size: int) -> str | None:
    with _lock:
        if key not in _memory and size >= _KEPT_BYTES:
            _memory.update(_stored())
        return _memory.get(key)


def _remember(key: str, digest: str, keep: bool) -> None:
    with _lock:
        _memory[key] = digest
        if not keep:
            return
        entries = [*((k, v) for k, v in _stored().items() if k != key), (key, digest)]
        try:
            cache_path().parent.mkdir(parents=True, exist_ok=True)
            save_json(cache_path(), dict(entries[-_ENTRIES:]))
        except (OSError, ModelError):
            return  # a read-only home costs time at the next start, nothing else


def _stored() -> dict[str, str]:
    """What the cache file holds; nothing if it is absent or damaged."""
    try:
        if cache_path().stat().st_size > _CACHE_BYTES:
            return {}
        value = json.loads(cache_path().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(v, str) and len(v) == 64}
