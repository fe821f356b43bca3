"""The graphs are ONNX files in the eyes of ONNX's own package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from astra_mesh.browser.blocks import block_graphs
from astra_mesh.browser.graph import OPSET, WEIGHTS, Graph
from astra_mesh.browser.tensors import Packed
from astra_mesh.browser.weights import block_tensors
from tests.unit.families.making import KINDS, make_model


@pytest.mark.parametrize("kind", KINDS)
def test_every_graph_passes_the_checker(kind: str, tmp_path: Path) -> None:
    block = make_model(kind).block(0)
    packed = Packed(block_tensors(block))
    (tmp_path / WEIGHTS).write_bytes(packed.data)
    for name, data in block_graphs(block, packed.entries).items():
        (tmp_path / name).write_bytes(data)
        onnx.checker.check_model(str(tmp_path / name))
        model = onnx.load_from_string(data)
        assert [one.version for one in model.opset_import] == [OPSET], name
        assert model.SerializeToString(deterministic=True) == data  # nothing was lost in reading


def test_numbers_of_all_kinds_are_read_as_they_were_written() -> None:
    graph = Graph()
    x = graph.input("x", ("T", 3))
    floats = graph.constant([[1.5, -2.0, np.inf]])
    ints = graph.ints(-1, 0, 300)
    added = graph.op("Add", x, floats)
    summed = graph.op("ReduceSum", added, ints, keepdims=0)
    graph.output("y", graph.op("LeakyRelu", summed, alpha=-0.25), ())
    model = onnx.load_from_string(graph.data())
    first, second = (onnx.numpy_helper.to_array(one) for one in model.graph.initializer)
    assert first.tolist() == [[1.5, -2.0, np.inf]]
    assert second.tolist() == [-1, 0, 300]
    attributes = [one for node in model.graph.node for one in node.attribute]
    assert [onnx.helper.get_attribute_value(one) for one in attributes] == [0, -0.25]
    assert [
        dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim
    ] == ["T", 3]
