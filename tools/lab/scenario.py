"""A scenario: what is built, asked and broken, read from TOML or YAML. docs/lab.md explains every
key.

Reading is strict: an unknown key, a wrong type, a value outside its range or a name that stands for
nothing is an error that says where.
"""

from __future__ import annotations

import difflib
import random
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct, structs

from tools.lab.network import DEVICE_NAME, DEVICES, SWITCH
from tools.lab.system import LabError

Seconds = Annotated[float, Meta(ge=0, le=3600)]
Mbps = Annotated[float, Meta(ge=0.01, le=10_000)]
Rate = Mbps | Literal["unlimited"]
Percent = Annotated[float, Meta(ge=0, le=100)]
Delay = Annotated[float, Meta(ge=0, le=5_000)]  # ms
Cores = Annotated[float, Meta(ge=0.05, le=1024)]
Count = Annotated[int, Meta(ge=1, le=10_000)]
_NoneOrMore = Annotated[int, Meta(ge=0, le=1_000_000)]
_OneOrMore = Annotated[int, Meta(ge=1, le=1_000_000)]

UNLIMITED: Literal["unlimited"] = "unlimited"


SHIPPED = Path(__file__).resolve().parents[2] / "models"
_NO_RATE = '; a number of Mbit/s, or "unlimited"'
_ACTIONS = "rate, medium, loss, delay, kill, leave, stop, cont, start, unplug, plug"
_HINTS = {
    **dict.fromkeys(("rate_mbps", "up_mbps", "down_mbps", "medium_mbps", "mbps"), _NO_RATE),
    "action": f"; there are {_ACTIONS}",
    "task": "; there are generate, classify, embed",
    "use": "; there are auto, all, solo",
}

T = TypeVar("T")


class ScenarioError(LabError):
    """A scenario that cannot be run, with the place that is wrong."""


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables."""


class Device(_Strict, frozen=True, kw_only=True):
    """One device; rates count Ethernet frames, one way each."""

    cpu: Cores | None = None  # cores; None: no quota
    rate_mbps: Rate = UNLIMITED
    up_mbps: Rate | None = None  # what it sends; None: rate_mbps
    down_mbps: Rate | None = None
    delay_ms: Delay | None = None  # of what it sends; None: the network's
    jitter_ms: Delay | None = None
    loss_percent: Percent | None = None
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    options: tuple[str, ...] = ()  # more of `astra-mesh peer`
    start: bool = True  # whether its peer runs from the beginning


class Network(_Strict, frozen=True, kw_only=True):
    """What holds for all devices."""

    medium_mbps: Rate | None = None  # None: no shared medium
    delay_ms: Delay = 0.0
    jitter_ms: Delay = 0.0
    loss_percent: Percent = 0.0
    queue_ms: Annotated[float, Meta(ge=1, le=10_000)] = 100.0


class Options(_Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Arguments of the client's methods; what a task does not know is an error."""

    max_new_tokens: _OneOrMore | msgspec.UnsetType = msgspec.UNSET
    temperature: Annotated[float, Meta(ge=0, le=100)] | msgspec.UnsetType = msgspec.UNSET
    top_k: _NoneOrMore | msgspec.UnsetType = msgspec.UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | msgspec.UnsetType = msgspec.UNSET
    seed: int | msgspec.UnsetType = msgspec.UNSET
    top: _OneOrMore | msgspec.UnsetType = msgspec.UNSET
    normalize: bool | msgspec.UnsetType = msgspec.UNSET
    use: Literal["auto", "all", "solo"] | msgspec.UnsetType = msgspec.UNSET
    max_peers: _NoneOrMore | msgspec.UnsetType = msgspec.UNSET
    codec: str | msgspec.UnsetType = msgspec.UNSET
    rate: _NoneOrMore | msgspec.UnsetType = msgspec.UNSET
    max_loss: Annotated[float, Meta(ge=0, le=100)] | msgspec.UnsetType = msgspec.UNSET
    class_token: str | msgspec.UnsetType = msgspec.UNSET
    late: Literal["wait", "adapt", "degrade"] | msgspec.UnsetType = msgspec.UNSET
    stay: bool | msgspec.UnsetType = msgspec.UNSET


_SAMPLING = {"max_new_tokens", "temperature", "top_k", "top_p", "seed"}
_UNFIT = {
    "generate": {"top", "normalize", "class_token"},
    "classify": {*_SAMPLING, "normalize"},
    "embed": {*_SAMPLING, "top"},
}


class Request(_Strict, frozen=True, kw_only=True, rename={"device": "from"}):
    """One request, or the same several times, one after the other."""

    device: str
    model: str
    task: Literal["generate", "classify", "embed"] = "generate"
    text: Annotated[str, Meta(min_length=1)] | None = None
    image: str | None = None  # a file, beside the scenario's
    tokens: Annotated[tuple[_NoneOrMore, ...], Meta(min_length=1)] | None = None  # ids: no text
    options: Options = Options()
    at_s: Seconds | None = None  # after the devices met; None: when the request before has ended
    repeat: Count = 1
    pause_s: Seconds = 0.0  # before each
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    may_fail: bool = False  # an error is then only recorded

    def arguments(self) -> dict[str, Any]:
        """The options that are given."""
        given: dict[str, Any] = msgspec.to_builtins(self.options)
        return given


