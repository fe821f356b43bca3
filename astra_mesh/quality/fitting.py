"""Fitting a codebook to a bundle's model from files of data."""

from __future__ import annotations

from pathlib import Path

from astra_mesh.bundle import Bundle, write_manifest
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.families import build_model
from astra_mesh.quality.data import Split, load_inputs
from astra_mesh.quant.fit import FitOptions, Progress, fit_codebook


def codebook_name(options: FitOptions) -> str:
    """The file that a codebook of these options has in a bundle."""
    if options.codec == "astra":
        return f"codebook-astra-g{options.groups}.safetensors"
    return "codebook.safetensors"


def fit(
    bundle: Bundle,
    data: Path,
    options: FitOptions,
    progress: Progress = lambda done, total, what: None,
    output: Path | None = None,
    *,
    window: int | None = None,
    split: Split | None = None,
) -> Path:
    """Fit a codebook to ``data`` (see :func:`load_samples`) and save it; the path of the file.

    It goes to ``output``, or into the bundle's folder, whose manifest is then written anew. Either
    way the file appears whole or not at all. ``progress`` is called with (done, total,
    what) for each step.

    Raises:
        CalibrationError: data or options that cannot be used.
        ModelError: the bundle cannot be used, or the file cannot be written.
    """
    progress(0, 1, "reading the model")
    model = build_model(bundle.config, load_weights(bundle))
    options.check(model.spec.hidden_size)
    progress(0, 1, "reading the data")
    inputs = load_inputs(bundle, data, limit_tokens=options.max_tokens, window=window, split=split)
    codebook = fit_codebook(model, bundle.model_id, inputs, options, progress)
    path = output or bundle.path / codebook_name(options)
    codebook.save(path)
    if output is None:
        write_manifest(bundle.path)
    return path
