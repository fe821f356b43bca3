"""Running the browser's graphs in onnxruntime, as a tab does in its WebAssembly build."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from astra_mesh.browser.graph import WEIGHTS
from astra_mesh.browser.tensors import Array, Packed


class Session:
    """A graph whose weights lie in ``packed``, which stays alive: onnxruntime reads it in place."""

    def __init__(self, graph: bytes, packed: Packed | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._packed = packed
        if packed is not None and WEIGHTS.encode() in graph:
            options.add_external_initializers_from_files_in_memory(
                [WEIGHTS], [packed.data], [len(packed.data)]
            )
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, **values: Array | int) -> dict[str, Array]:
        """All outputs by name; inputs that the graph does not have are left out."""
        known = {one.name for one in self._session.get_inputs()}
        fed = {
            name: np.asarray(value, dtype=np.int64 if isinstance(value, int) else None)
            for name, value in values.items()
            if name in known
        }
        names = [one.name for one in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, fed), strict=True))
