"""Files and folders of a service: what its sandbox lets it use, and what its environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from astra_mesh.cli.options import STDIN
from astra_mesh.errors import InputError

SECRETS_FILE: Final = {  # by whether it is a service of the system; as service.unit names it
    False: "~/.config/astra-mesh/peer.env",
    True: "/etc/astra-mesh/peer.env",
}
_MODELS: Final = "ASTRA_MESH_MODELS"  # several folders
# Where identity and models lie.
SHARED: Final = ("ASTRA_MESH_TRUST", _MODELS, "XDG_STATE_HOME", "XDG_DATA_HOME")
_STATE: Final = Path("/var/lib/astra-mesh")  # StateDirectory of the system's service
_WRITABLE: Final = (_STATE, Path("/var/cache/astra-mesh"))  # all that this service may write
_OWN_TMP: Final = (Path("/tmp"), Path("/var/tmp"))  # PrivateTmp
_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))  # ProtectHome


def check_paths(options: Mapping[str, Any], system: bool) -> None:
    """Whether the peer of a service could use what its options name.

    Args:
        options: Of `astra-mesh peer`, by the names of its parameters.
        system: Whether it is a service of the system.

    Raises:
        InputError: It could not; says where such files should lie.
    """
    for option, value in _named(options):
        if option == "--join-key-file" and (system or value == STDIN):
            why = "its user is made at the start and" if system else "it has no standard input and"
            raise InputError(
                f"--options: a service cannot use --join-key-file {value}: {why} reads no such "
                f"file; put ASTRA_MESH_JOIN_KEY=... into {SECRETS_FILE[system]} instead (chmod 600)"
            )
        path = Path(value) if system or option != "--model" else Path(value).expanduser()
        if not path.is_absolute():
            whole = _whole(path, system)
            raise InputError(f"--options: {option} {value} is no whole path: {whole}")
        if system:
            _check_system(option, path)
        if _lies_in(path, _OWN_TMP):
            raise InputError(
                f"--options: a service has a /tmp and /var/tmp of its own, so {option} {value} "
                "names nothing there: choose another folder"
            )


def _named(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options that name files or folders, and which; a model may also be a plain name."""
    for name in ("state_dir", "record", "join_key_file"):
        if options.get(name) is not None:
            yield "--" + name.replace("_", "-"), str(options[name])
    for model in options.get("model") or ():
        if {"/", os.sep} & set(model):
            yield "--model", model


def _whole(path: Path, system: bool) -> str:
    if system:
        return f"a service begins in no folder of yours; give one that begins with {_STATE}/"
    return f"a service does not begin in this folder; give {path.expanduser().absolute()}"


def _lies_in(path: Path, folders: tuple[Path, ...]) -> bool:
    """By what is written, or by where its links lead."""
    real = Path(os.path.realpath(path))
    written = Path(os.path.normpath(path))
    return any(one.is_relative_to(folder) for one in (real, written) for folder in folders)


def _check_system(option: str, path: Path) -> None:
    if option == "--model":
        if _lies_in(path, _HOMES):
            raise InputError(
                f"--options: a service of the system sees no home folders, and {path} lies in one: "
                f"copy that folder into {_STATE}/models and name it: --model {path.name}"
            )
    elif not any(Path(os.path.normpath(path)).is_relative_to(folder) for folder in _WRITABLE):
        raise InputError(
            f"--options: a service of the system writes only in {_STATE}, so not to {option} "
            f"{path}: leave the option out, or name a folder in there"
        )


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which commands of this user find identity and models, with whole paths.

    Raises:
        InputError: One names a folder that a service does not see.
    """
    found = {}
    for name in set_here(environment):
        value = environment[name]
        paths = [Path(value)]
        if name == _MODELS:
            paths = [Path(one).expanduser() for one in value.split(os.pathsep) if one]
        paths = [path.absolute() for path in paths]
        if any(_lies_in(path, _OWN_TMP) for path in paths):
            raise InputError(
                f"{name} is {value[:200]!a}, and a service has a /tmp and /var/tmp of its own: "
                "choose another folder, or unset the variable"
            )
        found[name] = os.pathsep.join(map(str, paths))
    return found


def set_here(environment: Mapping[str, str]) -> list[str]:
    """Those of these variables that are set."""
    return [name for name in SHARED if environment.get(name, "").strip()]
