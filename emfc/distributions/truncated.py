"""Truncated distributions, which torch and Pyro lack."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, broadcast_shapes
from torch import distributions as td
from torch.distributions import constraints

from emfc.special.precision import wide
from emfc.transforms.base import NormalTransform
from emfc.transforms.family import CDFTransform, ScalarFamily
from emfc.transforms.registry import UnsupportedFamilyError, from_normal, scalar_family
from emfc.transforms.truncated import TruncatedFamily, watched

__all__ = ["Truncated"]


class Truncated(TorchDistribution):
    r"""A univariate distribution restricted to an interval, :math:`f(x) = f_0(x) / (F_0(b) - F_0(a))` for a < x < b.

    Its probabilities are those of the base in logs, so that it is exact wherever the interval lies, far out in a tail
    too. Draws are differentiable with respect to the ends and to the base's parameters.

    Args:
        base: A continuous distribution of numbers with a transform from normal noise, such as Normal or Gamma.
        low: Lower end, a number or tensor; None for the base's own.
        high: Upper end; None for the base's own. Ends and base broadcast.
        validate_args: Whether to check arguments.

    Raises:
        ValueError: If the base has no univariate transform or is discrete, if an end is no finite number, or if the
            base has nothing between the ends; the last two only where arguments are validated. While a program is
            compiled, all of this shows when the distribution is first used.

    Example:
        >>> far = Truncated(td.Normal(torch.tensor(0.0), 1.0), low=20.0)
        >>> bool(far.sample() > 20)
        True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        base: td.Distribution,
        low: Tensor | float | None = None,
        high: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        like = _like(base)
        ends = [None if end is None else _tensor(end, like) for end in (low, high)]
        shapes = (end.shape for end in ends if end is not None)
        batch_shape = Size(broadcast_shapes(base.batch_shape, *shapes))
        self.base_dist = base.expand(batch_shape) if batch_shape != base.batch_shape else base
        self.low, self.high = (None if end is None else end.expand(batch_shape) for end in ends)
        self._base, self._ends = base, ends  # as they were given: what they share is computed once
        super().__init__(batch_shape, validate_args=validate_args)
        if watched():  # nothing is computed, lest it becomes a part of the program
            return
        try:
            self._family  # noqa: B018
        except UnsupportedFamilyError as error:
            raise ValueError(str(error)) from error
        if self._validate_args:
            self._check()

    @property
    def _family(self) -> TruncatedFamily:
        """The univariate family of the parameters as they were given, made once."""
        made: TruncatedFamily | None = self.__dict__.get("_made")
        if made is None:
            try:
                base = scalar_family(self._base)
            except UnsupportedFamilyError as error:
                raise UnsupportedFamilyError(f"Truncated needs a base with a univariate transform. {error}") from error
            made = self._made = TruncatedFamily(base, *self._ends)
        return made

    def _check(self) -> None:
        for name, end in (("low", self.low), ("high", self.high)):
            if end is not None and not bool(torch.isfinite(end).all()):
                raise ValueError(f"The end {name} of a truncated distribution is a finite number or None.")
        low, high = self._family.low, self._family.high
        if low is not None and high is not None and not bool(torch.as_tensor(low < high).all()):
            raise ValueError("A truncated distribution needs low < high, and some of its base's support between them.")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """An interval or half-line, where the base's own ends are not cut the base's."""
        return self._family.support

    @property
    def family(self) -> ScalarFamily:
        """The univariate family, with this batch shape."""
        return self._family.expand(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Truncated:
        """The same with a larger batch shape."""
        new: Truncated = self._get_checked_instance(Truncated, _instance)  # type: ignore[no-untyped-call]
        shape = Size(batch_shape)
        new.base_dist = self.base_dist.expand(shape)
        new.low, new.high = (None if end is None else end.expand(shape) for end in (self.low, self.high))
        new._base, new._ends = self._base, self._ends
        if "_made" in self.__dict__:
            new._made = self._made
        super(Truncated, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws that are differentiable with respect to the ends and the base's parameters."""
        like = _like(self)
        noise = torch.randn(self._extended_shape(Size(sample_shape)), dtype=wide(like).dtype, device=like.device)
        value: Tensor = from_normal(self)(noise)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; -inf outside the interval."""
        if self._validate_args:
            self._validate_sample(value)
        return self.family.log_prob(value).expand(broadcast_shapes(value.shape, self.batch_shape))

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        outside = value > self.family.support_map.nearest(wide(value))
        result = self.family.log_cdf(value).exp().masked_fill(outside, 1)
        return result.masked_fill(value < self.family.support_map.nearest(wide(value)), 0)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantile of a probability."""
        return self.family.quantile(torch.log(value), torch.log1p(-value))


def _tensors(held: Any) -> Iterator[Tensor]:
    """The floating-point tensors that a distribution keeps, those of its parts and transforms too."""
    if isinstance(held, Tensor):
        if held.is_floating_point():
            yield held
    elif isinstance(held, (list, tuple)):
        for part in held:
            yield from _tensors(part)
    elif isinstance(held, (td.Distribution, td.Transform)):
        for name, part in vars(held).items():
            if name not in ("_inv", "_made"):
                yield from _tensors(part)


def _like(base: td.Distribution) -> Tensor:
    """A tensor of the dtype and on the device that the base computes in."""
    found = list(_tensors(base))
    if not found:
        return torch.zeros(())
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in found))
    return torch.zeros((), dtype=dtype, device=found[0].device)


def _tensor(end: Tensor | float, like: Tensor) -> Tensor:
    return wide(end) if isinstance(end, Tensor) else torch.full((), end, dtype=wide(like).dtype, device=like.device)


@scalar_family.register(Truncated)
def _truncated_family(dist: Truncated) -> ScalarFamily:
    return dist.family


@from_normal.register(Truncated)
def _truncated(dist: Truncated) -> NormalTransform:
    return CDFTransform(dist.family)
