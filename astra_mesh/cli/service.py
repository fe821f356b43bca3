"""``service``: run a peer at every start of the device, by systemd, shut into a sandbox."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer

from astra_mesh.cli.console import clean, hint, out, print_json, reporting
from astra_mesh.cli.options import Json, check_memory
from astra_mesh.cli.service_paths import SECRETS_FILE, carried, check_paths, set_here
from astra_mesh.cli.wording import sentence
from astra_mesh.errors import AstraMeshError, InputError

UNIT: Final = "astra-mesh-peer.service"
_SYSTEM: Final = Path("/etc/systemd/system")
_WAIT_S: Final = 30.0  # for systemctl
_SECRETS: Final = {
    "--join-key": "ASTRA_MESH_JOIN_KEY",
    "--api-token": "ASTRA_MESH_API_TOKEN",
}
EXAMPLE: Final = 'Example:  astra-mesh service install --options "--name kitchen --lan"'

app = typer.Typer(help="Run a peer as a service of systemd.", epilog=EXAMPLE, no_args_is_help=True)
System = Annotated[
    bool, typer.Option("--system", help="For the whole device, as root. Default: for this user.")
]


@app.command("install", epilog=EXAMPLE)
def install(
    options: Annotated[
        str, typer.Option(help="Options of `astra-mesh peer`, in quotation marks.")
    ] = "",
    system: System = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it now.")] = True,
    show: Annotated[bool, typer.Option("--print", help="Print the unit, install nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write the unit file, and start the peer now and at every start. Run it again to change it."""
    with reporting(as_json):
        text = unit(options, system)
        path = unit_path(system)
        if system and (names := set_here(os.environ)):
            hint(
                f"{' and '.join(names)} do{'' if len(names) > 1 else 'es'} not count for a service "
                "of the system: its identity and models lie in /var/lib/astra-mesh"
            )
        if show:
            if as_json:
                print_json({"unit": str(path), "text": text})
            else:
                typer.echo(text, nl=False)
            return
        _write(path, text)
        running = start and _start(system)
        if as_json:
            print_json({"unit": str(path), "started": running})
            return
        out.print(f"installed {path}", markup=False, soft_wrap=True)
        user = "" if system else "--user "
        if running:
            out.print(f"it runs; its log: journalctl {user}-u {UNIT} -f", markup=False)
        elif start:
            hint(f"systemd does not run here; later: systemctl {user}enable --now {UNIT}")
        if running and "--lan" in shlex.split(options):
            hint("the address of its page for other devices is in that log, and holds the token")
        if running and not system:
            hint("it ends when you log out, unless: sudo loginctl enable-linger $USER")


@app.command("remove", epilog="Example:  astra-mesh service remove")
def remove(system: System = False, as_json: Json = False) -> None:
    """Stop the service and remove its unit file; models and identity stay."""
    with reporting(as_json):
        path = unit_path(system)
        if not path.exists():
            raise InputError(f"there is no {path}, so nothing to remove")
        if _has_systemd(system):
            _systemctl(system, "disable", "--now", UNIT)
        path.unlink()
        if _has_systemd(system):
            _systemctl(system, "daemon-reload")
        if as_json:
            print_json({"removed": str(path)})
        else:
            out.print(f"removed {path}", markup=False, soft_wrap=True)


def unit(options: str, system: bool) -> str:
    """The unit file.

    Raises:
        InputError: The options cannot be read, or a service cannot be made here.
    """
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--options: {error}") from error
    _check(words, system)
    command = [*_program(system), "peer", *words]
    template = resources.files("astra_mesh.cli").joinpath("service.unit").read_text()
    return template.format(
        command=" ".join(map(_quoted, command)),
        target="multi-user.target" if system else "default.target",
        state=_SYSTEM_STATE if system else _USER_STATE + _environment(),
    )


