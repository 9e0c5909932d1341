"""Gates on a conditional's own parameters: the form of variationally inferred parametrisation."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from emfc.special.precision import wide
from emfc.transforms.affine import NormalAffine
from emfc.transforms.base import BroadcastNormal, IndependentNormal, NormalTransform
from emfc.transforms.family import CDFTransform, LocationScale, UnconstrainedCDF

__all__ = ["gate_on_parameters", "slope_and_scale"]


def gate_on_parameters(transform: NormalTransform, gate: Tensor) -> NormalTransform | None:
    r"""A real location-scale transform in the coordinates of variationally inferred parametrisation.

    .. math:: y = m + s^\lambda (e - (1 - \lambda) m)

    in which a prior draw :math:`y \sim N(m, s)` has the coordinate :math:`e \sim N((1 - \lambda) m, s^{1 - \lambda})`:
    Gorinova's form with :math:`1 - \lambda` for her :math:`\lambda`. Gate 1 is the transform, gate 0 the identity; and
    where the scale vanishes the value is the location, whatever the gate. A standard family that is not normal is
    itself mixed with the identity, :math:`\lambda h(e) + (1 - \lambda) e` in place of e, h its quantile of the noise's
    probability.

    Args:
        transform: A transform onto the real line.
        gate: Values in [0, 1].

    Returns:
        None where the transform has no location and scale.

    Source: Gorinova, Moore and Hoffman (2020), "Automatic reparameterisation of probabilistic programs".
    """
    if isinstance(transform, IndependentNormal):
        base = gate_on_parameters(transform.base, gate)
        return None if base is None else IndependentNormal(base, transform.dims)
    if isinstance(transform, BroadcastNormal):
        base = gate_on_parameters(transform.base, gate)
        return None if base is None else BroadcastNormal(base, transform.batch_shape, transform.event_shape)
    if isinstance(transform, NormalAffine):
        slope, scale = slope_and_scale(transform.scale, gate)
        return NormalAffine(slope * transform.loc, scale)
    if isinstance(transform, CDFTransform | UnconstrainedCDF) and isinstance(transform.family, LocationScale):
        family = transform.family
        standard = copy(family)
        standard.loc, standard.scale = torch.zeros_like(family.loc), torch.ones_like(family.scale)
        slope, scale = slope_and_scale(family.scale, gate)
        return _Moved(UnconstrainedCDF(standard), slope * family.loc, scale, gate)
    return None


def slope_and_scale(scale: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    r"""What a gate multiplies the location by, :math:`1 - (1 - \lambda) s^\lambda`, and its scale :math:`s^\lambda`."""
    power = scale**gate
    return 1 - (1 - gate) * power, power


class _Moved(NormalTransform):
    """A standard transform mixed with the identity, then moved and scaled."""

    def __init__(self, standard: NormalTransform, loc: Tensor, scale: Tensor, gate: Tensor) -> None:
        super().__init__()
        from emfc.transforms.gates import GatedReal

        self.inner, self.outer = GatedReal(standard, gate), NormalAffine(loc, scale)
        self.domain = self.codomain = standard.domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-Jacobian."""
        inner, ladj = self.inner.call_and_ladj(wide(x))
        value, stretch = self.outer.call_and_ladj(inner)
        return value, ladj + stretch

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a value."""
        inner, stretch = self.outer.inverse_and_ladj(wide(y))
        noise, ladj = self.inner.inverse_and_ladj(inner)
        return noise, ladj + stretch

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"_Moved({self.inner!r}, {self.outer!r})"
