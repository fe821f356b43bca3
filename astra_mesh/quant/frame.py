"""The coordinates of one block's quantizer: which errors count, and how the groups are cut.

Errors are measured by a quadratic form ``r M r^T`` of the error ``r`` (D,) of n^. Its two parts:

* the K,V metric: the error of the keys and of the values, each scaled to unit energy;
* the sensitivity (:mod:`astra_mesh.quant.sensitivity`): how much the model's answer changes.

Coordinates are ``y = analysis @ r`` with ``|y|^2 = r M r^T``, rotated to the principal axes of the
data, so that groups of them can be balanced.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from astra_mesh.errors import CalibrationError
from astra_mesh.families.block import Block

KEPT = 1e-7  # of the largest variance: coordinates below it are left out


@dataclass(frozen=True)
class Frame:
    """See :mod:`astra_mesh.quant.codebook`."""

    analysis: Tensor  # (R, D) float32
    synthesis: Tensor  # (D, R) float32
    variances: Tensor  # (R,) float64, falling


def make_frame(residual: Tensor, metric: Tensor, dropped: float = 0.0) -> Frame:
    """Coordinates for rows like ``residual`` (N, D) under ``metric`` (D, D) float64, without the
    smallest ones that hold ``dropped`` of the variance together.

    ``synthesis`` is the linear regression of the residual on its coordinates, which equals the
    inverse where the metric sees every direction, and is the best guess where it does not.

    Raises:
        CalibrationError: all rows are equal.
    """
    covariance = (residual.T @ residual).double() / len(residual)
    values, vectors = torch.linalg.eigh(metric)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    variances, axes = torch.linalg.eigh(root @ covariance @ root)
    if not float(variances[-1]) > 0:
        raise CalibrationError("the calibration inputs are all alike; give others")
    kept = variances > KEPT * variances[-1]
    kept &= variances.cumsum(0) > dropped * variances.sum()
    variances, axes = variances[kept].flip(0), axes[:, kept].flip(1)
    analysis = axes.T @ root
    synthesis = covariance @ analysis.T / variances
    return Frame(analysis.float(), synthesis.float(), variances)


def kv_metric(centered: Tensor, block: Block) -> Tensor:
    """(D, D) float64: error of keys and of values, each over its energy in ``centered`` (N, D)."""
    keys, values = block.kv_weight.double().chunk(2)
    covariance = (centered.T @ centered).double() / len(centered)

    def unit(part: Tensor) -> Tensor:
        form = part.T @ part
        return form / (form * covariance).sum().clamp_min(1e-12)

    return unit(keys) + unit(values)


def mixed_metric(kv: Tensor, sensitivity: Tensor | None, share: float) -> Tensor:
    """The K,V metric and ``share`` times the sensitivity, both scaled to trace one."""
    found = kv / kv.trace()
    if sensitivity is not None and float(sensitivity.trace()) > 0:
        found = found + share * sensitivity / sensitivity.trace()
    return found


def balanced_order(variances: Tensor, groups: int) -> Tensor:
    """(groups * W,) int64: the coordinates in groups of close log-variance; R fills up."""
    count = len(variances)
    falling = torch.argsort(variances, descending=True, stable=True)
    width = -(-count // groups)
    order = torch.full((groups, width), count, dtype=torch.int64)
    for group, members in enumerate(balance(variances[falling], groups)):
        order[group, : len(members)] = falling[torch.tensor(members, dtype=torch.int64)]
    return order.flatten()


def balance(values: Tensor, groups: int) -> list[list[int]]:
    """Indices of ``values`` (falling variances) in groups of equal size and close log-product.

    Each next dimension goes to the group with the smallest product so far that still has room
    (eigenvalue allocation of optimized product quantization).
    """
    width = -(-len(values) // groups)
    floor = max(float(values[0]) * 1e-12, 1e-300)
    logs = (values.double() / values[-1].double().clamp_min(floor)).clamp_min(1.0).log().tolist()
    totals, members = [0.0] * groups, [list[int]() for _ in range(groups)]
    for index, log in enumerate(logs):
        room = [g for g in range(groups) if len(members[g]) < width]
        group = min(room, key=lambda g: (totals[g], len(members[g])))
        members[group].append(index)
        totals[group] += log
    return members
