"""What a tab codes one block's input with: the arithmetic is ``web/site/peer/quantizer.js``."""

from __future__ import annotations

from torch import Tensor

from astra_mesh.browser.tensors import Array
from astra_mesh.quant.codebook import BlockBook
from astra_mesh.quant.coders import BlockCoder


def book_tensors(book: BlockBook) -> dict[str, Array]:
    """The tensors of a block's quantizer, coordinates arranged as the first stage cuts them.

    What the codebook's file has as float16 stays so.
    """
    coder = BlockCoder(book)
    found: dict[str, Array] = {}

    def put(name: str, tensor: Tensor | None, kind: str = "float16") -> None:
        if tensor is not None:
            found[name] = tensor.numpy().astype(kind)

    put("center", book.center, "float32")
    put("analysis", coder.analysis)
    put("synthesis", coder.synthesis)
    if book.predict is not None:
        put("predict", book.predict.flatten(0, 1))
    for index, stage in enumerate(coder.stages):
        put(f"codewords.{index}", stage.codewords)
        put(f"order.{index}", stage.cut.order, "int32")
    return found
