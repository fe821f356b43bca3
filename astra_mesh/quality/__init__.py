"""Fitting codebooks and measuring what they cost: the arithmetic behind ``fit`` and ``eval``.

Above bundle, quant and engine; below the command line. Everything here blocks and uses one core:
callers that have an event loop run it in a thread.
"""

from astra_mesh.quality.bounds import BoundRow
from astra_mesh.quality.data import Split, load_inputs, load_samples
from astra_mesh.quality.evaluation import EvalRow, EvalSettings, Evaluation, evaluate
from astra_mesh.quality.fitting import Fitted, codebook_name, fit
from astra_mesh.quality.sample import Sample
from astra_mesh.quant.fit import Progress
from astra_mesh.quant.options import FitOptions

__all__ = [
    "BoundRow",
    "EvalRow",
    "EvalSettings",
    "Evaluation",
    "FitOptions",
    "Fitted",
    "Progress",
    "Sample",
    "Split",
    "codebook_name",
    "evaluate",
    "fit",
    "load_inputs",
    "load_samples",
]
