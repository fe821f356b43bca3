"""How a codebook is fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from astra_mesh.errors import CalibrationError
from astra_mesh.limits import STAGES
from astra_mesh.quant.codebook import UNLIMITED, stage_groups

TOKENS_PER_CODEWORD = 10  # fewer leave k-means with codewords of single tokens
WIDE = 512  # hidden size from which remembering takes longer than the bits it saves are worth


@dataclass(frozen=True)
class FitOptions:
    """``vq`` by default: predictive, four rates. ``astra``: ``groups`` x ``codewords``, one rate.

    The defaults of ``ridge``, ``sensitivity`` and ``iterations`` were chosen by measuring; see
    docs/fidelity.md.
    """

    codec: str = "vq"
    history: int = UNLIMITED  # blocks that a prediction looks back; 0: none
    rates: tuple[int, ...] = (16, 32, 64, 128)  # bits per token and block
    default_rate: int = 64
    groups: int = 1  # of the first stage; of the only one for astra
    codewords: int = 256  # of each group
    iterations: int = 12  # of k-means
    max_tokens: int = 65_536  # calibration tokens; bounds memory, see fit_codebook
    sample: int = 50_000  # of them, rows that k-means sees
    sensitivity: float = 0.5  # weight of the sensitivity beside the K,V metric; 0: none
    sensitivity_tokens: int = 50_000
    attention: float | None = 1.0  # rows count by others' attention to this power; None: alike
    ridge: float = 1e-3  # of the prediction, in mean variances
    dropped: float = 0.005  # share of the variance in coordinates that are not coded
    code_first: bool = False  # the first block, too, whose input all devices know; no history
    peers: tuple[int, ...] = (4, 2, 8, 4)  # even shards, one number for each batch in turn
    distributed: bool = True  # a class token on every peer, where there is one
    seed: int = 0

    @classmethod
    def suited(
        cls,
        hidden_size: int,
        *,
        pictures: bool,
        history: int | None = None,
        rates: tuple[int, ...] | None = None,
        codewords: int = 256,
    ) -> FitOptions:
        """What a model gets where nothing else is asked for; None: not asked for.

        Codes that remember need the fewest bits. From a hidden size of :data:`WIDE` on, codes that
        do not, with many in their first stage, are answered with sooner at any usual rate of a
        network (docs/fidelity.md); below 128 bits they lose too much.
        """
        if history is None:
            many = min(rates or (128,)) >= 128
            history = 0 if hidden_size >= WIDE and many else UNLIMITED
        if history:
            return cls(history=history, rates=cls.rates if rates is None else rates)
        rates = (128, 256, 512) if rates is None else rates
        codes = min(rates, default=0) // (codewords - 1).bit_length()
        return cls(
            history=0,
            rates=rates,
            default_rate=256,
            groups=max(1, min(codes, 16)),
            code_first=pictures and hidden_size >= WIDE,
        )

    @property
    def code_bits(self) -> int:
        """Bits of one code."""
        return (self.codewords - 1).bit_length()

    @property
    def stage_groups(self) -> tuple[int, ...]:
        """Groups of each stage."""
        if self.codec == "astra":
            return (self.groups,)
        return stage_groups([rate // self.code_bits for rate in self.rates], self.groups)

    @property
    def stages(self) -> dict[int, int]:
        """Number of stages by rate in bits, ascending."""
        sums, total = {}, 0
        for stage, groups in enumerate(self.stage_groups, 1):
            total += groups
            sums[total * self.code_bits] = stage
        return sums if self.codec == "astra" else {rate: sums[rate] for rate in sorted(self.rates)}

    @property
    def default_stages(self) -> int:
        """Of the rate nearest to the default one."""
        rates = self.stages
        return rates[min(rates, key=lambda rate: (abs(rate - self.default_rate), rate))]

    @property
    def needed_tokens(self) -> int:
        """Calibration tokens without which there is no codebook."""
        return TOKENS_PER_CODEWORD * self.codewords

    def check(self, hidden_size: int) -> None:
        """CalibrationError for settings that cannot be."""
        if self.codec not in ("vq", "astra"):
            raise CalibrationError(f"codec {self.codec!r} has no codebook; use vq or astra")
        if not 2 <= self.codewords <= 65536:
            raise CalibrationError(f"codewords must lie in 2..65536, not {self.codewords}")
        if not 1 <= self.groups <= hidden_size:
            raise CalibrationError(f"groups must lie in 1..{hidden_size}, it is {self.groups}")
        if self.codec == "astra":
            if hidden_size % self.groups or self.history:
                raise CalibrationError("astra needs groups that divide the hidden size, no history")
        else:
            self._check_rates(hidden_size)
        if self.code_first and (self.codec != "vq" or self.history):
            raise CalibrationError(
                "the first block is coded (--code-first) by vq with --history 0 only: predictions "
                "begin with that block's exact input, and astra codes it anyway"
            )
        if self.history < UNLIMITED:
            raise CalibrationError("history is 0 (none), a number of blocks, or -1 (unlimited)")
        for name in ("sensitivity", "ridge"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise CalibrationError(
                    f"{name} must be a finite number of at least 0, it is {value}"
                )
        if self.iterations < 1 or self.max_tokens < 1 or self.sample < 1:
            raise CalibrationError("iterations, max_tokens and sample must be at least 1")
        if self.max_tokens < self.needed_tokens:
            raise CalibrationError(
                f"{self.max_tokens} calibration tokens (--tokens) are too few: {self.codewords} "
                f"codewords need at least {self.needed_tokens}"
            )
        if not self.peers or not all(1 <= count <= 64 for count in self.peers):
            raise CalibrationError("peers must lie in 1..64")

    def _check_rates(self, hidden_size: int) -> None:
        bits = self.code_bits
        if not self.rates:
            raise CalibrationError("no rate is named; give bits per token and block, as 16,64")
        for rate in self.rates:
            if rate < bits * self.groups or rate % bits:
                raise CalibrationError(
                    f"a rate of {rate} bits cannot be: it must be a multiple of {bits} bits (one "
                    f"code for {self.codewords} codewords), {bits * self.groups} or more"
                )
        groups = self.stage_groups
        if max(groups) > hidden_size:
            raise CalibrationError(
                f"a rate of {max(self.rates)} bits needs {max(groups)} groups in one stage, the "
                f"hidden size is {hidden_size}: ask for less"
            )
        if len(groups) > STAGES:
            raise CalibrationError(f"{len(groups)} stages; at most {STAGES} are possible")
