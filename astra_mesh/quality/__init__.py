"""Fitting codebooks and measuring what they cost: the arithmetic behind ``fit`` and ``eval``.

Above bundle, quant and engine; below the command line. Everything here blocks and uses one core:
callers that have an event loop run it in a thread.
"""

from astra_mesh.quality.data import Split, load_inputs, load_samples
from astra_mesh.quality.evaluation import EvalRow, EvalSettings, Evaluation, evaluate
from astra_mesh.quality.fitting import codebook_name, fit
from astra_mesh.quality.sample import Sample
from astra_mesh.quant.fit import FitOptions, Progress

__all__ = [
    "EvalRow",
    "EvalSettings",
    "Evaluation",
    "FitOptions",
    "Progress",
    "Sample",
    "Split",
    "codebook_name",
    "evaluate",
    "fit",
    "load_inputs",
    "load_samples",
]
