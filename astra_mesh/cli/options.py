"""Options that several commands share."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypedDict

import typer

from astra_mesh.errors import AstraMeshError, InputError

if TYPE_CHECKING:
    from astra_mesh.bundle import Bundle as ModelBundle
    from astra_mesh.client.inputs import LateName, UseName


class Late(enum.Enum):
    """What happens to codes that come too late."""

    WAIT = "wait"
    ADAPT = "adapt"
    DEGRADE = "degrade"


class Use(enum.Enum):
    """As in the protocol; here so that ``--help`` need not import it."""

    AUTO = "auto"
    ALL = "all"
    SOLO = "solo"


Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON on standard output; messages go to standard error."),
]
STDIN: Final = "-"  # in place of a file or a code: standard input
_SECRET_CHARS: Final = 4_096  # of its line; the text of a QR, the longest, has some 200
_CODECS = ("vq", "astra", "fp32", "fp16", "int8", "int4")


def model_names(incomplete: str) -> list[str]:
    """The models of this device whose names begin so, for the shell."""
    from astra_mesh.bundle.store import folders_by_name

    return [name for name in sorted(folders_by_name()) if name.startswith(incomplete)]


def elsewhere_names(incomplete: str) -> list[str]:
    """The models of other peers that this device does not have, as a peer of this user tells."""
    from astra_mesh.cli.completing import models_elsewhere

    return [name for name in models_elsewhere() if name.startswith(incomplete)]


def device_names(incomplete: str) -> list[str]:
    """The devices that are paired with this one, for the shell."""
    from astra_mesh.cli.completing import paired_names

    return [name for name in paired_names() if name.startswith(incomplete)]


def able_to(task: str) -> Callable[[str], list[str]]:
    """Completes names of those models of this device that do a task."""

    def names(incomplete: str) -> list[str]:
        from astra_mesh.bundle import find_named
        from astra_mesh.bundle.specs import spec_of

        found = []
        for name in model_names(incomplete):
            with suppress(AstraMeshError):  # a folder that is no whole model
                found += [name] * (task in spec_of(find_named(name)).tasks)
        return found

    return names


def codec_names(incomplete: str) -> list[str]:
    """The codecs whose names begin so, for the shell."""
    return [name for name in _CODECS if name.startswith(incomplete)]


_MODEL_HELP: Final = "Name of a model (see `astra-mesh models`)."
Generator = Annotated[
    str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=able_to("generate"))
]
Classifier = Annotated[
    str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=able_to("classify"))
]
Embedder = Annotated[
    str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=able_to("embed"))
]
Bundle = Annotated[
    str,
    typer.Argument(
        help="Name of a model on this device, or its folder.", autocompletion=model_names
    ),
]
Connect = Annotated[
    str | None,
    typer.Option(
        "--connect",
        metavar="HOST:PORT",
        envvar="ASTRA_MESH_PEER",
        help="Ask the peer at this address. Default: a peer on this machine, or one inside this "
        "command.",
    ),
]
Typed = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        metavar="HOST:PORT",
        help="Address of a peer to work with, where multicast is dropped. May be repeated.",
    ),
]

_PLAN = "Plan"
UseOption = Annotated[
    Use,
    typer.Option(
        "--use",
        rich_help_panel=_PLAN,
        help="auto: the plan with the shortest predicted time; all: every peer that has the "
        "model; solo: one device.",
    ),
]
MaxPeers = Annotated[
    int, typer.Option(min=0, rich_help_panel=_PLAN, help="At most so many peers; 0: no limit.")
]
Codec = Annotated[
    str,
    typer.Option(
        rich_help_panel=_PLAN,
        autocompletion=codec_names,
        help="vq, astra, fp32, fp16, int8, int4, or a codebook as `models` names it. Default: the "
        "fastest within the loss.",
    ),
]
Rate = Annotated[
    int,
    typer.Option(
        min=0,
        rich_help_panel=_PLAN,
        help="Bits per token and block; 0: the fastest within the loss, as measured.",
    ),
]
Loss = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        rich_help_panel=_PLAN,
        help="What the codes may cost in quality, as `eval --save` measured it: 0.02 is 2 % more "
        "perplexity, 0.005 half a point of accuracy. Default: what was stored with it.",
    ),
]

LateOption = Annotated[
    Late,
    typer.Option(
        rich_help_panel=_PLAN,
        help="wait for codes that are late; adapt: send fewer bits where a link has become slower; "
        "degrade: and go on with what earlier blocks predict. The report says so.",
    ),
]
ClassToken = Annotated[
    str,
    typer.Option(
        rich_help_panel=_PLAN,
        help="single: on one peer; distributed: a copy on each. Default: the model's own.",
    ),
]


_DATA_HELP = (
    "Text files or a folder of them, a .tsv or .txt of sentences, a .npy of token ids (a text, or "
    "one sequence per row), or a folder or .zip of pictures, as the model reads."
)
Data = Annotated[Path, typer.Option("--data", help=_DATA_HELP)]
Window = Annotated[
    int | None, typer.Option(min=2, help="Tokens of one text window. Default: the context.")
]


class ClassTokenName(enum.Enum):
    """Where the class token lives."""

    SINGLE = "single"
    DISTRIBUTED = "distributed"


def check_class_token(bundle: ModelBundle, wanted: ClassTokenName | None) -> None:
    """InputError where the place of a class token was typed for a model without one."""
    from astra_mesh.bundle.specs import spec_of

    if wanted is not None and not spec_of(bundle).has_class_token:
        raise InputError(f"{bundle.name} has no class token: leave out --class-token")


class SplitName(enum.Enum):
    """Which part of the data is used."""

    ALL = "all"
    FIT = "fit"
    EVAL = "eval"


Split = Annotated[
    SplitName,
    typer.Option(help="all of the data; eval: every tenth item; fit: the nine others."),
]


Task = Annotated[str, typer.Option(help="generate, classify or embed.")]


def part_of(split: SplitName) -> Literal["fit", "eval"] | None:
    """The part of the data that is used; None: all of them."""
    return None if split is SplitName.ALL else split.value


class PlanOptions(TypedDict):
    """The arguments that all requests of the client share."""

    use: UseName
    max_peers: int
    codec: str
    rate: int
    max_loss: float | None
    late: LateName


def first_line(path: Path, what: str) -> str:
    """What a file (``-``: standard input) holds besides spaces: a secret, which other users of this
    machine would see in the list of processes.

    Raises:
        InputError: It cannot be read, or its first line is empty.
    """
    try:
        if str(path) == STDIN:
            text = sys.stdin.readline(_SECRET_CHARS)
        else:
            with path.open(errors="replace") as file:
                text = file.readline(_SECRET_CHARS)
    except OSError as error:
        raise InputError(f"{what}: {path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise InputError(
            f"{what}: the first line of {'standard input' if str(path) == STDIN else path} is empty"
        )
    return text.strip()


def check_output(path: Path) -> None:
    """InputError where no file can be written there; before hours of work, not after."""
    from astra_mesh.bundle.writable import check_file

    check_file(path)


def plan_options(
    use: Use, max_peers: int, codec: str, rate: int, max_loss: float | None, late: Late
) -> PlanOptions:
    """The options of the panel "Plan" as arguments of the client's methods."""
    return {
        "use": use.value,
        "max_peers": max_peers,
        "codec": codec,
        "rate": rate,
        "max_loss": max_loss,
        "late": late.value,
    }


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; InputError for anything else."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{option} is a list of whole numbers, as 16,64") from None


def check_memory(context: Any, where: str = "") -> None:
    """Whether the options of what is held go together.

    Args:
        context: Of the command `peer`, with its options.
        where: Put before the sentence.

    Raises:
        InputError: Models are to be loaded ahead, and as little memory is to be taken as possible.
    """
    typed = context.get_parameter_source("preload")
    wanted = context.params["preload"] and typed is not None and typed.name == "COMMANDLINE"
    if context.params["low_memory"] and wanted:
        raise InputError(
            f"{where}--low-memory does not go with --preload: with little memory models are loaded "
            "only when somebody asks; say one of them"
        )
