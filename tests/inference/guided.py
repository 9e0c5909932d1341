"""Small models with latent sites and data, for the tests of guides: name -> model with its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

__all__ = ["MODELS", "Guided"]


@dataclass(frozen=True)
class Guided:
    """A model that a guide is made of.

    Attributes:
        model: The model.
        args: Makes its arguments.
        vectorised: Whether it runs under a plate of particles.
        normalised: Whether its prior is a density, so that a guide can be compared with it.
        coordinates: Whether Pyro has maps to the supports of all latent sites.
        compiled: Whether the compiler evaluates its data, too.
    """

    model: Callable[..., Any]
    args: Callable[[], tuple[Any, ...]] = field(default=lambda: ())
    vectorised: bool = True
    normalised: bool = True
    coordinates: bool = True
    compiled: bool = True


def _y(*values: float) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.tensor(values),)


def normal(y: Tensor) -> None:
    """A mean."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def scaled(y: Tensor) -> None:
    """A mean and a scale, data of one event."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(mean[..., None], scale[..., None]).expand([*mean.shape, len(y)]).to_event(1), obs=y)


def beta_bernoulli(y: Tensor) -> None:
    """A probability."""
    rate = pyro.sample("rate", dist.Beta(2.0, 3.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Bernoulli(rate), obs=y)


def gamma_poisson(y: Tensor) -> None:
    """A rate."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def hierarchy(y: Tensor) -> None:
    """Local effects in a plate whose dimension is not given."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", len(y)):
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def nested(y: Tensor) -> None:
    """Plates in plates, with given dimensions."""
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with columns:
        b = pyro.sample("b", dist.Exponential(1.0))
    with rows, columns:
        c = pyro.sample("c", dist.Normal(a, b))
        pyro.sample("y", dist.Normal(c, 1.0), obs=y)


def sequential(y: Tensor) -> None:
    """A plate that is run row by row."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", len(y)):
        effect = pyro.sample(f"effect_{i}", dist.Normal(mean, 0.5))
        pyro.sample(f"y_{i}", dist.Normal(effect, 1.0), obs=y[i])


def walk(y: Tensor) -> None:
    """A series."""
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in range(1, len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y[t])


def moving_support(y: Tensor) -> None:
    """Supports that depend on other sites."""
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    high = pyro.sample("high", dist.Uniform(low, low + 3.0))
    with pyro.plate("n", 2):
        inside = pyro.sample("inside", dist.Uniform(low, high))
        pyro.sample("y", dist.Normal(inside, 1.0), obs=y)


def simplex(y: Tensor) -> None:
    """Probabilities of categories."""
    probs = pyro.sample("probs", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Categorical(probs), obs=y.long())


def simplices(y: Tensor) -> None:
    """Several of them in a plate."""
    with pyro.plate("groups", 2):
        probs = pyro.sample("probs", dist.Dirichlet(torch.ones(3)))
        pyro.sample("y", dist.Categorical(probs), obs=y.long())


def cholesky(y: Tensor) -> None:
    """Correlations."""
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scales = pyro.sample("scales", dist.HalfNormal(1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=scales[..., None] * factor), obs=y)


def vector(y: Tensor) -> None:
    """A multivariate normal site."""
    cov = torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    weights = pyro.sample("weights", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=cov))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=weights.sum(-1)), obs=y)


def learned(y: Tensor) -> None:
    """A parameter of the model."""
    scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def factor(y: Tensor) -> None:
    """A factor."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.factor("weight", -0.5 * (mean - y.sum()) ** 2)


def weighted(y: Tensor) -> None:
    """A scale on the data."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=0.5), pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def masked(y: Tensor) -> None:
    """Data of which some do not count."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)), poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def improper(y: Tensor) -> None:
    """Flat priors of a mean and a scale."""
    mean = pyro.sample("mean", dist.ImproperUniform(constraints.real, (), ()))
    scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def summed(y: Tensor) -> None:
    """Discrete latent sites that only the data read."""
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(means[z], 1.0), obs=y)


class Quartic(dist.TorchDistribution):  # type: ignore[misc]
    """A family that the compiler does not know."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, centre: Tensor) -> None:
        self.centre = centre
        super().__init__(centre.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Quartic:
        return Quartic(self.centre.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.centre.expand(torch.Size(sample_shape) + self.centre.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return -((value - self.centre) ** 4)


def unknown_data(y: Tensor) -> None:
    """Data of a family that the compiler does not know."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", Quartic(mean), obs=y)


def unobserved() -> Tensor:
    """Conditioned from outside."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    return pyro.sample("y", dist.Normal(mean, 0.5))


def _conditioned(*args: Any) -> Any:
    return poutine.condition(unobserved, data={"y": torch.tensor(1.0)})(*args)


def derived(y: Tensor) -> None:
    """A deterministic value in between."""
    raw = pyro.sample("raw", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    rate = pyro.deterministic("rate", raw.exp(), event_dim=1)
    pyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)


MODELS: dict[str, Guided] = {
    "normal": Guided(normal, _y(0.5, 1.5, 2.0)),
    "scaled": Guided(scaled, _y(0.5, 1.5, 2.0)),
    "beta_bernoulli": Guided(beta_bernoulli, _y(1.0, 0.0, 1.0, 1.0)),
    "gamma_poisson": Guided(gamma_poisson, _y(3.0, 1.0, 2.0)),
    "hierarchy": Guided(hierarchy, _y(0.5, -1.0, 2.0)),
    "nested": Guided(nested, lambda: (torch.arange(6.0).reshape(2, 3) / 3,)),
    "sequential": Guided(sequential, _y(0.5, -1.0, 2.0)),
    "walk": Guided(walk, _y(0.5, -1.0, 2.0, 0.3)),
    "moving_support": Guided(moving_support, _y(0.5, 0.1)),
    "simplex": Guided(simplex, _y(0.0, 2.0, 2.0, 1.0)),
    "simplices": Guided(simplices, _y(0.0, 2.0)),
    "cholesky": Guided(cholesky, _y(0.5, -0.2, 1.0)),
    "vector": Guided(vector, _y(1.0, 0.0, 1.0)),
    "learned": Guided(learned, _y(0.5, 1.0)),
    "factor": Guided(factor, _y(0.5, 1.0)),
    "weighted": Guided(weighted, _y(0.5, 1.0)),
    "masked": Guided(masked, _y(0.5, -1.0)),
    "improper": Guided(improper, _y(0.5, 1.0, -0.3), normalised=False),
    "unknown_data": Guided(unknown_data, _y(0.5, 1.0), compiled=False),
    "conditioned": Guided(_conditioned),
    "derived": Guided(derived, _y(1.0, 0.0, 2.0)),
}
