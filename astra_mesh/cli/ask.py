"""Commands that ask the mesh: ``run``, ``classify``, ``embed``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from astra_mesh.cli.connecting import alone, opened
from astra_mesh.cli.console import (
    clean,
    err,
    hint,
    out,
    print_json,
    reporting,
    run_async,
    write,
)
from astra_mesh.cli.options import (
    Classifier,
    ClassToken,
    Codec,
    Connect,
    Embedder,
    Generator,
    Json,
    Late,
    LateOption,
    Loss,
    MaxPeers,
    PlanOptions,
    Rate,
    Typed,
    Use,
    UseOption,
    check_output,
    plan_options,
)
from astra_mesh.cli.progress import waiting
from astra_mesh.errors import AstraMeshError, BadImageError, InputError, MeshError

if TYPE_CHECKING:
    from astra_mesh.client import Classification, Embedding, Mesh
    from astra_mesh.wire.messages import ModelId, PeerInfo, Planned, Report

RUN_EXAMPLE: Final = 'Example:  astra-mesh run tiny-gpt2 "ROMEO:" -n 100 --use all'
CLASSIFY_EXAMPLE: Final = "Example:  astra-mesh classify vit-tiny photo.jpg --top 3"
EMBED_EXAMPLE: Final = 'Example:  astra-mesh embed my-bert "a sentence" --output vector.npy'
_SHOWN: Final = 6  # numbers of a vector


def run(
    model: Generator,
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    max_new_tokens: Annotated[
        int, typer.Option("-n", "--max-new-tokens", min=1, help="At most so many new tokens.")
    ] = 64,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0, max=100.0, help="0 takes the most probable token; above, it samples."
        ),
    ] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from so many tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from this much probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="For the same sample again.")] = None,
    use: UseOption = Use.AUTO,
    max_peers: MaxPeers = 0,
    codec: Codec = "",
    rate: Rate = 0,
    loss: Loss = None,
    late: LateOption = Late.WAIT,
    stay: Annotated[
        bool, typer.Option("--stay", help="The asked peer answers, even if another is faster.")
    ] = False,
    connect: Connect = None,
    peer: Typed = None,
    as_json: Json = False,
) -> None:
    """Continue a text: it streams as it comes, then a report says what the mesh did."""
    with reporting(as_json):
        text = _read_prompt(prompt)
        sampling = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "stay": stay,
        }
        options = plan_options(use, max_peers, codec, rate, loss, late)
        run_async(_run(connect, peer, by_path(model), text, sampling, options, as_json))


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise InputError("standard input is no UTF-8 text") from None


async def _run(
    connect: str | None,
    typed: list[str] | None,
    model: str,
    prompt: str,
    sampling: dict[str, Any],
    options: PlanOptions,
    as_json: bool,
) -> None:
    async with opened(connect, typed) as mesh:
        async with mesh.generate(model, prompt, **sampling, **options) as generation:
            with waiting(await _what_happens(mesh, model, options)) as over:
                async for token in generation:
                    over()
                    if as_json:
                        print_json({"type": "token", "id": token.id, "text": token.text})
                    else:
                        write(token.text)
        if generation.report is None:
            return
        if as_json:
            document = {"planned": generation.planned, "report": generation.report}
            print_json({"type": "report", "text": generation.text, **document})
        else:
            out.print()
        await _explain(mesh, generation.planned, generation.report, options, as_json)


def classify(
    model: Classifier,
    what: Annotated[
        str, typer.Argument(metavar="FILE|TEXT", help="An image file; with --text, a text.")
    ],
    text: Annotated[bool, typer.Option("--text", help="The argument is a text, no file.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many labels.")] = 5,
    use: UseOption = Use.AUTO,
    max_peers: MaxPeers = 0,
    codec: Codec = "",
    rate: Rate = 0,
    loss: Loss = None,
    late: LateOption = Late.WAIT,
    class_token: ClassToken = "",
    connect: Connect = None,
    peer: Typed = None,
    as_json: Json = False,
) -> None:
    """Label a picture, or a text."""
    with reporting(as_json):
        if not text:
            _check_picture(what)
        options = plan_options(use, max_peers, codec, rate, loss, late)
        given: str | os.PathLike[str] = what if text else Path(what)
        run_async(
            _classify(connect, peer, by_path(model), given, top, class_token, options, as_json)
        )


def _check_picture(what: str) -> None:
    """BadImageError where no file is named."""
    with suppress(OSError, ValueError):  # too long, not encodable
        path = Path(what)
        if path.is_file():
            return
        if path.is_dir():
            raise BadImageError(
                f"{clean(what)[-200:]!a} is a folder, and classify takes one picture: a file in "
                "JPEG, PNG, WebP, GIF or BMP"
            )
    raise BadImageError(f"there is no file {clean(what)[:200]!a}; to label a text, add --text")


async def _classify(
    connect: str | None,
    typed: list[str] | None,
    model: str,
    given: str | os.PathLike[str],
    top: int,
    class_token: str,
    options: PlanOptions,
    as_json: bool,
) -> None:
    async with opened(connect, typed) as mesh:
        with waiting(await _what_happens(mesh, model, options)), _naming_text(model, given):
            answer = await mesh.classify(model, given, top=top, class_token=class_token, **options)
        if as_json:
            print_json(
                {"labels": answer.labels, "planned": answer.planned, "report": answer.report}
            )
        else:
            show_labels(answer)
        await _explain(mesh, answer.planned, answer.report, options, as_json)


@contextmanager
def _naming_text(model: str, given: str | os.PathLike[str]) -> Iterator[None]:
    """With the error that a model takes no picture goes how it takes a text."""
    try:
        yield
    except InputError as error:
        if isinstance(given, str) or " reads text" not in error.message:
            raise
        how = f"`astra-mesh classify {quote(model)} --text TEXT`"
        raise InputError(f"{error.message}; a text: {how}") from error


def show_labels(answer: Classification) -> None:
    """Labels with their probability, on standard output."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for one in answer.labels:
        bar = "█" * round(one.probability * 24)
        table.add_row(f"{one.probability:6.1%}", Text(clean(one.label)), Text(bar, style="cyan"))
    out.print(table)


