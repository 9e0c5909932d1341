"""The distribution over examples that a flow gives."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import biject_to, constraints, transform_to

from emfc.flows.composition import Chain
from emfc.special.precision import eager

__all__ = ["ExampleSupport", "FlowDistribution", "standard_normal_log_density"]


class ExampleSupport(constraints.Constraint):
    """Examples ``[*, D]`` whose every element lies in the support of its site.

    Known to ``torch.distributions.biject_to``, which gives the map from :math:`R^N`.

    Args:
        layer: The layer that knows the supports.
        preprocess: The bijection from raw data to examples, if there is one.
    """

    event_dim = 1

    def __init__(self, layer: Any, preprocess: Any | None = None) -> None:
        self.layer = layer
        self.preprocess = preprocess
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        finite = torch.isfinite(value).all(dim=-1)
        safe = torch.where(finite[..., None], value, torch.zeros_like(value))
        if self.preprocess is not None:
            safe = self.preprocess(safe)
        inside: Tensor = finite & ~self.layer.outside(safe).any(dim=-1)
        return inside

    def map_from_reals(self) -> Chain:
        """Returns the bijection from :math:`R^N` to the support."""
        after = () if self.preprocess is None else (self.preprocess.inv,)
        return Chain(self.layer.constraint_map(), *after, codomain=self)


@biject_to.register(ExampleSupport)  # type: ignore[untyped-decorator]
@transform_to.register(ExampleSupport)  # type: ignore[untyped-decorator]
def _map_from_reals(constraint: ExampleSupport) -> Chain:
    return constraint.map_from_reals()


class FlowDistribution(TorchDistribution):
    r"""Distribution of :math:`x = T(e)` with :math:`e \sim N(0, 1)` in N dimensions.

    Args:
        transform: T, from noise ``[*, N]`` to examples ``[*, D]``.
        noise: Any tensor with N as its last size, of the dtype and device of the draws.
        dim: D.
        batch_shape: Shape of the batch of contexts.
        support: The support of the examples.
    """

    has_rsample = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, transform: Any, *, noise: Tensor, dim: int, batch_shape: Size, support: constraints.Constraint
    ) -> None:
        self.transform = transform
        self._noise = noise
        self._support = support
        super().__init__(batch_shape, Size((dim,)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        shape = Size(batch_shape)
        own = self.batch_shape
        padded = (1,) * (len(shape) - len(own)) + tuple(own)
        if len(own) > len(shape) or any(a not in (1, b) for a, b in zip(padded, shape, strict=True)):
            raise ValueError(f"a batch of shape {tuple(self.batch_shape)} cannot be expanded to {tuple(shape)}")
        return FlowDistribution(
            self.transform, noise=self._noise, dim=self.event_shape[0], batch_shape=shape, support=self._support
        )

    def _draw_noise(self, sample_shape: Any) -> Tensor:
        shape = (*Size(sample_shape), *self.batch_shape, self._noise.shape[-1])
        return torch.randn(shape, dtype=self._noise.dtype, device=self._noise.device)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws examples ``[*sample_shape, *batch_shape, D]`` through which gradients flow."""
        draws: Tensor = self.transform(self._draw_noise(sample_shape))
        return draws

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws examples ``[*sample_shape, *batch_shape, D]``."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draws examples and their log densities (nats) in one pass."""
        noise = self._draw_noise(sample_shape)
        value, ladj = self.transform.call_and_ladj(noise)
        return value, standard_normal_log_density(noise) - ladj

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log density (nats) of examples ``[*, D]``: :math:`\log \phi(e) + \log |\partial e / \partial x|`.

        Minus infinity outside the support and where an element is not a number.

        Raises:
            ValueError: If the last size of ``value`` is not D.
        """
        dim = self.event_shape[0]
        if value.ndim == 0 or value.shape[-1] != dim:
            raise ValueError(
                f"examples must have {dim} elements in their last dimension, not shape {tuple(value.shape)}"
            )
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value = value.expand(*batch, dim)
        log_density = self._log_density(value)
        if eager() and bool(log_density.isfinite().all()):
            return log_density
        finite = torch.isfinite(value).all(dim=-1)
        log_density = self._log_density(torch.where(finite[..., None], value, torch.zeros_like(value)))
        return torch.where(finite, log_density, torch.full_like(log_density, -math.inf))

    def _log_density(self, value: Tensor) -> Tensor:
        parts: tuple[Any, ...] = getattr(self.transform, "parts", ())
        if len(parts) == 1 and hasattr(parts[0], "log_prob"):  # the bare program sums its density class by class
            alone: Tensor = parts[0].log_prob(value)
            return alone
        if value.is_floating_point() and value.dtype != self._noise.dtype:
            value = value.to(self._noise.dtype)
        noise: Tensor
        ladj: Tensor
        noise, ladj = self.transform.inv.call_and_ladj(value)
        return standard_normal_log_density(noise) + ladj


def standard_normal_log_density(noise: Tensor) -> Tensor:
    return -0.5 * (noise.square().sum(dim=-1) + noise.shape[-1] * math.log(2 * math.pi))
