"""Improper priors: flat on a support, which nothing can be drawn from."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import CholeskyTransform
from torch.distributions import Distribution, biject_to

from emfc.program.errors import CompileError
from emfc.program.specification import unwrapped

__all__ = ["IMPROPER", "is_improper", "stand_in"]

IMPROPER = "an improper prior"
"""What changes the log density of a site whose prior is not normalised."""

_LOWER = (type(constraints.lower_cholesky), type(constraints.softplus_lower_cholesky))


def is_improper(distribution: Distribution) -> bool:
    """Whether a distribution is flat on its support, and not normalised."""
    return isinstance(unwrapped(distribution), dist.ImproperUniform)


def stand_in(distribution: Distribution) -> Distribution:
    r"""A distribution on an improper prior's support.

    It is that of :math:`c(e), e \sim N(0, 1)`, with c the map from the real numbers to the support, and for matrices
    that of a Wishart matrix or its Cholesky factor. Its transform makes the site a free coordinate; its density means
    nothing.

    Raises:
        CompileError: There is no map to the support (E-NOCDF).
    """
    held: Any = distribution
    inner: Any = unwrapped(distribution)
    support, shape = inner.support, held.batch_shape + held.event_shape
    made: Any
    if isinstance(support, (type(constraints.positive_definite), *_LOWER)):
        side = shape[-1]
        made = dist.Wishart(torch.full(shape[:-2], side + 1.0), torch.eye(side).expand(shape))
        if isinstance(support, _LOWER):
            made = dist.TransformedDistribution(made, [CholeskyTransform()])
    else:
        try:
            transform = biject_to(support)
        except NotImplementedError:
            raise CompileError(
                "E-NOCDF",
                f"an improper prior on {_name(support)} has no map from the real numbers",
                advice="use a prior of a family with that support, or real coordinates and pyro.factor",
            ) from None
        base = transform.inverse_shape(shape)
        made = dist.TransformedDistribution(dist.Normal(torch.zeros(base), torch.ones(base)), [transform])
    missing = len(held.event_shape) - len(made.event_shape)
    return made.to_event(missing) if missing else made  # type: ignore[no-any-return]


def _name(support: constraints.Constraint) -> str:
    return type(support).__name__.strip("_")
