"""Univariate families by their log density and log tails, and the transform that these give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from emfc.special.normal import log_normal_density, noise_from_tails, tails_from_noise
from emfc.special.precision import wide
from emfc.transforms.base import NormalTransform
from emfc.transforms.supports import Position, RealLine, SupportMap, support_map

__all__ = ["CDFTransform", "Evaluation", "LocationScale", "ScalarFamily", "UnconstrainedCDF"]


class Evaluation(NamedTuple):
    """Log density and log probabilities of the lower and upper tail at one position."""

    log_prob: Tensor
    log_cdf: Tensor
    log_sf: Tensor


class ScalarFamily(ABC):
    """A univariate distribution as its log density, both log tails, and its quantile.

    A subclass sets `batch_shape` and `support`, and gives `evaluate` and `quantile`. Near a finite end of the
    support it should use the distances of the `Position`, which are exact where the value is rounded.

    Attributes:
        batch_shape: Shape of the parameters.
        support: Constraint that draws obey.
        discrete: True for a dequantised discrete family, whose log density is the log mass of the floor.
    """

    batch_shape: Size
    support: constraints.Constraint
    discrete: bool = False

    @abstractmethod
    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails at a position.

        Differentiable with respect to position and parameters. Tails are finite, and gradients are not NaN, at
        every position inside the support.
        """

    @abstractmethod
    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The value with these log probabilities of the lower and upper tail; only the smaller one is exact."""

    def locate(self, log_p: Tensor, log_q: Tensor) -> Position:
        """`quantile` with the distances to the support's ends; bounded families override it to keep them exact."""
        value = self.support_map.nearest(self.quantile(log_p, log_q), smallest=True)
        return self.support_map.place(value)

    def expand(self, batch_shape: Size) -> ScalarFamily:
        """The same family with a larger batch shape; parameters broadcast as they are."""
        new = copy(self)
        new.batch_shape = batch_shape
        return new

    def knots(self) -> tuple[Position, Tensor, Tensor] | None:
        """Positions and both log tails, [..., J] in rising order, where the density jumps; None if it does not."""
        return None

    @cached_property
    def support_map(self) -> SupportMap:
        """The map of the real line onto the support."""
        return support_map(self.support)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, -inf outside the support."""
        x = wide(x)
        result = self.evaluate(self.support_map.place(self.support_map.nearest(x))).log_prob
        return torch.where(self.support_map.contains(x), result, -torch.inf)

    def log_cdf(self, x: Tensor) -> Tensor:
        """Log probability of the lower tail; outside the support that of the nearest value inside."""
        return self.evaluate(self.support_map.place(self.support_map.nearest(wide(x)))).log_cdf

    def log_sf(self, x: Tensor) -> Tensor:
        """Log probability of the upper tail; outside the support that of the nearest value inside."""
        return self.evaluate(self.support_map.place(self.support_map.nearest(wide(x)))).log_sf

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)})"


class LocationScale(ScalarFamily):
    """A family of the real line that is a standard one shifted and scaled.

    A subclass gives `standard_evaluate` and `standard_quantile`, the family with location 0 and scale 1.
    """

    support = constraints.real

    def __init__(self, dist: Any) -> None:
        self.loc, self.scale = wide(dist.loc), wide(dist.scale)
        self.batch_shape = dist.batch_shape

    @abstractmethod
    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails of the standard family."""

    @abstractmethod
    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Quantile of the standard family."""

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        result = self.standard_evaluate((at.value - self.loc) / self.scale)
        return result._replace(log_prob=result.log_prob - self.scale.log())

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Location plus scaled standard quantile."""
        return self.loc + self.scale * self.standard_quantile(log_p, log_q)


class CDFTransform(NormalTransform):
    r"""The transform of a univariate family, :math:`x = F^{-1}(\Phi(e))`.

    Its log-Jacobian is :math:`\log \phi(e) - \log f(x)`. Both directions work on the smaller tail, in logs.
    """

    domain = constraints.real

    def __init__(self, family: ScalarFamily) -> None:
        super().__init__()
        self.family = family
        self.codomain = family.support
        self.discrete = family.discrete

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and log-Jacobian of noise."""
        noise = wide(x)
        position = self.family.locate(*tails_from_noise(noise))
        log_prob = self.family.evaluate(position).log_prob
        return position.value, log_normal_density(noise) - log_prob

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a value."""
        y = wide(y)
        support = self.family.support_map
        log_prob, log_p, log_q = self.family.evaluate(support.place(support.nearest(y)))
        noise = noise_from_tails(log_p, log_q)
        ladj = log_prob - log_normal_density(noise)
        return noise, torch.where(support.contains(y), ladj, -torch.inf)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-Jacobian at noise and its draw."""
        return log_normal_density(wide(x)) - self.family.log_prob(y)

    def unconstrained(self) -> NormalTransform:
        """The same family in the unconstrained coordinate of its support."""
        return UnconstrainedCDF(self.family)

    def __repr__(self) -> str:
        return f"CDFTransform({self.family!r})"


class UnconstrainedCDF(NormalTransform):
    """The transform of a family in its support's unconstrained coordinate, exact near the ends."""

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, family: ScalarFamily) -> None:
        super().__init__()
        self.family = family
        self.unit = 0.0 if isinstance(family.support_map, RealLine) else 1.0

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unconstrained draw and log-Jacobian of noise."""
        noise = wide(x)
        position = self.family.locate(*tails_from_noise(noise))
        coordinate, stretch = self.family.support_map.coordinate(position)
        log_prob = self.family.evaluate(position).log_prob
        return coordinate, log_normal_density(noise) - log_prob - stretch

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of an unconstrained value."""
        position, stretch = self.family.support_map.position(wide(y))
        log_prob, log_p, log_q = self.family.evaluate(position)
        noise = noise_from_tails(log_p, log_q)
        return noise, log_prob + stretch - log_normal_density(noise)

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def knots(self) -> tuple[Tensor, Tensor] | None:
        """Unconstrained values and noises where the family's density jumps."""
        knots = self.family.knots()
        if knots is None:
            return None
        position, log_p, log_q = knots
        return self.family.support_map.coordinate(position)[0], noise_from_tails(log_p, log_q)

    def __repr__(self) -> str:
        return f"UnconstrainedCDF({self.family!r})"
