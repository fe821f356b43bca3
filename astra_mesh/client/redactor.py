"""What says who and where is replaced in texts that others will see."""

from __future__ import annotations

import getpass
import platform
import re
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import platformdirs

from astra_mesh.client.checks import PACKAGES
from astra_mesh.errors import InputError
from astra_mesh.mesh.codes import read_secret
from astra_mesh.naming import SHORT_ID

_IPV4: Final = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_IPV6: Final = re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?:%\w+)?(?![\w:])", re.I)
_TIME: Final = re.compile(r"(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?:?")  # else an _IPV6
# Also what people see of one; only digits are a number, though one id of 43 begins so.
_ID: Final = re.compile(r"\b(?:[0-9a-f]{16,}|(?=\d*[a-f])[0-9a-f]{8})\b")
_KEY: Final = re.compile(
    r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----|(?i:\bamk-[a-z2-7]+)", re.S
)
_TOKEN: Final = re.compile(r"(token=|\bbearer +|--api-token +)[^\s&\"'<>]+", re.I)
_CODE: Final = re.compile(r"(?P<said>(?<=code=)[\w-]+)|\b[0-9a-z]{4}-?[0-9a-z]{4}\b", re.I)
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[0-9]+|[0-9a-f]+")  # or a number, or an id
# user:password@host, with what stands between :// and the last @ of an address
_LOGIN: Final = re.compile(
    r"(?:(?<=://)[^\s\"'<>]+|[^\s\"'<>()\[\]/]+)@(?:\[[0-9a-f:.]+(?:%\w+)?\]|[\w.-]+)", re.I
)
# A path goes on after a space if what follows has a separator too: "/srv/my project/x".
_PATH: Final = re.compile(
    r"(?:(?<=file://)|(?<![\w.~/\\]))(?:~?/(?!/)|~(?=[\w-]+/))[^\s\"'`,;:()<>|]*"
    r"(?: [^\s\"'`,;:()<>|/]+/[^\s\"'`,;:()<>|]*)*"
)
_WINDOWS_PATH: Final = re.compile(
    r"(?:(?<!\w)[a-z]:[\\/]|(?<!\\)\\\\(?=[\w.?]))[^\s\"'`,;()<>|]*"
    r"(?: [^\s\"'`,;()<>|\\]+\\[^\s\"'`,;()<>|]*)*",
    re.I,
)
_HOST: Final = re.compile(
    r"(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:[a-z]{2,}|xn--[\w-]+)(?![\w-])", re.I
)
# Of one word: only before a port that programs choose; and not what stands for something already.
_NAMED_HOST: Final = re.compile(
    r"(?<![\w.:@-])(?!(?:address|host|id|login|name|path)-\d+:)"
    r"[a-z][\w-]*(?=:\d{4,5}(?!\w|[.:]\w))",
    re.I,
)
_NO_HOSTS: Final = frozenset({"host", "localhost", "pid", "port"})
_MODULES: Final = ("astra_mesh", "_astra-mesh", "asyncio", *PACKAGES)  # have dots, as hosts have
_PLAIN_NAME: Final = re.compile(r"[\w.-]+")
_FILES: Final = frozenset({"gguf", "json", "pem", "py", "safetensors", "service"})


class Redactor:
    """Replaces what says who and where, the same by the same.

    Args:
        names: Of people, machines and devices.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        own = (platform.node(), platform.node().partition(".")[0], _user())
        found = sorted({n for n in (*own, *names) if n.strip()}, key=len, reverse=True)
        self._names = _any_of(found)
        # Before all else, which would take a part of them; the others may be parts of own folders.
        self._odd_names = _any_of([name for name in found if not _PLAIN_NAME.fullmatch(name)])
        self._folders = _own_folders()
        self._known: dict[str, str] = {}

    def text(self, text: str) -> str:
        """A text without them."""
        text = self._nameless(self._odd_names, text)
        text = _TOKEN.sub(r"\1[token]", _KEY.sub("[key]", text))
        text = _CODE.sub(_hide_code, text)
        text = _LOGIN.sub(lambda match: self._as("login", match[0]), text)
        text = _WINDOWS_PATH.sub(self._path, text)
        text = _PATH.sub(self._path, text)
        text = self._nameless(self._names, text)
        text = _HOST.sub(self._host, text)
        text = _ID.sub(lambda match: self._as("id", match[0][:SHORT_ID]), text)
        text = _IPV4.sub(lambda match: self._as("address", match[0]), text)
        text = _IPV6.sub(self._ipv6, text)
        return _NAMED_HOST.sub(self._named_host, text)

    def value(self, value: Any) -> Any:
        """The same for all texts in a value of JSON."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(one) for one in value]
        return value

    def _nameless(self, names: re.Pattern[str] | None, text: str) -> str:
        return names.sub(lambda match: self._as("name", match[0]), text) if names else text

    def _ipv6(self, match: re.Match[str]) -> str:
        return match[0] if _TIME.fullmatch(match[0]) else self._as("address", match[0])

    def _path(self, match: re.Match[str]) -> str:
        for folder, shown in self._folders:
            rest = match[0].removeprefix(folder)
            if rest != match[0] and rest[:1] in ("", "/", "\\"):
                return shown + rest
        return self._as("path", match[0])

    def _host(self, match: re.Match[str]) -> str:
        known = match[0].split(".")[0] in _MODULES or match[0].rpartition(".")[2] in _FILES
        return match[0] if known else self._as("host", match[0])

    def _named_host(self, match: re.Match[str]) -> str:
        return match[0] if match[0].lower() in _NO_HOSTS else self._as("host", match[0])

    def _as(self, kind: str, text: str) -> str:
        if text.startswith(("127.", "0.0.0.0")) or text in ("::", "::1"):
            return text
        number = sum(1 for known in self._known.values() if known.startswith(kind)) + 1
        return self._known.setdefault(text.casefold(), f"{kind}-{number}")


def _any_of(names: Sequence[str]) -> re.Pattern[str] | None:
    """What finds these names as whole words, the first of them first."""
    any_of = "|".join(map(re.escape, names))
    return re.compile(rf"(?<!\w)(?:{any_of})(?!\w)", re.I) if names else None


def _own_folders() -> list[tuple[str, str]]:
    """Of this program and of Python, and what they are shown as; the longest first."""
    found = {str(path): "[python]" for path in sysconfig.get_paths().values()}
    found[str(Path(__file__).parents[1])] = "[astra_mesh]"
    for kind in ("state", "data", "cache", "config"):
        path = getattr(platformdirs, f"user_{kind}_path")("astra-mesh")
        found[str(path)] = f"[{kind}]"
    del found[sysconfig.get_path("data")]  # /usr, or the folder of the environment
    return sorted(found.items(), key=lambda one: len(one[0]), reverse=True)


def _hide_code(match: re.Match[str]) -> str:
    """A pairing code goes, and what only looks like one stays: its check digit is wrong, or it has
    no dash and is a word, a number or an id.
    """
    if match["said"] is None and _WORD.fullmatch(match[0]):
        return match[0]
    try:
        read_secret(match[0])
    except InputError:
        return match[0]
    return "[code]"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
