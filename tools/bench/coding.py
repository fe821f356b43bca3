"""What coding a token takes beside a block's own work, by hidden size: a rule for `fit`.

    python -m tools.bench.coding [--hidden 192 256 ...]

Times are those that a peer measures for its planner (:mod:`astra_mesh.peer.code_times`), of GPT-2s
of twelve blocks with random weights in fp32, one thread. A device of N with equal shards encodes
each of its tokens once and decodes N - 1 others for each: ``encode + (N - 1) decode`` in a block,
in units of what the block itself takes for a token. Codes that remember have nearly all
coordinates, the others 0.7 of the hidden size. Results go to docs/data/coding.json.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

from astra_mesh.families import build_model, read_spec
from astra_mesh.peer.code_times import measure_codebook
from astra_mesh.peer.measure import measure, token_s
from astra_mesh.quant.codebook import Codebook
from astra_mesh.wire.messages import ModelId
from tools.bench import command, sizes
from tools.lab import options
from tools.models.common import REPO_ROOT

OUT: Final = REPO_ROOT / "docs" / "data" / "coding.json"
HIDDEN: Final = (192, 256, 384, 512, 768, 1024)
HEAD: Final = 64
DEVICES: Final = (2, 4, 8)


class Row(NamedTuple):
    """One codebook at one rate; shares of what a block takes for a token."""

    hidden_size: int
    block_us: float  # of one token
    codes: str
    bits: int
    encode: float
    decode: float
    devices: dict[int, float]  # encoding and decoding of one device, by their number


def config(hidden_size: int) -> dict[str, Any]:
    """Of a GPT-2 of that size."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": hidden_size,
        "n_head": hidden_size // HEAD,
        "n_layer": 12,
        "n_positions": 1024,
        "vocab_size": 1000,
    }


def measured(hidden_size: int) -> list[Row]:
    """Codebooks shaped as `fit` makes them, at some of their rates."""
    made = config(hidden_size)
    spec, model = read_spec(made), build_model(made, sizes.random_weights(made))
    block_s = token_s(measure(model, None, 0), model)
    no_id = ModelId("0" * 64)
    books: dict[str, tuple[Codebook, tuple[int, ...]]] = {
        "remembering": (sizes.remembering(spec, no_id), (64, 128)),
        "memoryless": (sizes.staged(spec, no_id, (16, 16, 32), sizes.CODEWORDS), (128, 256, 512)),
    }
    rows = []
    for name, (book, rates) in books.items():
        times = measure_codebook(model, book)
        for stages, bits in book.rates.items():
            encode, decode = times.encode_s[stages] / block_s, times.decode_s[stages] / block_s
            devices = {count: encode + (count - 1) * decode for count in DEVICES}
            if bits in rates:
                rows.append(Row(hidden_size, 1e6 * block_s, name, bits, encode, decode, devices))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit statuses of :func:`tools.bench.command.measured`."""
    parser = command.parser(__doc__, OUT)
    parser.add_argument("--hidden", nargs="+", type=options.within(int, HEAD), default=HIDDEN)
    given = parser.parse_args(argv)
    return command.measured(given, lambda save: _measure_all(given.hidden, save))


def _measure_all(hidden: Sequence[int], save: command.Save) -> None:
    torch.set_num_threads(1)
    heads = "".join(f"{f'{count} devices':>11}" for count in DEVICES)
    print(f"hidden  block, us  codes        bits  encode  decode{heads}")
    rows = []
    for hidden_size in hidden:
        for row in measured(hidden_size):
            shares = "".join(f"{share:11.2f}" for share in row.devices.values())
            print(
                f"{row.hidden_size:6} {row.block_us:10.1f}  {row.codes:12} {row.bits:4} "
                f"{row.encode:7.3f} {row.decode:7.3f}{shares}",
                flush=True,
            )
            rows.append(row._asdict())
            save({"machine": {"threads": 1}, "rows": rows})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
