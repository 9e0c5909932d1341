"""The gradient of a flow's log density at its own draws, without inverting autoregressive layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emfc.flows._zuko import AutoregressiveTransform

__all__ = ["Pass", "force", "run_parts"]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}


@dataclass
class Pass:
    """What one pass of noise through the parts of a chain left behind.

    Attributes:
        parts: The parts.
        values: Input of each part and the output of the last, ``[S, *]``.
        ladjs: Log-Jacobian ``[S]`` of each part.
    """

    parts: Sequence[Any]
    values: list[Tensor]
    ladjs: list[Tensor]

    @property
    def value(self) -> Tensor:
        """Output of the last part."""
        return self.values[-1]

    @property
    def ladj(self) -> Tensor:
        """Log-Jacobian ``[S]`` of the whole chain."""
        return torch.stack(self.ladjs).sum(0)


def run_parts(parts: Sequence[Any], noise: Tensor) -> Pass:
    """Sends noise ``[S, N]`` through parts and keeps every value on the way; gradients reach the noise as well."""
    values, ladjs = [noise.detach().requires_grad_()], []
    for part in parts:
        value, ladj = part.call_and_ladj(values[-1])
        values.append(value)
        ladjs.append(ladj)
    return Pass(parts, values, ladjs)


def force(made: Pass) -> Tensor:
    r"""The gradient :math:`\nabla_x \log q(x)` at the draws of a pass, ``[S, D]``; a constant for what follows.

    From part to part, :math:`g' = J^{-T} (g - \nabla_z \log |\det J(z)|)`, begun at :math:`g = -z`. A triangular
    Jacobian is solved by the iteration :math:`g' \leftarrow \mathrm{diag}(J)^{-1} (r - (J - \mathrm{diag}\, J)^T g')`,
    which ends at the solution after at most N rounds and near it, for layers that are close to the identity, after few.

    Source: Vaitl, Winkler, Richter and Kessel (2024), "Fast and unified path gradient estimators for normalizing
    flows", arXiv 2403.15881.
    """
    result = -made.values[0].detach()
    for part, given, image, ladj in zip(made.parts, made.values, made.values[1:], made.ladjs, strict=False):
        if isinstance(part, AutoregressiveTransform):
            result = _triangular(part, given, image, ladj, result)
        else:
            result = _by_inverse(part, image, result)
    return result


def _by_inverse(part: Any, image: Tensor, before: Tensor) -> Tensor:
    """The next force through the inverse of a part, where that takes one pass."""
    with torch.enable_grad():
        held = image.detach().requires_grad_()
        given, ladj = part.inv.call_and_ladj(held)
        (result,) = torch.autograd.grad((given * before).sum() + ladj.sum(), held)
    return result


def _triangular(part: Any, given: Tensor, image: Tensor, ladj: Tensor, before: Tensor) -> Tensor:
    """The next force through a layer with a triangular Jacobian."""
    right: Tensor = before
    if ladj.requires_grad:
        (slope,) = torch.autograd.grad(ladj.sum(), given, retain_graph=True, allow_unused=True)
        right = before if slope is None else before - slope
    with torch.no_grad():
        diagonal = part.meta(given).base.log_abs_det_jacobian(given, image).exp()
    result: Tensor = right / diagonal
    limit = TOLERANCE.get(given.dtype, 1e-5)
    for _ in range(given.shape[-1]):
        (pulled,) = torch.autograd.grad(image, given, result, retain_graph=True)
        left = right - pulled
        result = result + left / diagonal
        if float(left.abs().max()) <= limit * (1 + float(right.abs().max())):
            break
    return result
