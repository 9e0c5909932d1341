"""Gates: a transform mixed with the identity in the unconstrained space of its support."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor, broadcast_shapes

from emfc.special.precision import eager, wide
from emfc.special.roots import attach_root, increasing_root
from emfc.transforms.affine import MultivariateNormalTransform, NormalAffine, SupportedNormal
from emfc.transforms.base import BroadcastNormal, IndependentNormal, NormalTransform
from emfc.transforms.registry import UnsupportedFamilyError

__all__ = ["GatedReal", "gate_on_reals", "gated"]


def gated(transform: NormalTransform, gate: Tensor) -> NormalTransform:
    r"""The transform opened as far as its gate: :math:`x = c(\lambda g(e) + (1 - \lambda) e)`.

    c is the constraint map of the support and :math:`g = c^{-1} \circ t` the transform seen through it, so that
    gate 1 is the transform and gate 0 the identity followed by the constraint map. Location-scale families of the
    real line, LogNormal and MultivariateNormal stay closed forms; otherwise the inverse is a bracketed solve that
    starts from the open gate.

    Args:
        transform: A transform from `from_normal`.
        gate: Values in [0, 1], of a shape that broadcasts against the values, event dimensions included.

    Returns:
        The gated transform, differentiable with respect to the gate, at exactly 0 and 1 too.

    Raises:
        UnsupportedFamilyError: If the support has no constraint map, or a vector transform is not affine.
    """
    gate = wide(gate)
    if isinstance(transform, IndependentNormal):
        return IndependentNormal(gated(transform.base, gate), transform.dims)
    if isinstance(transform, BroadcastNormal):
        return BroadcastNormal(gated(transform.base, gate), transform.batch_shape, transform.event_shape)
    inner = transform.unconstrained()
    core = gate_on_reals(inner, gate)
    if inner is transform:
        return core
    return SupportedNormal(core, transform.codomain, discrete=transform.discrete)


@singledispatch
def gate_on_reals(transform: NormalTransform, gate: Tensor) -> NormalTransform:
    """Mix a real transform with the identity."""
    if transform.domain.event_dim > 0:
        raise UnsupportedFamilyError(
            f"{transform!r} has no gate: its elements depend on one another; MultivariateNormal has one."
        )
    return GatedReal(transform, gate)


@gate_on_reals.register
def _affine(transform: NormalAffine, gate: Tensor) -> NormalTransform:
    return NormalAffine(gate * transform.loc, 1 + gate * (transform.scale - 1))


@gate_on_reals.register
def _multivariate(transform: MultivariateNormalTransform, gate: Tensor) -> NormalTransform:
    size = transform.loc.shape[-1]
    gate = gate.expand(broadcast_shapes(gate.shape, (size,)))
    scale_tril = gate.unsqueeze(-1) * transform.scale_tril + torch.diag_embed(1 - gate)
    return MultivariateNormalTransform(gate * transform.loc, scale_tril)


@gate_on_reals.register
def _independent(transform: IndependentNormal, gate: Tensor) -> NormalTransform:
    return IndependentNormal(gate_on_reals(transform.base, gate), transform.dims)


@gate_on_reals.register
def _broadcast(transform: BroadcastNormal, gate: Tensor) -> NormalTransform:
    return BroadcastNormal(gate_on_reals(transform.base, gate), transform.batch_shape, transform.event_shape)


class GatedReal(NormalTransform):
    r""":math:`y = \lambda g(e) + (1 - \lambda) e` for an increasing map g of the real line.

    The inverse solves :math:`\lambda v + (1 - \lambda) h(v) = y` for :math:`v = g(e)` with :math:`h = g^{-1}`.
    Its root lies between y and g(y), and no farther from y than :math:`(1 - \lambda) |y - h(y)| / \lambda`.
    """

    def __init__(self, base: NormalTransform, gate: Tensor) -> None:
        super().__init__()
        self.base, self.gate = base, gate
        self.domain = self.codomain = base.domain

    def _stretch(self, ladj: Tensor) -> Tensor:
        """Log-Jacobian of the mix, given that of the base."""
        limit = 0.97 * math.log(torch.finfo(ladj.dtype).max)
        return torch.log(self.gate * torch.exp(ladj.clamp(-limit, limit)) + (1 - self.gate))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed value and log-Jacobian."""
        noise = wide(x)
        value, ladj = self.base.call_and_ladj(noise)
        return self.gate * value + (1 - self.gate) * noise, self._stretch(ladj)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a mixed value."""
        y = wide(y)
        root = self._root(y)
        # One more Newton step, on the noise, whose weights never divide by the gate; it carries first derivatives.
        noise, ladj = self.base.inverse_and_ladj(root)
        residual = self.gate * root + (1 - self.gate) * noise - y
        with torch.no_grad():
            stretch = self._stretch(-ladj)
            slope = self.gate + (1 - self.gate) * torch.exp(ladj)
        noise = noise - residual * torch.exp(-stretch)
        _, ladj = self.base.inverse_and_ladj(attach_root(root, residual, slope))
        return noise, -self._stretch(-ladj)

    def _root(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            gate = self.gate.detach()
            y = y.detach()
            info = torch.finfo(y.dtype)

            def mix(v: Tensor) -> tuple[Tensor, Tensor]:
                noise, ladj = self.base.inverse_and_ladj(v)
                return gate * v + (1 - gate) * noise - y, gate + (1 - gate) * torch.exp(ladj)

            value, slope = mix(y)
            closed = gate < 0.5
            reach = (-value / gate.clamp(min=info.tiny)).clamp(info.min / 8, info.max / 8)
            end, start = y + reach, y - value / slope.clamp(min=info.tiny)
            if not eager() or bool(closed.any()):
                far = self.base.call_and_ladj(y)[0]
                end = torch.where((far - y).abs() < (end - y).abs(), far, end)
                start = torch.where(closed, far, start)
            low, high = torch.minimum(y, end), torch.maximum(y, end)
            low, high = low - 4 * info.eps * low.abs(), high + 4 * info.eps * high.abs()
            low, high, start, y = torch.broadcast_tensors(low, high, start, y)
            knots = self.base.knots()
            if knots is not None:
                low, high, start = self._between(knots, y, low, high, start)
            tolerance = 8 * info.eps * y.abs().clamp(min=1)
            root: Tensor = increasing_root(
                mix, low, high, start.clamp(low, high), tolerance=tolerance, unit=self.base.unit
            )
        return root

    def _between(
        self, knots: tuple[Tensor, Tensor], y: Tensor, low: Tensor, high: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bracket narrowed to the smooth piece that holds the root, and a guess by interpolation in it."""
        at, noise = knots
        gate = self.gate.detach().unsqueeze(-1)
        mixed = gate * at + (1 - gate) * noise
        count = (mixed <= y.unsqueeze(-1)).sum(-1, keepdim=True)
        infinite = (*at.shape[:-1], 1)
        ends = torch.cat((at.new_full(infinite, -torch.inf), at, at.new_full(infinite, torch.inf)), -1)
        left, right = _pick(ends, count), _pick(ends, count + 1)
        last = at.shape[-1] - 1
        below, above = _pick(mixed, (count - 1).clamp(min=0)), _pick(mixed, count.clamp(max=last))
        inner = torch.isfinite(left) & torch.isfinite(right) & (above > below)
        part = (y - below) / torch.where(inner, above - below, 1)
        guess = torch.where(inner, left, 0) + part * torch.where(inner, right - left, 0)
        margin = 4 * torch.finfo(y.dtype).eps
        low = torch.maximum(low, left - margin * left.abs())
        high = torch.minimum(high, right + margin * right.abs())
        return low, torch.maximum(low, high), torch.where(inner, guess, start)

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"GatedReal({self.base!r})"


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Values of the last dimension at an index of shape [..., 1]."""
    return torch.take_along_dim(*_expand_but_last(values, index), dim=-1).squeeze(-1)


def _expand_but_last(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    batch = broadcast_shapes(values.shape[:-1], index.shape[:-1])
    return values.expand(*batch, values.shape[-1]), index.expand(*batch, 1)
