"""What one device answers, for checking what a mesh did."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.bundle.text import eos_ids
from astra_mesh.engine.reference import decode, hidden_rows, run_solo
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.wire.messages import Sampling
from tools.lab.process import REPO_ROOT

MODEL = "tiny-gpt2"
TIE = 1e-3  # logits of the most likely tokens are around 5; sums in another order differ by 1e-5


def departs(question: dict[str, Any], tokens: Sequence[int]) -> str:
    """How greedy new tokens differ from those of one device; "" if they do not, or if the question
    leaves codes to the mesh that may change them.

    Where two tokens are equally likely, either is right, and so is what follows from it.
    """
    options = question["options"]
    if options.get("codec") != "fp32" and options.get("use") != "solo":
        return ""
    prompt, new = tuple(question["tokens"]), options["max_new_tokens"]
    wanted = list(_alone(prompt, new))
    if list(tokens) == wanted or _tied(prompt, tokens, new):
        return ""
    return f"was answered {list(tokens)} instead of {wanted}"


@lru_cache(maxsize=4096)
def _alone(prompt: tuple[int, ...], new: int) -> tuple[int, ...]:
    model, stop_ids = _model()
    run = run_solo(model, ModelInput(tokens=torch.tensor(prompt)), "last", spare=new)
    return tuple(decode([run], Sampling(max_new_tokens=new), stop_ids))


@torch.inference_mode()
def _tied(prompt: Sequence[int], tokens: Sequence[int], new: int) -> bool:
    """Whether each token is as likely as any other there, and the text ends where it has to."""
    model, stop_ids = _model()
    complete = len(tokens) == new or (0 < len(tokens) < new and tokens[-1] in stop_ids)
    if not complete:
        return False
    whole = torch.tensor([*prompt, *tokens])
    logits = model.logits(hidden_rows([run_solo(model, ModelInput(tokens=whole), "all")]))
    rows = logits[len(prompt) - 1 : -1]
    drawn = rows.gather(1, whole[len(prompt) :].unsqueeze(1)).squeeze(1)
    return bool((drawn >= rows.max(dim=1).values - TIE).all())


@lru_cache(maxsize=1)
def _model() -> tuple[Model, frozenset[int]]:
    bundle = open_bundle(Path(REPO_ROOT) / "models" / MODEL)
    return build_model(bundle.config, load_weights(bundle)), eos_ids(bundle)
