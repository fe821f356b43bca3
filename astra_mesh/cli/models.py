"""The models of this device: ``models`` lists them, ``models verify`` checks one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from astra_mesh.cli import models_get
from astra_mesh.cli.console import clean, err, hint, out, print_json, reporting
from astra_mesh.cli.options import Bundle, Json
from astra_mesh.cli.report import amount
from astra_mesh.errors import AstraMeshError, BadBundleError, CodebookError
from astra_mesh.naming import SHORT_ID

if TYPE_CHECKING:
    from astra_mesh.bundle import Bundle as ModelBundle

_NAME_WIDTH: Final = 21  # names up to so long stay in one line of 80 columns
_WIDE: Final = 100  # columns of a terminal that has room for the tasks in one line
EXAMPLE: Final = "Examples:  astra-mesh models   ·   astra-mesh models verify tiny-gpt2"

app = typer.Typer(
    help="The models of this device: list, verify, pull or add them.",
    epilog=EXAMPLE,
    invoke_without_command=True,
)


app.command("pull", epilog=models_get.PULL_EXAMPLE)(models_get.pull)
app.command("add", epilog=models_get.ADD_EXAMPLE)(models_get.add)


@dataclass(frozen=True)
class Row:
    """One model of this device."""

    name: str
    family: str
    parameters: int
    tasks: tuple[str, ...]
    size_bytes: int
    codebooks: dict[str, list[int]]  # codec -> bits per token and block
    id: str
    path: str
    problem: str = ""  # why it cannot be used
    fault: str = ""  # of the file that reads texts or pictures for it


@app.callback()
def default(context: typer.Context, as_json: Json = False) -> None:
    """The models of this device: list, verify, pull or add them."""
    if context.invoked_subcommand is None:
        list_models(as_json)


@app.command("list", epilog="Example:  astra-mesh models list --json")
def list_models(as_json: Json = False) -> None:
    """List the models: what they are, what they do, which codebooks they have."""
    with reporting(as_json):
        with err.status("reading the models", spinner="dots"):
            from astra_mesh.bundle import model_folders
            from astra_mesh.bundle.store import folders_by_name

            read = [_read(*one) for one in sorted(folders_by_name().items())]
            rows = [row for row, _ in read]
        if as_json:
            print_json({"models": [asdict(row) for row in rows]})
            return
        if not rows:
            folders = ", ".join(str(path) for path in model_folders())
            hint(f"no models on this device; looked in {folders}")
            return
        out.print(table(rows, out.width))
        for line in _folders(rows):
            out.print(Text(clean(line), style="dim"), soft_wrap=True)
        for row in rows:
            if row.problem:
                hint(f"{row.name}: {row.problem}")
            if row.fault:
                hint(clean(row.fault))
        for copies in _copies(read):
            hint(models_get.one_model(copies))


@app.command("verify", epilog="Example:  astra-mesh models verify tiny-gpt2")
def verify_model(
    model: Bundle,
    take_new: Annotated[
        bool,
        typer.Option(
            "--take-new",
            help="Take files that the manifest does not list into it, as they are now; those that "
            "it lists must be right.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every file of a model with its manifest."""
    with reporting(as_json):
        from astra_mesh.bundle import find_bundle, verify
        from astra_mesh.bundle import take_new as take
        from astra_mesh.bundle.lacking import fault_of

        bundle = find_bundle(model)
        with err.status(f"reading {clean(bundle.name)}", spinner="dots"):
            fault = fault_of(bundle)
            if take_new and fault:
                raise BadBundleError(fault)
            new = take(bundle) if take_new else []
            names = verify(bundle)
        if as_json:
            about = {"name": bundle.name, "id": bundle.model_id}
            print_json({**about, "files": names, "taken": new, "fault": fault})
            return
        if new:
            out.print(f"taken into the manifest: {clean(', '.join(new))}", soft_wrap=True)
        out.print(f"{clean(bundle.name)}: {len(names)} files are as they should be")
        if fault:
            hint(clean(fault))


