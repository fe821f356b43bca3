"""How far rebuilt keys and values can move a block's attention output: a bound that is computed.

The derivation, step by step with the same names, is in ``docs/attention-error.md``. In short, for
one query and head: with ``e`` the errors of the scaled scores (zero for own tokens), ``p`` and
``p^`` the exact and the mixed attention weights, ``w`` the values and ``u`` their errors, both
through the head's columns of the output projection,

    |error| <= min(g(rho) sd_p(e) sqrt(spread), TV diameter)          the softmax's part
             + sqrt(min(m^ sum p^ |u|^2, energy sum p^^2))            the values' part

and heads add up through the output projection. Errors of keys are taken after key norm and rotary
positions, so these need no argument of their own.

Shapes: T rows, B sequences, D hidden, H query heads, E head dimension. Rows are ``(T, B, D)`` and
masks ``(B, 1, T, 2T)`` as in :mod:`astra_mesh.quant.mixed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.families.block import Block

_SQUARINGS = 3  # lambda_max(M) <= (trace M^8)^(1/8), within 1 % to 68 % for E = 64
_LARGEST_RHO = 30.0  # beyond it only the saturated form counts


@dataclass(frozen=True)
class BlockStatistics:
    """What calibration leaves of one block at one rate: plain numbers, to be stored and merged.

    Energies are means over queries of squared norms, after the output projection, without its bias.
    """

    sequences: int
    queries: int
    bound_energy: float  # of the per-query bound
    softmax_energy: float  # of its part from the keys, summed over heads
    value_energy: float  # of its part from the values, summed over heads
    error_energy: float  # of the errors that were observed
    output_energy: float  # of the exact attention output
    worst_energy: float  # the largest mean of the squared bound in one sequence
    remote_mass: float  # mean attention weight on remote tokens
    largest_score_error: float  # of any attended remote key

    @property
    def bound(self) -> float:
        """Bound on the root mean square over queries of the attention output's error."""
        return math.sqrt(self.bound_energy)

    @property
    def observed(self) -> float:
        """The root mean square error that calibration saw, never above :attr:`bound`."""
        return math.sqrt(self.error_energy)

    @property
    def relative_bound(self) -> float:
        """:attr:`bound` in units of the attention output's own root mean square."""
        return math.sqrt(self.bound_energy / self.output_energy) if self.output_energy else 0.0

    @property
    def looseness(self) -> float:
        """How many times the observed error the bound is; 1 where both are zero."""
        return math.sqrt(self.bound_energy / self.error_energy) if self.error_energy else 1.0

    @property
    def sequence_bound(self) -> float:
        """A new sequence's root mean square error exceeds it with a chance of at most
        ``1 / (sequences + 1)``, if it is exchangeable with those of calibration."""
        return math.sqrt(self.worst_energy)

    def tail(self, alpha: float) -> float:
        """A share of at most ``alpha`` of the calibrated queries errs by more (Markov)."""
        return math.sqrt(self.bound_energy / alpha)

    def merge(self, other: BlockStatistics) -> BlockStatistics:
        """The statistics of both sets of sequences."""
        mine, theirs = asdict(self), asdict(other)
        total = self.queries + other.queries
        merged = {
            name: (mine[name] * self.queries + theirs[name] * other.queries) / total
            for name in mine
        }
        for name in ("worst_energy", "largest_score_error"):
            merged[name] = max(mine[name], theirs[name])
        merged |= {"sequences": self.sequences + other.sequences, "queries": total}
        return BlockStatistics(**merged)

    def to_dict(self) -> dict[str, float]:
        """As plain numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> BlockStatistics:
        """What :meth:`to_dict` gave; KeyError where something is missing."""
        counts = ("sequences", "queries")
        read = {
            one.name: int(values[one.name]) if one.name in counts else float(values[one.name])
            for one in fields(cls)
        }
        return cls(**read)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Heads:
    """One batch as every head sees it; ``errors`` are zero for own tokens."""

    weights: Tensor  # (B, H, T, 2T) exact attention, the columns of own tokens first
    mixed: Tensor  # (B, H, T, 2T) attention with rebuilt keys
    errors: Tensor  # (B, H, T, 2T) of the scaled scores, zero where a column is not attended
    values: Tensor  # (B, H, T, E) exact
    moved: Tensor  # (B, H, T, E) rebuilt values less exact ones


@dataclass(frozen=True)
class _Parts:
    """The bound's parts of every query and head, (B, H, T)."""

    softmax: Tensor
    value: Tensor