class _Event(_Strict, frozen=True, kw_only=True, tag_field="action"):
    at_s: Seconds  # after the devices met
    jitter_s: Seconds = 0.0  # drawn uniformly from -jitter_s to jitter_s, by the seed


class _OfDevice(_Event, frozen=True, kw_only=True):
    device: str


class SetRate(_OfDevice, frozen=True, kw_only=True, tag="rate"):
    """Limits a device's cable."""

    up_mbps: Rate = UNLIMITED
    down_mbps: Rate = UNLIMITED


class SetMedium(_Event, frozen=True, kw_only=True, tag="medium"):
    """Limits the shared medium."""

    mbps: Rate


class SetLoss(_OfDevice, frozen=True, kw_only=True, tag="loss"):
    """Loses frames of a device, in both directions."""

    percent: Percent


class SetDelay(_OfDevice, frozen=True, kw_only=True, tag="delay"):
    """Delays what a device sends."""

    delay_ms: Delay
    jitter_ms: Delay = 0.0


class Kill(_OfDevice, frozen=True, kw_only=True, tag="kill"):
    """Ends a device's peer with SIGKILL."""


class Leave(_OfDevice, frozen=True, kw_only=True, tag="leave"):
    """Ends a device's peer with SIGTERM: it says goodbye."""


class Pause(_OfDevice, frozen=True, kw_only=True, tag="stop"):
    """Halts a device's peer (SIGSTOP), as a device that hangs."""


class Go(_OfDevice, frozen=True, kw_only=True, tag="cont"):
    """Lets it go on (SIGCONT)."""


class Start(_OfDevice, frozen=True, kw_only=True, tag="start"):
    """Starts a device's peer, for the first time or again."""


class Unplug(_OfDevice, frozen=True, kw_only=True, tag="unplug"):
    """Takes a device's cable out."""


class Plug(_OfDevice, frozen=True, kw_only=True, tag="plug"):
    """Puts it back."""


Event = SetRate | SetMedium | SetLoss | SetDelay | Kill | Leave | Pause | Go | Start | Unplug | Plug


_TABLES: tuple[type[Struct], ...] = (Device, Network, Options, Request, *get_args(Event))
_KEYS = {"devices": "device", "requests": "request", "events": "event"}


class Scenario(_Strict, frozen=True, kw_only=True, rename=_KEYS):
    """All of it; paths are relative to the scenario's file."""

    devices: Annotated[dict[str, Device], Meta(min_length=1, max_length=DEVICES)]
    name: str = ""
    seed: Annotated[int, Meta(ge=0)] = 0
    models: str = ""  # a folder of bundles; empty: the shipped ones
    offer: tuple[str, ...] = ()  # models that the peers offer; empty: all
    network: Network = Network()
    requests: tuple[Request, ...] = ()
    events: tuple[Event, ...] = ()
    meet_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0  # until all see each other

    def __post_init__(self) -> None:
        """Check what types do not say."""
        for name in self.devices:
            if not DEVICE_NAME.fullmatch(name) or name == SWITCH:
                raise ValueError(f"device: {name!r} is no name (a-z, 0-9 and -, not {SWITCH!r})")
        for at, request in enumerate(self.requests):
            self._check_request(f"request[{at}]", request)
        for at, event in enumerate(self.events):
            self._check_event(f"event[{at}]", event)

    def _check_request(self, place: str, request: Request) -> None:
        self._check_device(f"{place}.from", request.device)
        given = request.text, request.image, request.tokens
        if sum(one is not None for one in given) != 1:
            raise ValueError(f"{place}: needs a text or an image or tokens, and one of them only")
        if request.image is not None and request.task != "classify":
            raise ValueError(f"{place}.image: only classify takes one")
        if request.tokens is not None and request.task != "generate":
            raise ValueError(f"{place}.tokens: only generate takes them")
        if unfit := sorted(_UNFIT[request.task] & request.arguments().keys()):
            raise ValueError(f"{place}.options.{unfit[0]}: {request.task} has no such option")

    def _check_event(self, place: str, event: Event) -> None:
        if event.jitter_s > event.at_s:
            raise ValueError(f"{place}.jitter_s: larger than at_s")
        if isinstance(event, SetMedium):
            if self.network.medium_mbps is None:
                raise ValueError(f"{place}: network.medium_mbps is missing, so there is no medium")
        else:
            self._check_device(f"{place}.device", event.device)

    def _check_device(self, place: str, name: str) -> None:
        if name not in self.devices:
            raise ValueError(f"{place}: no device {name!r}; there are {', '.join(self.devices)}")

    def delayed(self) -> list[str]:
        """Devices whose cables can have a delay: those with one, now or by an event."""
        later = {event.device for event in self.events if isinstance(event, SetDelay)}
        return [name for name in self.devices if name in later or any(self.delay_of(name))]

    def delay_of(self, device: str) -> tuple[float, float]:
        """Delay and jitter of what a device sends, ms."""
        own, all_of_them = self.devices[device], self.network
        return _first(own.delay_ms, all_of_them.delay_ms), _first(
            own.jitter_ms, all_of_them.jitter_ms
        )

    def loss_of(self, device: str) -> float:
        """Percent of the frames of a device that are lost."""
        return _first(self.devices[device].loss_percent, self.network.loss_percent)

    def schedule(self) -> list[tuple[float, Event]]:
        """The events in the order of their times, with the jitter drawn: the same for a seed."""
        draw = random.Random(self.seed)
        drawn = [(one.at_s + draw.uniform(-one.jitter_s, one.jitter_s), one) for one in self.events]
        return sorted(drawn, key=lambda pair: pair[0])


