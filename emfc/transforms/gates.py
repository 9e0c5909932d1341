"""Gates: a transform mixed with the identity in the unconstrained space of its support."""

from __future__ import annotations

import math

import torch
from torch import Tensor, broadcast_shapes

from emfc.special.normal import log_normal_density
from emfc.special.precision import eager, outside_graphs, wide
from emfc.special.roots import Bracket, attach_root, increasing_inverse
from emfc.transforms.affine import MultivariateNormalTransform, NormalAffine, SupportedNormal
from emfc.transforms.base import BroadcastNormal, IndependentNormal, NormalTransform
from emfc.transforms.dispatch import class_dispatch
from emfc.transforms.family import CDFTransform
from emfc.transforms.parameter_gates import gate_on_parameters
from emfc.transforms.registry import UnsupportedFamilyError
from emfc.transforms.supports import RealLine
from emfc.transforms.triangular import TriangularTransform

__all__ = ["GatedCDF", "GatedReal", "GatedTriangular", "gate_on_reals", "gated"]


def gated(transform: NormalTransform, gate: Tensor, *, form: str = "value") -> NormalTransform:
    r"""The transform opened as far as its gate: :math:`x = c(\lambda g(e) + (1 - \lambda) e)`.

    c is the constraint map of the support and :math:`g = c^{-1} \circ t` the transform seen through it, so that
    gate 1 is the transform and gate 0 the identity followed by the constraint map. At gate 1 exactly, continuous
    univariate families give the very numbers of the transform; beside it those of the unconstrained coordinate, whose
    rounding shows where a family's spread is small beside its distance from the support's end. Location-scale families
    of the real line, LogNormal and MultivariateNormal stay closed forms; otherwise the inverse is a bracketed solve
    that starts from the open gate, element after element where a vector's elements follow one another.

    Args:
        transform: A transform from `from_normal`.
        gate: Values in [0, 1], of a shape that broadcasts against the values, event dimensions included.
        form: ``"value"``, or ``"parameter"`` to gate location and scale instead where the transform, seen through its
            constraint map, has these (`gate_on_parameters`); others are mixed in value.

    Returns:
        The gated transform, differentiable with respect to the gate, at exactly 0 and 1 too.

    Raises:
        UnsupportedFamilyError: If the support has no constraint map, or a vector transform is neither affine nor
            triangular.
    """
    gate = wide(gate)
    if isinstance(transform, IndependentNormal):
        return IndependentNormal(gated(transform.base, gate, form=form), transform.dims)
    if isinstance(transform, BroadcastNormal):
        return BroadcastNormal(gated(transform.base, gate, form=form), transform.batch_shape, transform.event_shape)
    inner = transform.unconstrained()
    core = gate_on_parameters(inner, gate) if form == "parameter" else None
    if core is None:
        core = gate_on_reals(inner, gate)
    if inner is transform:
        return core
    if isinstance(transform, CDFTransform) and not (
        transform.discrete or isinstance(transform.family.support_map, RealLine)
    ):
        return GatedCDF(transform, gate)
    return SupportedNormal(core, transform.codomain, discrete=transform.discrete)