class AttentionBound:
    """The bound of one block; what depends on the weights alone is computed once."""

    def __init__(self, block: Block) -> None:
        self._block = block
        # W_o = [Q_1 R_1, Q_2 R_2, ...]: norms after the projection from E numbers per head.
        per_head = block.out.weight.detach().unflatten(1, (-1, block.spec.head_dim)).transpose(0, 1)
        frames, self._factors = torch.linalg.qr(per_head)  # (H, D, r), (H, r, E)
        gram = frames.transpose(0, 1).flatten(1)
        self._overlap = float(torch.linalg.matrix_norm(gram, ord=2))  # of [Q_1, Q_2, ...]

    @torch.no_grad()
    def query_bound(self, x: Tensor, rebuilt: Tensor, mask: Tensor) -> Tensor:
        """An upper bound (T, B) on what :meth:`observed` gives, for every single query.

        Args:
            x: (T, B, D) float32, the block's input.
            rebuilt: (T, B, D) float32, ``n`` as the others hold it.
            mask: (B, 1, T, 2T) bool, which of [exact keys, rebuilt keys] a row attends.
        """
        found = self._join(self._parts(self._heads(x, rebuilt, mask)))
        return found.transpose(0, 1)

    @torch.no_grad()
    def observed(self, x: Tensor, rebuilt: Tensor, mask: Tensor) -> Tensor:
        """The norms (T, B) of the mixed less the exact attention output, after ``out``."""
        error, _ = self._error_and_output(self._heads(x, rebuilt, mask))
        norms: Tensor = error.norm(dim=-1)
        return norms.transpose(0, 1)

    @torch.no_grad()
    def collect(self, x: Tensor, rebuilt: Tensor, mask: Tensor) -> BlockStatistics:
        """The statistics of one calibration batch; arguments as in :meth:`query_bound`."""
        heads = self._heads(x, rebuilt, mask)
        parts = self._parts(heads)
        bound = self._join(parts).square().double()  # (B, T)
        error, output = self._error_and_output(heads)
        remote = heads.weights[..., heads.weights.shape[-1] // 2 :]
        return BlockStatistics(
            sequences=bound.shape[0],
            queries=bound.numel(),
            bound_energy=float(bound.mean()),
            softmax_energy=float(parts.softmax.square().sum(1).double().mean()),
            value_energy=float(parts.value.square().sum(1).double().mean()),
            error_energy=float(error.square().sum(-1).double().mean()),
            output_energy=float(output.square().sum(-1).double().mean()),
            worst_energy=float(bound.mean(1).max()),
            remote_mass=float(remote.sum(-1).double().mean()),
            largest_score_error=float(heads.errors.abs().max()),
        )

    def _heads(self, x: Tensor, rebuilt: Tensor, mask: Tensor) -> _Heads:
        n = self._block.normalize(x)
        query, _ = self._block.project(n, 0)
        query = query.permute(1, 2, 3, 0, 4).flatten(1, 2)  # (B, H, T, E)
        keys, values = self._by_head(self._block.key_value(n, 0))
        held_keys, held_values = self._by_head(self._block.key_value(rebuilt, 0))
        scale = 1 / math.sqrt(query.shape[-1])
        scores = query @ keys.mT * scale
        errors = query @ (held_keys - keys).mT * scale
        errors = torch.cat([torch.zeros_like(errors), errors], dim=-1)
        both = torch.cat([scores, scores], dim=-1).masked_fill(~mask, -math.inf)
        return _Heads(
            weights=both.softmax(-1),
            mixed=(both + errors).softmax(-1),
            errors=errors * mask,
            values=values,
            moved=held_values - values,
        )

    def _by_head(self, rows: Tensor) -> Tensor:
        """Rows (T, B, 2, H_kv, E) as keys and values (2, B, H, T, E)."""
        groups = self._block.spec.heads_per_kv
        return rows.permute(2, 1, 3, 0, 4).repeat_interleave(groups, dim=2)

    def _parts(self, heads: _Heads) -> _Parts:
        factors = self._factors.mT
        softmax = _softmax_part(heads.weights, heads.errors, heads.values @ factors)
        return _Parts(softmax, _value_part(heads.mixed, heads.moved @ factors))

    def _join(self, parts: _Parts) -> Tensor:
        """The bound (B, T) of the sum over heads."""
        each = parts.softmax + parts.value
        return torch.minimum(each.sum(1), self._overlap * each.norm(dim=1))

    def _error_and_output(self, heads: _Heads) -> tuple[Tensor, Tensor]:
        """Error and exact output (B, T, D) of the attention, without the projection's bias."""
        exact = _attend(heads.weights, heads.values, heads.values)
        mixed = _attend(heads.mixed, heads.values, heads.values + heads.moved)
        return self._project(mixed - exact), self._project(exact)

    def _project(self, attended: Tensor) -> Tensor:
        """Heads (B, H, T, E) to (B, T, D)."""
        return F.linear(attended.transpose(1, 2).flatten(2), self._block.out.weight)


def _attend(weights: Tensor, own: Tensor, remote: Tensor) -> Tensor:
    """Weights (B, H, T, 2T) over own and remote values (B, H, T, E): (B, H, T, E)."""
    return weights @ torch.cat([own, remote], dim=2)


def _softmax_part(weights: Tensor, errors: Tensor, values: Tensor) -> Tensor:
    """Bound (B, H, T) on ``|sum (p^ - p) w|``: steps 3 to 5 of the derivation."""
    mean = (weights * errors).sum(-1, keepdim=True)
    deviation = (weights * (errors - mean).square()).sum(-1).sqrt()
    high, low = errors.amax(-1).clamp(min=0), errors.amin(-1).clamp(max=0)
    rho = (high - mean.squeeze(-1)).clamp(min=0)
    own, remote = weights.chunk(2, dim=-1)
    spread = _spread(own + remote, values).sqrt()
    smooth = _growth(rho) * deviation * spread
    smooth = smooth.masked_fill(rho > _LARGEST_RHO, math.inf)
    saturated = total_variation(remote.sum(-1), low, high) * _diameter(values)
    return torch.minimum(smooth, saturated)


def _growth(rho: Tensor) -> Tensor:
    """``(exp(rho) - 1) / rho``, 1 at zero."""
    safe = rho.clamp(1e-6, _LARGEST_RHO)
    return torch.expm1(safe) / safe


def total_variation(mass: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The largest total variation between softmaxes whose scores differ within [low, high] on a set
    of weight ``mass`` and not at all elsewhere; ``low <= 0 <= high``. ``tanh((high - low) / 4)``
    for a mass of one. Sharp: step 5 of the derivation.
    """
    tiny = torch.finfo(mass.dtype).tiny
    mass = mass.clamp(tiny, 1)  # what underflowed may still grow to something
    rest = 1 - mass
    ratio, gap = torch.exp(low - high), -torch.expm1(low - high)  # A / B, 1 - A / B
    up, down = -torch.expm1(-high), -torch.expm1(low)  # 1 - 1 / B, 1 - A
    wide = gap.clamp(min=tiny)

    root = (mass * ratio + rest * torch.exp(-high)).sqrt()  # weight moves up within the set
    inside = ((mass * gap + rest * up) / (1 + root)).square() / wide
    edge = mass * rest * up / (mass + rest * torch.exp(-high)).clamp(min=tiny)
    rising = torch.where(root * (1 - root) / wide <= mass, inside, edge)

    root = (mass + rest * torch.exp(-high)).sqrt()  # weight moves down within the set
    fall = (gap - rest * up) / (root + ratio.sqrt()).clamp(min=tiny)
    edge = mass * rest * down / (rest + mass * torch.exp(low)).clamp(min=tiny)
    falling = torch.where(root * fall / wide <= mass, fall.square() / wide, edge)
    return torch.maximum(rising, falling).clamp(max=1)


def _spread(weights: Tensor, values: Tensor) -> Tensor:
    """At least the largest variance in any direction of ``values`` (B, H, T, E) under each row of
    ``weights`` (B, H, T, T): (B, H, T)."""
    flat, rows = weights.flatten(0, 1), values.flatten(0, 1)
    found = [_top_variance(p, w) for p, w in zip(flat, rows, strict=True)]  # bounds the memory
    spread: Tensor = torch.stack(found).unflatten(0, weights.shape[:2])
    return spread


def _top_variance(p: Tensor, w: Tensor) -> Tensor:
    """:func:`_spread` of one sequence and head: weights (T, S), values (S, E) to (T,)."""
    w = w - w.mean(0)
    mean = p @ w
    moment = p @ (w[:, :, None] * w[:, None, :]).flatten(1)
    covariance = moment.unflatten(1, (w.shape[1], -1)) - mean[:, :, None] * mean[:, None, :]
    trace = _trace(covariance).clamp(min=0)
    power = covariance / trace.clamp(min=torch.finfo(w.dtype).tiny)[:, None, None]
    for _ in range(_SQUARINGS):
        power = power @ power
    top: Tensor = trace * _trace(power).pow(0.5**_SQUARINGS).clamp(max=1)
    return top


def _trace(matrices: Tensor) -> Tensor:
    diagonals: Tensor = matrices.diagonal(dim1=-2, dim2=-1)
    return diagonals.sum(-1)


def _diameter(values: Tensor) -> Tensor:
    """The largest distance (B, H, 1) between two of the values (B, H, T, E) of a sequence."""
    apart = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.amax((-2, -1)).unsqueeze(-1)


def _value_part(mixed: Tensor, moved: Tensor) -> Tensor:
    """Bound (B, H, T) on ``|sum p^ u|`` over remote tokens, u (B, H, T, E): step 6."""
    remote = mixed[..., mixed.shape[-1] // 2 :]
    apart = remote.sum(-1) * (remote @ moved.square().sum(-1, keepdim=True)).squeeze(-1)
    top = torch.linalg.eigvalsh(moved.mT @ moved)[..., -1:].clamp(min=0)  # (B, H, 1)
    return torch.minimum(apart, top * remote.square().sum(-1)).sqrt()


def residual_moment(n: Tensor, rebuilt: Tensor) -> Tensor:
    """The codebook's residual statistics (D, D): mean of ``(n^ - n)(n^ - n)'`` over all rows."""
    residual = (rebuilt - n).flatten(0, -2)
    return residual.mT @ residual / len(residual)


def attention_sensitivity(
    block: Block, x: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """What the block makes of residuals to first order: (D, D), positive semidefinite.

    Mean over queries of ``sum_j J_tj' J_tj``, J_tj (D, D) the derivative of the attention output of
    query t with respect to remote token j; an unbiased estimate by one random probe per query.
    """
    n = block.normalize(x).detach()
    held = n.clone().requires_grad_()
    query, rows = block.project(n, 0)
    both = torch.cat([rows, block.key_value(held, 0)]).permute(2, 1, 3, 0, 4)
    key, value = both.repeat_interleave(block.spec.heads_per_kv, dim=2).unbind(0)
    wide = query.permute(1, 2, 3, 0, 4).flatten(1, 2)
    out = F.scaled_dot_product_attention(wide, key, value, attn_mask=mask)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(2), block.out.weight)
    probe = torch.randint(2, out.shape, generator=generator).to(out) * 2 - 1
    (gradient,) = torch.autograd.grad(out, held, probe)
    flat = gradient.flatten(0, 1)
    return flat.mT @ flat / len(flat)


def estimate(sensitive: Tensor, moment: Tensor) -> float:
    """An *estimate* of the root mean square error, no bound: first order, residuals taken as
    uncorrelated between tokens and with the attention that a token gets (step 9)."""
    return math.sqrt(max(float((sensitive * moment).sum()), 0.0))
