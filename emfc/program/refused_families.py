"""Why some families of `pyro.distributions` have no transform, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping

from emfc.program.errors import CompileError

__all__ = ["REFUSED_FAMILIES", "refuse_family"]

_MISSING = "marks missing data by NaN in its density, and a draw has no missing values"
_STEPS = "write the chain with one pyro.sample for each step; the compiler evaluates equal steps together"
_ORDER = "its draws are arrangements of things, which no real number stands for"
_STRAIGHT = "rounds its draws and lets gradients pass as if it did not, so that its density is not that of its draws"
_SPHERE = "draws points of a sphere, which no map from real numbers covers without a seam"

REFUSED_FAMILIES: Mapping[str, tuple[str, str]] = {
    "CoalescentTimes": (
        "draws ordered times whose density counts the lineages that are left",
        "write the waiting time between two events as an Exponential site",
    ),
    "CoalescentTimesWithRate": (
        "draws ordered times whose density counts the lineages that are left",
        "write the waiting time between two events as an Exponential site",
    ),
    "DirichletMultinomial": (
        "draws counts with a fixed sum, which dequantisation noise would break",
        "use a Dirichlet site and a Binomial site for each count, given those before it",
    ),
    "DiscreteHMM": ("sums its hidden states out and keeps none of them", _STEPS),
    "Empirical": (
        "has its probability on a finite set of samples, and so no density",
        "use a MixtureSameFamily of Normal components around the samples",
    ),
    "GammaGaussianHMM": ("sums its hidden states out and keeps none of them", _STEPS),
    "GaussianHMM": ("sums its hidden states out and keeps none of them", _STEPS),
    "GaussianMRF": ("is a density of two chains that meet, with an approximate normalisation", _STEPS),
    "GroupedNormalNormal": (
        "is a likelihood with its group effects summed out, and is not sampled",
        "write the effects as a Normal site in a plate, and the data as Normal(effects[group], scale)",
    ),
    "ImproperUniform": (
        "is not normalised and cannot be sampled",
        "use a proper prior, such as a wide Normal; a guide (emfc.EMFGuide, emfc.infer) takes it as it is",
    ),
    "IndependentHMM": ("sums its hidden states out and keeps none of them", _STEPS),
    "LinearHMM": ("sums its hidden states out and keeps none of them", _STEPS),
    "LogNormalNegativeBinomial": (
        "has a density that is itself an integral by quadrature",
        "write the noise as a LogNormal site and the counts as a NegativeBinomial that reads it",
    ),
    "MaskedMixture": (
        "chooses one of two families for each element",
        "make two sites and choose with torch.where, or use a MixtureSameFamily",
    ),
    "Multinomial": (
        "draws counts with a fixed sum, which dequantisation noise would break",
        "use a Binomial site for each count, given those before it, or Categorical trials in a plate",
    ),
    "NanMaskedMultivariateNormal": (_MISSING, "use MultivariateNormal"),
    "NanMaskedNormal": (_MISSING, "use Normal"),
    "OneHotCategorical": (
        "draws corners of a simplex, which dequantisation noise would leave",
        "use Categorical, and torch.nn.functional.one_hot(z, K) where the vector is needed",
    ),
    "OneHotCategoricalStraightThrough": (
        _STRAIGHT,
        "use Categorical, and torch.nn.functional.one_hot(z, K) where the vector is needed",
    ),
    "OneOneMatching": (_ORDER, "use Categorical sites for the single choices"),
    "OneTwoMatching": (_ORDER, "use Categorical sites for the single choices"),
    "ProjectedNormal": (_SPHERE, "use a VonMises angle, or a Normal vector and divide it by its norm"),
    "Rejector": (
        "is known by its proposal and the chance of acceptance, not by a distribution function",
        "use the family that it draws from, such as Gamma",
    ),
    "RelaxedBernoulliStraightThrough": (_STRAIGHT, "use RelaxedBernoulli or Bernoulli"),
    "RelaxedOneHotCategorical": (
        "makes K - 1 free numbers from K independent ones, so that no bijection from noise is its own",
        "use LogisticNormal or Dirichlet",
    ),
    "RelaxedOneHotCategoricalStraightThrough": (_STRAIGHT, "use LogisticNormal, Dirichlet or Categorical"),
    "SineBivariateVonMises": (
        "draws a point of a torus whose angles have no known distribution function",
        "use a VonMises site for one angle and another, which reads it, for the second",
    ),
    "SineSkewed": (
        "draws a point of a torus whose angles have no known distribution function",
        "use VonMises, or a MixtureSameFamily of it",
    ),
    "SpanningTree": (_ORDER, "use Categorical sites for the single choices"),
    "TruncatedPolyaGamma": (
        "has a density that is an alternating series, and draws that only approximate it",
        "use a Gamma, or a truncated family of emfc.distributions",
    ),
    "Unit": (
        "has no value, only a factor of the density",
        "drop it here; in a variational target pyro.factor counts",
    ),
    "VonMises3D": (_SPHERE, "use VonMises for the longitude and a site on [-1, 1] for the sine of the latitude"),
}


def refuse_family(name: str, **place: str | None) -> None:
    """Refuse a latent site of a family that has no transform, with the family's own reason.

    Args:
        name: Class name of the family.
        **place: ``site``, ``location`` and ``source`` of the error.

    Raises:
        CompileError: The family is one of `REFUSED_FAMILIES` (E-NOCDF).
    """
    held = REFUSED_FAMILIES.get(name)
    if held is not None:
        raise CompileError("E-NOCDF", f"the family {name} {held[0]}", advice=held[1], **place)