def _check(words: list[str], system: bool) -> None:
    """InputError for what `astra-mesh peer` would refuse, at every start of the service, for
    secrets, and for files that it could not use.
    """
    from astra_mesh.cli.app import app as everything
    from astra_mesh.cli.lan import check_api

    for option, variable in _SECRETS.items():
        if any(word == option or word.startswith(f"{option}=") for word in words):
            raise InputError(
                f"--options: everybody on this machine can read {option} in the unit file and in "
                f"the list of processes; put {variable}=... into {SECRETS_FILE[system]} instead, "
                "a file for its owner only (chmod 600)"
            )
    command = getattr(typer.main.get_command(everything), "commands")["peer"]  # noqa: B009
    if "--help" in words:
        raise InputError("--options: with --help a peer ends at once, so it would make no service")
    try:
        context = command.make_context("peer", list(words))
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises differs by its version
            raise
        text = sentence(error) or error.format_message()
        raise InputError(f"--options: {text}") from error
    check_api(context, "--options: ")
    check_memory(context, "--options: ")
    check_paths(context.params, system)


_USER_STATE: Final = """\
# A user's service runs as that user, and finds models and identity where its commands do.
ProtectSystem=full"""
_SYSTEM_STATE: Final = """\
# A user of its own, made at the start; its files stay in /var/lib/astra-mesh.
DynamicUser=yes
StateDirectory=astra-mesh
StateDirectoryMode=0700
CacheDirectory=astra-mesh
Environment=HOME=/var/lib/astra-mesh XDG_DATA_HOME=/var/lib XDG_STATE_HOME=/var/lib
Environment=XDG_CACHE_HOME=/var/cache
ProtectSystem=strict
ProtectHome=yes
PrivateDevices=yes
CapabilityBoundingSet=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectProc=invisible"""


def _environment() -> str:
    """The lines of a user's unit for the variables that are set here."""
    lines = [f"\nEnvironment={_assigned(*one)}" for one in carried(os.environ).items()]
    return "".join(["\n# As they were at the installation.", *lines]) if lines else ""


def _assigned(name: str, value: str) -> str:
    """One variable for Environment, which unlike ExecStart knows no dollar sign."""
    if not value.isprintable():
        raise InputError(f"{name}: control characters cannot be part of a unit file")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{name}={escaped}"'


def _program(system: bool) -> list[str]:
    """How this program is started without a shell: by its Python, which knows its packages."""
    if sys.platform != "linux":
        raise InputError("services are made for systemd, which is Linux only")
    python = sys.executable
    if system and python.startswith(("/home/", "/root/")):
        raise InputError(
            f"a service of the system sees no home folders, and {python} lies in one: install "
            "with peers/board/install.sh, or make a user's service without --system"
        )
    return [python, "-m", "astra_mesh"]


def _quoted(word: str) -> str:
    """A word for ExecStart."""
    if any(not c.isprintable() for c in word):
        raise InputError("--options: control characters cannot be part of a unit file")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    plain = escaped == word and " " not in word and "'" not in word and word
    return word if plain else f'"{escaped}"'


def unit_path(system: bool) -> Path:
    """Where the unit file lies."""
    if system:
        return _SYSTEM / UNIT
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd" / "user" / UNIT


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        how = "; run it as root: sudo" if isinstance(error, PermissionError) else ""
        raise InputError(f"{path} cannot be written: {error.strerror}{how}") from error


def _has_systemd(system: bool) -> bool:
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        return False
    return system or "XDG_RUNTIME_DIR" in os.environ


def _start(system: bool) -> bool:
    if not _has_systemd(system):
        return False
    _systemctl(system, "daemon-reload")
    _systemctl(system, "enable", UNIT)
    _systemctl(system, "restart", UNIT)
    return True


def _systemctl(system: bool, *words: str) -> None:
    argv = ["systemctl", *([] if system else ["--user"]), *words]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_WAIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AstraMeshError(f"{' '.join(argv)} did not work: {error}") from error
    if done.returncode:
        why = clean(done.stderr.strip())[:300]
        raise AstraMeshError(f"{' '.join(argv)} did not work: {why}")