@class_dispatch
def gate_on_reals(transform: NormalTransform, gate: Tensor) -> NormalTransform:
    """Mix a real transform with the identity."""
    if transform.domain.event_dim > 0:
        raise UnsupportedFamilyError(
            f"{transform!r} has no gate: its elements depend on one another, and not in order; MultivariateNormal has "
            "one."
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


@gate_on_reals.register
def _triangular(transform: TriangularTransform, gate: Tensor) -> NormalTransform:
    return GatedTriangular(transform, gate)


def _stretch(ladj: Tensor, gate: Tensor) -> Tensor:
    """Log-Jacobian of a mix with the identity, given that of the map."""
    limit = 0.97 * math.log(torch.finfo(ladj.dtype).max)
    return torch.log(gate * torch.exp(ladj.clamp(-limit, limit)) + (1 - gate))


class GatedReal(NormalTransform):
    r""":math:`y = \lambda g(e) + (1 - \lambda) e` for an increasing map g of the real line.

    The inverse solves :math:`\lambda v + (1 - \lambda) h(v) = y` for :math:`v = g(e)` with :math:`h = g^{-1}`.
    Its root lies between y and g(y), and no farther from y than :math:`(1 - \lambda) |y - h(y)| / \lambda`.
    """

    def __init__(self, base: NormalTransform, gate: Tensor) -> None:
        super().__init__()
        self.base, self.gate = base, gate
        self.domain = self.codomain = base.domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed value and log-Jacobian."""
        noise = wide(x)
        value, ladj = self.base.call_and_ladj(noise)
        return self.gate * value + (1 - self.gate) * noise, _stretch(ladj, self.gate)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a mixed value."""
        y = wide(y)
        root = self._root(y)
        # One more Newton step, on the noise, whose weights never divide by the gate; it carries first derivatives.
        noise, ladj = self.base.inverse_and_ladj(root)
        residual = self.gate * root + (1 - self.gate) * noise - y
        with torch.no_grad():
            stretch = _stretch(-ladj, self.gate)
            slope = self.gate + (1 - self.gate) * torch.exp(ladj)
        noise = noise - residual * torch.exp(-stretch)
        _, ladj = self.base.inverse_and_ladj(attach_root(root, residual, slope))
        return noise, -_stretch(-ladj, self.gate)

    @outside_graphs
    def _root(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            gate = self.gate.detach()
            y = y.detach()
            info = torch.finfo(y.dtype)

            def mix(v: Tensor) -> tuple[Tensor, Tensor]:
                noise, ladj = self.base.inverse_and_ladj(v)
                return gate * v + (1 - gate) * noise, 1 / (gate + (1 - gate) * torch.exp(ladj))

            value, slope = mix(y)
            miss = y - value
            closed = (gate < 0.5) | (miss.abs() > 10)
            reach = (miss / gate.clamp(min=info.tiny)).clamp(info.min / 8, info.max / 8)
            end, start = y + reach, y + (miss * slope).clamp(info.min / 8, info.max / 8)
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
            bracket = Bracket(low, high, None, (info.min / 8, info.max / 8))
            start = torch.minimum(torch.maximum(start, low), high)
            tolerance = 8 * info.eps * y.abs().clamp(min=1)
            root = increasing_inverse(mix, y, bracket, start, tolerance=tolerance, unit=self.base.unit)
        return root.at

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


class GatedCDF(SupportedNormal):
    """The gate of a univariate family whose support has ends: at gate 1 with the family's own values and noises."""

    def __init__(self, program: CDFTransform, gate: Tensor) -> None:
        super().__init__(GatedReal(program.unconstrained(), gate), program.codomain, discrete=program.discrete)
        self.program, self.gate = program, gate

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed value and log-Jacobian."""
        noise, family = wide(x), self.program.family
        at, log_prob = family.draw(noise)
        inner, step = family.support_map.coordinate(at)
        ladj = log_normal_density(noise) - (log_prob + step)
        value, stretch = self.map.call_and_ladj(self.gate * inner + (1 - self.gate) * noise)
        return self._own(at.value, value), _stretch(ladj, self.gate) + stretch

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a mixed value."""
        noise, ladj = super().inverse_and_ladj(y)
        if eager() and not bool((self.gate == 1).any()):
            return noise, ladj
        with torch.no_grad():
            own_noise, own_ladj = self.program.inverse_and_ladj(y.detach())
        return self._own(own_noise, noise), self._own(own_ladj, ladj)

    def _own(self, own: Tensor, mixed: Tensor) -> Tensor:
        """The program's number at gate 1, with the derivatives of the mixed one, which know the gate."""
        number = own.detach() + (mixed - mixed.detach())
        return torch.where((self.gate == 1) & mixed.detach().isfinite(), number, mixed)

    def __repr__(self) -> str:
        return f"GatedCDF({self.program!r})"


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Values of the last dimension at an index of shape [..., 1]."""
    return torch.take_along_dim(*_expand_but_last(values, index), dim=-1).squeeze(-1)


def _expand_but_last(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    batch = broadcast_shapes(values.shape[:-1], index.shape[:-1])
    return values.expand(*batch, values.shape[-1]), index.expand(*batch, 1)


class GatedTriangular(TriangularTransform):
    r""":math:`y_d = \lambda_d g_d(e_d; x_{<d}) + (1 - \lambda_d) e_d`, where :math:`x_d = g_d(e_d; x_{<d})`.

    The inverse solves one element after another: its noise gives the ungated value that the next ones depend on.
    """

    def __init__(self, base: TriangularTransform, gate: Tensor) -> None:
        super().__init__()
        self.base, self.size = base, base.size
        self.gate = gate.expand(broadcast_shapes(gate.shape, (self.size,)))
        self.domain, self.codomain = base.domain, base.codomain

    def call_elements(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed values and the logs of the Jacobian's diagonal."""
        noise = wide(noise)
        value, slopes = self.base.call_elements(noise)
        return self.gate * value + (1 - self.gate) * noise, _stretch(slopes, self.gate)

    def _step(self, place: int, mixed: Tensor, opened: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise and log-Jacobian of one mixed element, and the ungated values up to it."""
        conditional = self.base.conditional(place, opened)
        noise, slope = gated(conditional, self.gate[..., place]).inverse_and_ladj(mixed)
        value = conditional.call_and_ladj(noise)[0].unsqueeze(-1)
        batch = broadcast_shapes(opened.shape[:-1], value.shape[:-1])
        return noise, slope, torch.cat((opened.expand(*batch, place), value.expand(*batch, 1)), -1)

    def _steps(self, mixed: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        mixed = wide(mixed)
        opened = mixed[..., :0]
        noises: list[Tensor] = []
        slopes: list[Tensor] = []
        for place in range(mixed.shape[-1]):
            noise, slope, opened = self._step(place, mixed[..., place], opened)
            noises.append(noise)
            slopes.append(slope)
        return noises, slopes, opened

    def inverse_elements(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Noises of mixed values, and the logs of the inverse Jacobian's diagonal."""
        noises, slopes, _ = self._steps(value)
        return torch.stack(torch.broadcast_tensors(*noises), -1), torch.stack(torch.broadcast_tensors(*slopes), -1)

    def conditional(self, place: int, before: Tensor) -> NormalTransform:
        """The gated transform of one element given the mixed values before it."""
        return gated(self.base.conditional(place, self._steps(before)[2]), self.gate[..., place])
