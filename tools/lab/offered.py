"""What a scenario's peers offer, and whether its requests ask for that."""

from __future__ import annotations

import re
from pathlib import Path

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.specs import spec_of
from astra_mesh.bundle.store import codebook_name
from astra_mesh.errors import AstraMeshError
from tools.lab.scenario import SHIPPED, Request, Scenario, ScenarioError

_ID = re.compile(r"[0-9a-f]{8,64}")  # of a model, or the start of it


def check_requests(scenario: Scenario) -> None:
    """ScenarioError for a request that no peer can answer, unless it may fail."""
    asked = [(at, one) for at, one in enumerate(scenario.requests) if not one.may_fail]
    offered = _offered(scenario) if asked else {}
    for at, request in asked:
        bundle = offered.get(request.model)
        if bundle is not None:
            _check(f"request[{at}]", request, bundle)
        elif not _ID.fullmatch(request.model):
            known = f"there is {', '.join(offered)}" if offered else "there is none"
            text = f"no model {request.model!r} is offered; {known}"
            raise ScenarioError(f"request[{at}].model: {text}")


def _offered(scenario: Scenario) -> dict[str, Bundle]:
    """By name. Of what is no model the peers complain themselves, where it was not named."""
    root = Path(scenario.models or SHIPPED)
    found = {}
    for folder in map(root.joinpath, scenario.offer) if scenario.offer else sorted(root.iterdir()):
        try:
            bundle = open_bundle(folder)
            found[bundle.name] = bundle
        except AstraMeshError as error:
            if scenario.offer:
                raise ScenarioError(f"offer: {error.message}") from error
    return found


def _check(place: str, request: Request, bundle: Bundle) -> None:
    from astra_mesh.quant.codecs import PLAIN  # imports torch

    try:
        spec = spec_of(bundle)
    except AstraMeshError as error:
        raise ScenarioError(f"{place}.model: {error.message}") from error
    if request.task not in spec.tasks:
        does = " and ".join(spec.tasks)
        raise ScenarioError(f"{place}.task: {bundle.name} does not {request.task}, it does {does}")
    if request.tokens is not None and max(request.tokens) >= spec.vocab_size:
        text = f"{bundle.name} has no token {max(request.tokens)}, it has {spec.vocab_size}"
        raise ScenarioError(f"{place}.tokens: {text}")
    kinds = [codebook_name(kind, one) for one in bundle.codebook_paths for kind in ("vq", "astra")]
    known = list(dict.fromkeys([*PLAIN, "vq", "astra", *kinds]))
    codec = request.arguments().get("codec", "")
    if codec and codec not in known:
        raise ScenarioError(
            f"{place}.options.codec: no codes {codec!r}; there are {', '.join(known)}"
        )
