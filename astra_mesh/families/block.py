"""The transformer block of all families, in the steps that the engine interleaves with the mesh.

The input of the K,V projection is what peers send each other in coded form. It is ``n``, the
normalized block input *without* the norm's affine part, which is folded into the projections; hence
K and V are linear in ``n`` (plus a bias), and a receiver can decode them by table lookups. In a
post-LN block ``n`` is the block input itself.

Shapes: T tokens, S keys, D hidden, H_kv key/value heads, G query heads per key/value head, E head
dimension. Queries are ``(H_kv, G, T, E)``; keys and values share rows ``(S, 2, H_kv, E)``, so that
appending tokens and decoding codes both write whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_mesh.errors import UnsupportedModelError
from astra_mesh.families.spec import ModelSpec

Activation = Callable[[Tensor], Tensor]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


def activation(name: str) -> Activation:
    """The function for a Hugging Face activation name; UnsupportedModelError for others."""
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"the activation {name!r} is not supported; known: {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


class Norm(nn.Module):
    """Layer norm or RMS norm over the last dimension, with or without its affine part."""

    def __init__(
        self, kind: str, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        if self.weight is not None and self.weight.dtype != x.dtype:
            return self.forward(x.to(self.weight.dtype)).to(x.dtype)
        if self.kind == "rms":
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class Linear(nn.Module):
    """``x @ weight.T + bias`` with given tensors; weight (out, in).

    ``column_scale`` (in,) is what :func:`fold_norm` multiplied the checkpoint's weight by; None
    where nothing was folded in.
    """

    column_scale: Tensor | None = None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.contiguous())

    @property
    def dtype(self) -> torch.dtype:
        """Of what comes out."""
        return self.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

    def activated(self, x: Tensor, act: Activation) -> Tensor:
        """``act`` of the outputs: (..., in) to (..., out)."""
        return act(self(x))

    def outputs_from(self, x: Tensor, start: int) -> Tensor:
        """(..., in) to (..., out - start): the outputs from ``start`` on."""
        bias = None if self.bias is None else self.bias[start:]
        return F.linear(x.to(self.weight.dtype), self.weight[start:], bias)


def fold_norm(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor, norm_bias: Tensor | None
) -> Linear:
    """The layer that applied to a bare norm equals ``weight, bias`` applied to the affine one."""
    if norm_bias is not None:
        shift = weight @ norm_bias
        bias = shift if bias is None else bias + shift
    layer = Linear(weight * norm_weight, bias)
    layer.column_scale = norm_weight.detach()
    return layer


class Rope(nn.Module):
    """Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Llama."""

    def __init__(self, inverse_frequency: Tensor, max_tokens: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.inverse_frequency = inverse_frequency  # no buffer: stays float32 in a bfloat16 model
        self._cached = torch.empty(0), torch.empty(0)

    def _turns(self, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (at least ``stop``, E). Threads may share them: what is cached
        is whole and never written again."""
        cos, sin = self._cached
        if len(cos) >= stop and (cos.dtype, cos.device) == (like.dtype, like.device):
            return cos, sin
        length = min(self.max_tokens, max(stop, 2 * len(cos), 128))
        with torch.inference_mode(False):  # training uses what inference has cached
            angles = torch.arange(length, dtype=torch.float32)[:, None] * self.inverse_frequency
            angles = torch.cat([angles, angles], dim=-1)  # (length, E)
            cos, sin = angles.cos().to(like), angles.sin().to(like)
            sin[:, : angles.shape[-1] // 2].neg_()  # of the half that is turned
        self._cached = cos, sin
        return cos, sin

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Rotate ``x`` (T, ..., E), whose first row has position ``start``."""
        stop = start + x.shape[0]
        shape = (x.shape[0],) + (1,) * (x.dim() - 2) + (x.shape[-1],)
        cos, sin = (one[start:stop].view(shape) for one in self._turns(stop, x))
        half = x.shape[-1] // 2
        turned = torch.cat([x[..., half:], x[..., :half]], dim=-1)
        return turned.mul_(sin).addcmul_(x, cos)


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))`` with gate and up in one matrix."""

    def __init__(self, up: Linear, down: Linear, act: Activation, gated: bool) -> None:
        super().__init__()
        self.up, self.down, self.act, self.gated = up, down, act, gated

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        if self.gated:
            gate, value = self.up(x).chunk(2, dim=-1)
            return self.down(self.act(gate) * value)  # type: ignore[no-any-return]
        return self.down(self.up.activated(x, self.act))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One transformer block. Pre-LN: bare norms (affine folded); post-LN: affine norms."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        post_norm: bool,
        norm_1: Norm,
        norm_2: Norm,
        qkv: Linear,  # (q_size + 2 kv_size, D)
        out: Linear,  # (D, q_size)
        ffn: FeedForward,
        rope: Rope | None = None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.post_norm = spec, post_norm
        self.norm_1, self.norm_2, self.qkv, self.out, self.ffn = norm_1, norm_2, qkv, out, ffn
        self.rope, self.q_norm, self.k_norm = rope, q_norm, k_norm

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """The block's output (T, D) of a whole sequence on one device, with one fused attention."""
        query, rows = self.query_key_value(self.normalize(x), 0)
        key, value = (
            part.transpose(0, 1).unsqueeze(1).expand(-1, query.shape[1], -1, -1)
            for part in rows.unbind(1)
        )
        out = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.mix(x, out.permute(2, 0, 1, 3).reshape(len(x), -1))

    def normalize(self, x: Tensor) -> Tensor:
        """``n`` for block input ``x``: (T, D) to (T, D)."""
        return x if self.post_norm else self.norm_1(x)

    @property
    def kv_weight(self) -> Tensor:
        """(2 kv_size, D): keys' rows, then values', of the folded projection."""
        return self.qkv.weight[self.spec.q_size :]

    @property
    def kv_bias(self) -> Tensor | None:
        """(2 kv_size,) or None."""
        return None if self.qkv.bias is None else self.qkv.bias[self.spec.q_size :]

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.qkv.dtype

    def project_key_value(self, n: Tensor) -> Tensor:
        """Raw keys and values (T, 2 kv_size) of ``n`` (T, D)."""
        return self.qkv.outputs_from(n, self.spec.q_size)

    def key_value(self, n: Tensor, start: int) -> Tensor:
        """Keys and values (T, 2, H_kv, E) of ``n`` (T, D)."""
        return self.finish_key_value(self.project_key_value(n), start)

    def query_key_value(self, n: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Queries (H_kv, G, T, E) of ``n`` (T, D) and its :meth:`key_value`, in one product."""
        query, rows = self.project(n, start)
        return query.permute(1, 2, 0, 3), rows

    def query_key_value_each(self, n: Tensor, places: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """:meth:`query_key_value` of each row of ``n`` (B, D), tokens of B texts at ``places``."""
        wide, size = self.qkv(n), self.spec.q_size
        return [
            (
                self._finish_query(row[:, :size], at).permute(1, 2, 0, 3),
                self.finish_key_value(row[:, size:], at),
            )
            for row, at in zip(wide.split(1), places, strict=True)
        ]

    def project(self, n: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Queries (T, ..., H_kv, G, E) and rows (T, ..., 2, H_kv, E) of ``n`` (T, ..., D)."""
        wide = self.qkv(n)
        size = self.spec.q_size
        return (
            self._finish_query(wide[..., :size], start),
            self.finish_key_value(wide[..., size:], start),
        )

    def _finish_query(self, raw: Tensor, start: int) -> Tensor:
        s = self.spec
        q: Tensor = raw.unflatten(-1, (s.num_key_value_heads, s.heads_per_kv, s.head_dim))
        if self.q_norm is not None:
            q = self.q_norm(q)
        return q if self.rope is None else self.rope(q, start)

    def finish_key_value(self, raw: Tensor, start: int) -> Tensor:
        """Raw projection (T, ..., 2 kv_size) to rows (T, ..., 2, H_kv, E): key norm and rotation
        applied."""
        rows: Tensor = raw.unflatten(-1, (2, self.spec.num_key_value_heads, self.spec.head_dim))
        if self.k_norm is None and self.rope is None:
            return rows
        keys, values = rows.unbind(-3)
        if self.k_norm is not None:
            keys = self.k_norm(keys)
        if self.rope is not None:
            keys = self.rope(keys, start)
        return torch.stack([keys, values], dim=-3)

    def mix(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output (T, D) of its input ``x`` (T, D) and the heads (T, q_size)."""
        x = x + self.out(attended)
        if self.post_norm:
            x = self.norm_1(x)
            return self.norm_2(x + self.ffn(x))  # type: ignore[no-any-return]
        return x + self.ffn(self.norm_2(x))  # type: ignore[no-any-return]
