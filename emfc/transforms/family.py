"""Univariate families by their log density and log tails, and the transform that these give."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from emfc.special.normal import log_normal_density, noise_from_tails, tails_from_noise
from emfc.special.precision import wide
from emfc.transforms.base import NormalTransform
from emfc.transforms.supports import Position, RealLine, SupportMap, support_map

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

__all__ = ["CDFTransform", "Evaluation", "LocationScale", "ScalarFamily", "UnconstrainedCDF"]


class Evaluation(NamedTuple):
    """Log density and log probabilities of the lower and upper tail at one position."""

    log_prob: Tensor
    log_cdf: Tensor
    log_sf: Tensor


class ScalarFamily(ABC):
    """A univariate distribution as its log density, both log tails, and its quantile.

    A subclass sets `batch_shape` and `support`, and gives `evaluate` and `quantile`. Near a finite end of the
    support it should use the distances of the `Position`, which are exact where the value is rounded. Where less
    than all of these is needed to draw, or to find the noise of a value, it may override `draw`, `noise` and
    `log_density`, which are made of them.

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

    def log_density(self, at: Position) -> Tensor:
        """Log density at a position, without the tails."""
        return self.evaluate(at).log_prob

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Position of the draw that this noise gives, and the log density there."""
        position = self.locate(*tails_from_noise(noise))
        return position, self.log_density(position)

    def draw_value(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`draw` without the distances to the support's ends, where that is cheaper."""
        position, log_prob = self.draw(noise)
        return position.value, log_prob

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """Noise that gives this position, and the log density there."""
        log_prob, log_p, log_q = self.evaluate(at)
        return noise_from_tails(log_p, log_q), log_prob

    def expand(self, batch_shape: Size) -> ScalarFamily:
        """The same family with a larger batch shape; parameters broadcast as they are."""
        new = copy(self)
        new.batch_shape = batch_shape
        return new

    def knots(self) -> tuple[Position, Tensor, Tensor] | None:
        """Positions and both log tails, [..., J] in rising order, where the density jumps; None if it does not."""
        return None

    @property
    def support_map(self) -> SupportMap:
        """The map of the real line onto the support, made once."""
        made: SupportMap | None = self.__dict__.get("_support_map")  # a compiler cannot trace `cached_property`
        if made is None:
            made = self._support_map = support_map(self.support)
        return made

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, -inf outside the support."""
        x = wide(x)
        result = self.log_density(self.support_map.place(self.support_map.nearest(x)))
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

    def standard_log_density(self, z: Tensor) -> Tensor:
        """Log density of the standard family, without the tails."""
        return self.standard_evaluate(z).log_prob

    def standard_draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The standard family's draw that this noise gives, and the log density there."""
        z = self.standard_quantile(*tails_from_noise(noise))
        return z, self.standard_log_density(z)

    def standard_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise that gives this draw of the standard family, and the log density there."""
        log_prob, log_p, log_q = self.standard_evaluate(z)
        return noise_from_tails(log_p, log_q), log_prob

    def _standardised(self, at: Position) -> Tensor:
        return (at.value - self.loc) / self.scale

    def evaluate(self, at: Position) -> Evaluation:
        """Log density and log tails."""
        result = self.standard_evaluate(self._standardised(at))
        return result._replace(log_prob=result.log_prob - self.scale.log())

    def log_density(self, at: Position) -> Tensor:
        """Log density alone."""
        return self.standard_log_density(self._standardised(at)) - self.scale.log()

    def draw(self, noise: Tensor) -> tuple[Position, Tensor]:
        """Draw and log density."""
        z, log_prob = self.standard_draw(noise)
        limit = torch.finfo(z.dtype).max
        return Position((self.loc + self.scale * z).clamp(-limit, limit)), log_prob - self.scale.log()

    def noise(self, at: Position) -> tuple[Tensor, Tensor]:
        """Noise and log density."""
        noise, log_prob = self.standard_noise(self._standardised(at))
        return noise, log_prob - self.scale.log()

    def quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Location plus scaled standard quantile."""
        return self.loc + self.scale * self.standard_quantile(log_p, log_q)


def _call_ladj(noise: Tensor, log_prob: Tensor) -> Tensor:
    """Log density of the noise minus that of the value, in few operations."""
    return torch.addcmul(-_HALF_LOG_TWO_PI - log_prob, noise, noise, value=-0.5)


def _inverse_ladj(noise: Tensor, log_prob: Tensor) -> Tensor:
    """Log density of the value minus that of the noise."""
    return torch.addcmul(log_prob + _HALF_LOG_TWO_PI, noise, noise, value=0.5)


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
        value, log_prob = self.family.draw_value(noise)
        return value, _call_ladj(noise, log_prob)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a value."""
        y = wide(y)
        support = self.family.support_map
        inside = support.surely_contains(y)
        noise, log_prob = self.family.noise(support.place(y if inside else support.nearest(y)))
        ladj = _inverse_ladj(noise, log_prob)
        if inside:
            return noise, ladj
        ladj = torch.where(support.contains(y), ladj, -torch.inf)
        return torch.where(y.isnan(), y, noise), torch.where(y.isnan(), y, ladj)

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
        position, log_prob = self.family.draw(noise)
        coordinate, stretch = self.family.support_map.coordinate(position)
        return coordinate, _call_ladj(noise, log_prob + stretch)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of an unconstrained value."""
        position, stretch = self.family.support_map.position(wide(y))
        noise, log_prob = self.family.noise(position)
        return noise, _inverse_ladj(noise, log_prob + stretch)

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