def embed(
    model: Embedder,
    text: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the vector to this .npy file.")
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Scale the vector to length 1.")] = True,
    use: UseOption = Use.AUTO,
    max_peers: MaxPeers = 0,
    codec: Codec = "",
    rate: Rate = 0,
    loss: Loss = None,
    late: LateOption = Late.WAIT,
    class_token: ClassToken = "",
    connect: Connect = None,
    peer: Typed = None,
    as_json: Json = False,
) -> None:
    """Turn a text into one vector."""
    with reporting(as_json):
        options = plan_options(use, max_peers, codec, rate, loss, late)
        given = _read_prompt(text)
        if output is not None:
            check_output(output)
        run_async(
            _embed(
                connect,
                peer,
                by_path(model),
                given,
                normalize,
                output,
                class_token,
                options,
                as_json,
            )
        )


async def _embed(
    connect: str | None,
    typed: list[str] | None,
    model: str,
    text: str,
    normalize: bool,
    output: Path | None,
    class_token: str,
    options: PlanOptions,
    as_json: bool,
) -> None:
    async with opened(connect, typed) as mesh:
        with waiting(await _what_happens(mesh, model, options)):
            answer = await mesh.embed(
                model, text, normalize=normalize, class_token=class_token, **options
            )
        if output is not None:
            await asyncio.to_thread(save_vector, answer, output)
        if as_json:
            vector = {"vector": answer.vector.tolist()} if output is None else {}
            print_json({**vector, "planned": answer.planned, "report": answer.report})
        else:
            start = " ".join(f"{value:.4f}" for value in answer.vector[:_SHOWN])
            out.print(f"{len(answer.vector)} numbers: {start} …")
        await _explain(mesh, answer.planned, answer.report, options, as_json)


def save_vector(answer: Embedding, path: Path) -> None:
    """Write a .npy file."""
    import numpy as np

    try:
        with path.open("wb") as file:
            np.save(file, answer.vector)
    except OSError as exc:
        raise AstraMeshError(f"{path} cannot be written: {exc.strerror or exc}") from None


def by_path(model: str) -> str:
    """The name to ask for; a model's folder is offered by a peer inside this command."""
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return model
    folder = folder.resolve()
    others = os.environ.get("ASTRA_MESH_MODELS")
    found = [str(folder.parent), *([others] if others else [])]
    os.environ["ASTRA_MESH_MODELS"] = os.pathsep.join(found)
    return folder.name


async def _what_happens(mesh: Mesh, model: str, options: PlanOptions) -> str:
    """Whom it asks; and who has to load the model first, which may take long. For tabs no request
    waits until they have.
    """
    from astra_mesh.wire.messages import names_of

    text = f"asking {clean(mesh.peer.name)}"
    cold = [
        clean(peer.name)
        for peer in await mesh.peers()
        if not peer.via and (options["use"] != "solo" or peer.peer == mesh.peer.peer)
        for offer in peer.models
        if model in (*names_of(offer), offer.id) and not offer.loaded
    ]
    if not cold:
        return text
    text = f"{text}; first {clean(model)} is loaded by {', '.join(cold)}"
    if not err.is_terminal:  # there the line moves
        hint(text)
    return text


async def _explain(
    mesh: Mesh, planned: Planned | None, report: Report, options: PlanOptions, as_json: bool
) -> None:
    """The report, and hints where the mesh could be better; all on standard error."""
    if as_json and options["use"] == "solo":
        return
    found: list[PeerInfo] = []
    with suppress(MeshError):  # the answer is there, whoever is gone since
        found = await mesh.peers()
    if not as_json:
        from astra_mesh.cli.report import report_block

        err.print(report_block(planned, report, found))
    if options["use"] == "solo":
        return
    if len(found) == 1 and len(report.plan.shards) == 1:
        hint(await alone(mesh))
    if lacking := without_codebook(found, report.plan.model):
        hint(lacking)


def without_codebook(found: list[PeerInfo], model: ModelId) -> str:
    """A sentence where some peers have a codebook of a model and others have the model only."""
    offers = [(peer.name, offer) for peer in found for offer in peer.models if offer.id == model]
    bare = [clean(name) for name, offer in offers if not offer.codebooks]
    if not bare or len(bare) == len(offers):
        return ""
    return (
        f"{', '.join(bare)} without the codebook of {clean(offers[0][1].name)} that others have: "
        f"there, `astra-mesh models pull {clean(offers[0][1].name)}` gets it"
    )
