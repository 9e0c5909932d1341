"""The Gaussian random walk: a vector whose steps are independent normal."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

from emfc.special.normal import log_normal_density
from emfc.special.precision import wide
from emfc.transforms.affine import MultivariateNormalTransform
from emfc.transforms.base import NormalTransform
from emfc.transforms.gates import gate_on_reals
from emfc.transforms.registry import from_normal

__all__ = ["GaussianRandomWalk", "RandomWalkTransform"]


class GaussianRandomWalk(TorchDistribution):
    r"""A walk :math:`x_1 = s e_1, x_t = x_{t-1} + s e_t` with independent standard normal e.

    Args:
        scale: Standard deviation s of a step, a positive number or tensor; its shape is the batch shape.
        num_steps: Length of the walk, which is the event shape.
        validate_args: Whether to check arguments.

    Raises:
        ValueError: If `num_steps` is not a positive whole number.

    Example:
        >>> GaussianRandomWalk(torch.tensor([0.1, 0.2]), 50).shape()
        torch.Size([2, 50])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, scale: Tensor | float = 1.0, num_steps: int = 1, validate_args: bool | None = None) -> None:
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"A random walk has a positive whole number of steps, not {num_steps!r}.")
        self.scale = scale if isinstance(scale, Tensor) else torch.tensor(float(scale))
        self.num_steps = num_steps
        super().__init__(self.scale.shape, Size((num_steps,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianRandomWalk:
        """The same walk with a larger batch shape."""
        new: GaussianRandomWalk = self._get_checked_instance(  # type: ignore[no-untyped-call]
            GaussianRandomWalk, _instance
        )
        new.scale, new.num_steps = self.scale.expand(Size(batch_shape)), self.num_steps
        super(GaussianRandomWalk, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Walks of shape sample_shape + batch_shape + (num_steps,), with gradients for the scale."""
        shape = self._extended_shape(Size(sample_shape))
        noise = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        return self.scale.unsqueeze(-1) * noise.cumsum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the log densities of the steps."""
        if self._validate_args:
            self._validate_sample(value)
        steps = value.diff(dim=-1, prepend=torch.zeros_like(value[..., :1])) / self.scale.unsqueeze(-1)
        return log_normal_density(steps).sum(-1) - self.num_steps * self.scale.log()

    @property
    def mean(self) -> Tensor:
        """Zeros."""
        return self.scale.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Number of steps so far times the squared scale."""
        count = torch.arange(1, self.num_steps + 1, dtype=self.scale.dtype, device=self.scale.device)
        return self.scale.square().unsqueeze(-1) * count


class RandomWalkTransform(NormalTransform):
    """Scaled running sums of noise; the inverse takes differences."""

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, scale: Tensor, num_steps: int) -> None:
        super().__init__()
        self.scale, self.num_steps = wide(scale), num_steps

    @property
    def log_det(self) -> Tensor:
        """Log-determinant of the map."""
        return self.num_steps * self.scale.log()

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Walk and log-determinant."""
        value = self.scale.unsqueeze(-1) * wide(x).cumsum(-1)
        return value, self.log_det.expand(value.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled steps and minus the log-determinant."""
        y = wide(y)
        limit = torch.finfo(y.dtype).max ** 0.5
        value = y.clamp(-limit, limit)
        noise = (value - pad(value, (1, -1))) / self.scale.unsqueeze(-1)
        return noise, torch.where(torch.isfinite(y).all(-1), -self.log_det, -torch.inf)

    def unconstrained(self) -> NormalTransform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        return f"RandomWalkTransform(num_steps={self.num_steps})"


@gate_on_reals.register
def _gated(transform: RandomWalkTransform, gate: Tensor) -> NormalTransform:
    ones = torch.ones(
        transform.num_steps, transform.num_steps, dtype=transform.scale.dtype, device=transform.scale.device
    )
    loc = transform.scale.new_zeros(transform.num_steps)
    return gate_on_reals(MultivariateNormalTransform(loc, transform.scale[..., None, None] * ones.tril()), gate)


@from_normal.register(GaussianRandomWalk)
def _random_walk(dist: GaussianRandomWalk) -> NormalTransform:
    return RandomWalkTransform(dist.scale, dist.num_steps)