def _read(name: str, path: Path) -> tuple[Row, ModelBundle | None]:
    """The model of a folder; one that cannot be opened is a row, too."""
    from astra_mesh.bundle import open_bundle

    try:
        bundle = open_bundle(path)
    except AstraMeshError as error:
        return Row(name, "", 0, (), _size(path), {}, "", str(path), problem=error.message), None
    return describe(bundle), bundle


def _size(folder: Path) -> int:
    """Bytes of the files that are read of a model."""
    from astra_mesh.bundle.install import is_wanted

    files = (one for one in folder.iterdir() if is_wanted(one.name) and one.is_file())
    return sum(file.stat().st_size for file in files)


def describe(bundle: ModelBundle) -> Row:
    """What a person wants to know of a model; a broken one says why."""
    path, size = str(bundle.path), _size(bundle.path)
    try:
        from astra_mesh.bundle.header import read_header
        from astra_mesh.bundle.lacking import fault_of
        from astra_mesh.bundle.specs import spec_of

        spec = spec_of(bundle)
        shapes = [
            info.shape
            for file in bundle.weight_paths
            for info in read_header(file).tensors.values()
        ]
        return Row(
            name=bundle.name,
            family=spec.family,
            parameters=sum(math.prod(shape) for shape in shapes),
            tasks=spec.tasks,
            size_bytes=size,
            codebooks=_rates(bundle),
            id=bundle.model_id,
            path=path,
            fault=fault_of(bundle),
        )
    except AstraMeshError as error:
        return Row(bundle.name, "", 0, (), size, {}, "", path, problem=error.message)


def _rates(bundle: ModelBundle) -> dict[str, list[int]]:
    from astra_mesh.bundle.books import read_book_header
    from astra_mesh.bundle.store import codebook_name

    found: dict[str, list[int]] = {}
    for suffix, path in bundle.codebook_paths.items():
        try:
            book = read_book_header(path, bundle.model_id)
        except CodebookError as error:
            hint(f"{clean(bundle.name)}: a codebook is left out: {clean(error.message)}")
            continue
        found[codebook_name(book.codec, suffix)] = list(book.rates.values())
    return found


def table(rows: list[Row], width: int) -> Table:
    """One row for each model, for a terminal of so many columns."""
    found = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    wide = width >= _WIDE
    found.add_column("name", no_wrap=True)  # rich would break others before the bits
    found.add_column("family", no_wrap=True)
    for column in ("params", "size"):
        found.add_column(column, justify="right", no_wrap=True)
    found.add_column("tasks", no_wrap=True)
    found.add_column("codebook bits", overflow="fold")
    found.add_column("id", no_wrap=True)
    for row in rows:
        books = "\n".join(
            f"{codec} {'/'.join(map(str, rates))}" for codec, rates in row.codebooks.items()
        )
        found.add_row(
            Text(clean(row.name) if wide else _folded(clean(row.name)), style="bold"),
            row.family or Text("unusable", style="red"),
            _count(row.parameters),
            amount(row.size_bytes),
            (", " if wide else ",\n").join(row.tasks),
            books or "none",
            row.id[:SHORT_ID],
        )
    return found


def _folded(name: str) -> str:
    parts = range(0, len(name), _NAME_WIDTH)
    return "\n".join(name[start : start + _NAME_WIDTH] for start in parts)


def _copies(read: list[tuple[Row, ModelBundle | None]]) -> list[list[ModelBundle]]:
    """Folders that hold the same model."""
    copies: dict[str, list[ModelBundle]] = {}
    for row, bundle in read:
        if row.id and bundle is not None:
            copies.setdefault(row.id, []).append(bundle)
    return [found for found in copies.values() if len(found) > 1]


def _folders(rows: list[Row]) -> list[str]:
    """Where the models lie, with the names in each folder."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(str(Path(row.path).parent), []).append(row.name)
    if len(found) == 1:
        return [f"in {folder}" for folder in found]
    return [f"{', '.join(names)} in {folder}" for folder, names in found.items()]


def _count(parameters: int) -> str:
    if parameters >= 10**6:
        return f"{parameters / 1e6:.1f} M"
    return f"{parameters / 1e3:.1f} k" if parameters >= 10**3 else str(parameters)
