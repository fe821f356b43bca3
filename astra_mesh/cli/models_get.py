"""Commands that bring models to this device: ``models pull`` and ``models add``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Final

import typer

from astra_mesh.cli.connecting import opened
from astra_mesh.cli.console import clean, err, hint, out, print_json, reporting, run_async
from astra_mesh.cli.ending import ending_soon, telling
from astra_mesh.cli.options import Connect, Json, Typed, elsewhere_names
from astra_mesh.cli.report import amount
from astra_mesh.errors import AstraMeshError, InputError

if TYPE_CHECKING:
    from astra_mesh.bundle import Bundle

PULL_EXAMPLE: Final = (
    "Examples:  astra-mesh models pull openai-community/gpt2\n\nastra-mesh models pull tiny-gpt2"
)
ADD_EXAMPLE: Final = (
    "Examples:  astra-mesh models add ~/Downloads/my-model\n\n"
    "astra-mesh models add ~/Downloads/tiny.Q8_0.gguf"
)

_GGUF: Final = ".gguf"
_KEPT: Final = "interrupted: what came is kept, and the same command goes on there"

Name = Annotated[
    str, typer.Option("--name", help="What the model is called here. Default: as over there.")
]


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME or NAME",
            help="A repository of the hub (with a slash), or a model that another peer holds: "
            "its name, or the first 8 digits of its id.",
            autocompletion=elsewhere_names,
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of the repository. Default: the main branch."),
    ] = None,
    name: Name = "",
    connect: Connect = None,
    peer: Typed = None,
    as_json: Json = False,
) -> None:
    """Get a model from the hub, or from the other peers of the mesh. Run it again to go on."""
    with reporting(as_json), ending_soon():
        if "/" in model:
            _from_hub(model, revision, name, as_json)
        else:
            run_async(_from_mesh(model, name, connect, peer, as_json))


def _from_hub(repository: str, revision: str | None, name: str, as_json: bool) -> None:
    from astra_mesh.bundle import hub
    from astra_mesh.cli.progress import following

    name = name or repository.rpartition("/")[2]
    with err.status(f"asking for {clean(repository)}", spinner="dots"):
        remote = hub.look_up(repository, revision)
        bundle = hub.here(remote, name)
        origin = {"repository": repository, "revision": remote.revision}
        if bundle is not None:
            _report(bundle, as_json, **origin, already=True)
            return
        folder = hub.staged(remote, name)
    with (
        telling(lambda: _KEPT),
        following(clean(name), remote.size_bytes, lambda: hub.gathered_bytes(folder)),
    ):
        bundle = hub.download(remote, name)
    _report(bundle, as_json, **origin, already=False)


async def _from_mesh(
    model: str, name: str, connect: str | None, typed: list[str] | None, as_json: bool
) -> None:
    from astra_mesh.cli.progress import following
    from astra_mesh.client.fetch import Fetch
    from astra_mesh.client.fetch_codebooks import CodebookFetch, bundle_here, lacking
    from astra_mesh.client.finding import own_way
    from astra_mesh.client.holders import seek
    from astra_mesh.client.repair import Repair, damage_of

    async with opened(connect, typed) as mesh:
        secure, peers = await asyncio.to_thread(own_way), await mesh.peers()
        holders = await seek(model, mesh, secure)
        fetch, damaged = Fetch(holders, name), list[str]()
        called = fetch.name
        broken = await asyncio.to_thread(damage_of, fetch.name, holders.model)
        as_here = not name and broken is None
        here = await asyncio.to_thread(bundle_here, holders.model) if as_here else None
        if broken is not None:
            fetch, damaged = Repair(*broken, holders), sorted(broken[1])
        elif here is not None:
            args = (here, peers, mesh.peer_address, secure)
            ids, holders = await asyncio.to_thread(lacking, *args)
            if not ids:
                _report(here, as_json, peers=[])
                _say_name(here, called, as_json)
                return
            fetch = CodebookFetch(here, ids, holders)
    await fetch.look()
    with (
        telling(lambda: _KEPT if fetch.done_bytes else ""),
        following(clean(fetch.name), fetch.size_bytes, lambda: fetch.done_bytes),
    ):
        bundle = await fetch.run()
    names = [one.name for one in holders.peers]
    _report(bundle, as_json, peers=names, **({"repaired": damaged} if damaged else {}))
    _say_name(bundle, called, as_json)


def _say_name(here: Bundle, wanted: str, as_json: bool) -> None:
    """How a model that is here by other names only also comes by the wanted one."""
    from astra_mesh.bundle.store import folders_by_name

    if not as_json and wanted not in folders_by_name():
        hint(
            f"it is called {clean(here.name)} here: use that name, or `astra-mesh models pull "
            f"{quote(clean(wanted))} --name {quote(clean(wanted))}` brings the whole model by that "
            "name, with its tokenizer and chat template"
        )


def add(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER or FILE.gguf",
            help="A folder with config.json and safetensors, or a GGUF file of llama.cpp.",
        ),
    ],
    name: Name = "",
    as_json: Json = False,
) -> None:
    """Copy a model's folder, or the model in a GGUF file, to this device's models. Of a damaged
    model that is here by that name, the damaged files come anew.
    """
    with reporting(as_json):
        path = _source(path)
        if path.is_file():
            _report(_add_gguf(path, name), as_json)
            return
        from astra_mesh.bundle import install, open_bundle
        from astra_mesh.bundle.store import user_models_path
        from astra_mesh.cli.progress import following
        from astra_mesh.client.repair import damage_of

        source = install.check_usable(path)
        name = name or source.name
        broken = damage_of(name, source.model_id)
        if broken is not None:
            folder, damaged = broken
            files = install.mend(source.path, folder, damaged)
            _report(open_bundle(folder), as_json, repaired=files, peers=[str(source.path)])
            return
        size = sum(path.stat().st_size for path in source.path.iterdir() if path.is_file())
        staging = user_models_path() / f".{name}.partial"
        with following(clean(name), size, lambda: _size(staging)):
            bundle = install.add(source.path, name)
        _report(bundle, as_json)


def _source(path: Path) -> Path:
    """The folder or GGUF file that is meant; InputError where it is neither."""
    there = False
    with suppress(OSError, RuntimeError, ValueError):  # too long, no such home, not encodable
        path = path.expanduser()
        there = path.exists()
    shown = f"{str(path)[-200:]!a}"
    if not there:
        raise InputError(
            f"there is no file or folder {shown}: give a model's folder, or a GGUF file"
        )
    if path.is_dir() or path.suffix.lower() == _GGUF:
        return path
    beside = path.absolute().parent
    if (beside / "config.json").is_file():
        raise InputError(f"{shown} is one file of a model: give its folder, {beside}")
    raise InputError(
        f"{shown} is no model: give a folder with config.json and safetensors files, or a GGUF "
        "file, whose name ends in .gguf"
    )


def _add_gguf(path: Path, name: str) -> Bundle:
    from astra_mesh.bundle import install
    from astra_mesh.bundle.gguf import GgufFile
    from astra_mesh.bundle.store import user_models_path
    from astra_mesh.cli.progress import following

    with err.status(f"reading {clean(path.name)}", spinner="dots"):
        source = GgufFile(path)
    name = name or path.stem
    staging = user_models_path() / f".{name}.partial"
    with following(clean(name), source.size_bytes, lambda: _size(staging)):
        return install.add_gguf(source, name)


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:
        return 0


def one_model(copies: Sequence[Bundle]) -> str:
    """What is said of folders with the same config and weights."""
    from astra_mesh.bundle.copies import best_words, read_alike, words_of

    *others, last = (clean(one.name) for one in copies)
    which = "any" if len(others) > 1 else "either"
    text = f"{', '.join(others)} and {last} are one model (the same weights): {which} name will do"
    with suppress(AstraMeshError):  # a file that cannot be read is told of elsewhere
        if not read_alike(copies):
            reader, _ = best_words([(one, words_of(one)) for one in copies])
            text += (
                ". Their tokenizers or chat templates differ, and peers use those of "
                f"{clean(reader.name)}, by {which} name: to use others, keep only the folder that "
                "has them"
            )
    return text


def _what_fails(bundle: Bundle, lacks: str) -> str:
    fails = "takes token ids but no text" if lacks.startswith("tokenizer") else "takes no pictures"
    return f"it has no {lacks}, so it {fails}: copy the model's {lacks} into {bundle.path}"


def _report(bundle: Bundle, as_json: bool, **origin: object) -> None:
    from astra_mesh.bundle.lacking import fault_of, lacking_file
    from astra_mesh.bundle.store import copies_of

    size = sum(path.stat().st_size for path in bundle.path.iterdir() if path.is_file())
    copies, lacks, fault = copies_of(bundle), lacking_file(bundle), fault_of(bundle)
    if as_json:
        about = {"name": bundle.name, "id": bundle.model_id, "path": str(bundle.path)}
        found = {"size_bytes": size, "copies": [one.name for one in copies]}
        found |= {"lacks": lacks, "fault": fault}
        print_json({**about, **found, **origin})
        return
    out.print(f"{clean(bundle.name)}: {amount(size)} in {bundle.path}", soft_wrap=True)
    if origin.get("already"):
        hint("it is here already, at this commit")
    elif origin.get("peers") == []:
        hint("it is here already, with all codebooks that the mesh has of it")
    elif "repaired" in origin:
        files, names = (", ".join(map(str, origin[key])) for key in ("repaired", "peers"))  # type: ignore[call-overload]
        out.print(f"  {clean(files)} came anew from {clean(names)}", soft_wrap=True)
    elif "peers" in origin:
        out.print(f"  from {clean(', '.join(map(str, origin['peers'])))}", soft_wrap=True)  # type: ignore[call-overload]
    if copies:
        hint(one_model([*copies, bundle]))
    if lacks:
        hint(_what_fails(bundle, lacks))
    if fault:
        hint(clean(fault))
    if not bundle.codebook_paths:
        hint(
            f"it has no codebook, so peers send each other fp16 values; "
            f"`astra-mesh fit {bundle.name} --data FOLDER` learns one"
        )