def _first(own: float | None, of_all: float) -> float:
    return of_all if own is None else own


def mbps_of(rate: Rate) -> float | None:
    """None for "unlimited"."""
    return rate if isinstance(rate, float | int) else None


def rates_of(device: Device) -> tuple[float | None, float | None]:
    """What a device may send and receive, Mbit/s; None: without limit."""
    up = device.rate_mbps if device.up_mbps is None else device.up_mbps
    down = device.rate_mbps if device.down_mbps is None else device.down_mbps
    return mbps_of(up), mbps_of(down)


def load_scenario(path: Path) -> Scenario:
    """Read a file.

    Raises:
        ScenarioError: with the file and the place in it.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path} cannot be read: {error}") from error
    return parse_scenario(text, path)


def parse_scenario(text: str, path: Path) -> Scenario:
    """Read a text; paths in it are relative to ``path``'s folder. Raises as the above."""
    try:
        document = _READERS.get(path.suffix.lower(), _read_toml)(text)
        if not isinstance(document, dict):
            raise ScenarioError("no table of keys")
        for name, device in _tables(document.get("device")):
            _convert(device, Device, f"device.{name}")
        scenario = _convert(document, Scenario)
        named = structs.replace(scenario, name=scenario.name or path.stem)
        return _with_paths(named, path.parent)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error


def _read_toml(text: str) -> object:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        kinds = "scenarios are TOML, or YAML in files that end in .yaml or .yml"
        raise ScenarioError(f"no TOML ({error}); {kinds}") from error


def _read_yaml(text: str) -> object:
    try:
        import yaml
    except ImportError:
        raise ScenarioError("YAML needs the package pyyaml; or write it as TOML") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """A key stands once."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                raise yaml.constructor.ConstructorError(None, None, "a key twice", node.start_mark)
            return found

    try:
        return yaml.load(text, Loader)  # noqa: S506 (a safe one)
    except yaml.YAMLError as error:
        raise ScenarioError(f"no YAML: {' '.join(str(error).split())}") from error


_READERS = {".yaml": _read_yaml, ".yml": _read_yaml}


def _tables(found: object) -> list[tuple[str, object]]:
    """Devices one by one: in a table of tables msgspec's messages do not say which."""
    return list(found.items()) if isinstance(found, dict) else []


def _convert(document: object, kind: type[T], place: str = "") -> T:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        what, _, inner = str(error).partition(" - at `")
        where = place + inner.rstrip("`").removeprefix("$")
        hint = _HINTS.get(where.rpartition(".")[2], "") if "Invalid" in what else ""
        if unknown := re.search("unknown field `(.+)`", what):
            known = {key for one in _TABLES for key in one.__struct_encode_fields__}
            near = difflib.get_close_matches(unknown[1], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
        given = _found(document, inner.rstrip("`").removeprefix("$"))
        if "Expected `" in what and " got " not in what and isinstance(given, int | float | str):
            hint = f", not {given!r}{hint}"
        raise ScenarioError(f"{where.removeprefix('.')}: {what}{hint}".lstrip(": ")) from error


def _found(document: object, place: str) -> object:
    """What stands at a place of msgspec's, like ``.request[0].options``; None where that is not
    clear."""
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", place):
        try:
            document = document[name if name else int(index)]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def _with_paths(scenario: Scenario, folder: Path) -> Scenario:
    """With paths that hold everywhere, and that exist."""
    models = scenario.models and _existing(folder, scenario.models, "models")
    if models and not Path(models).is_dir():
        raise ScenarioError(f"models: {models} is no folder")
    for at, name in enumerate(scenario.offer):
        _existing(Path(models or SHIPPED), name, f"offer[{at}]")  # a full path stays one
    requests = tuple(
        structs.replace(one, image=_existing(folder, one.image, f"request[{at}].image"))
        if one.image is not None
        else one
        for at, one in enumerate(scenario.requests)
    )
    return structs.replace(scenario, models=models, requests=requests)


def _existing(folder: Path, name: str, place: str) -> str:
    path = (folder / name).resolve()
    if not path.exists():
        raise ScenarioError(f"{place}: there is no {path}")
    return str(path)
