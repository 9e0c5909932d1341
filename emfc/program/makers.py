"""Distributions again from what was read of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, transforms

from emfc.program.families import family_class, family_event_dims, takes_validation

__all__ = ["make_family"]


def make_family(name: str, values: Mapping[str, Any]) -> Distribution:
    """The distribution of a family from its constructor's arguments, by name.

    Args:
        name: What `family_name` gave.
        values: Tensors, distributions and options; leading batch dimensions beyond the traced ones are allowed.
    """
    family = family_class(name)
    if name in _MAKERS:
        return _MAKERS[name](family, values)
    made: Any = family
    unchecked = {"validate_args": False} if takes_validation(made) else {}
    return made(**values, **unchecked)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Bare:
    """How to make a distribution without its constructor.

    Parameters then keep their own shapes, where the constructor would expand them to a common one: a scale shared by
    all steps and examples stays one number, and so does its gradient. Nor are distributions made inside, whose checks
    cannot be switched off; values outside a support have to pass.

    Attributes:
        event: Shape of an event, of the arguments.
        renamed: Attributes that arguments are kept under.
    """

    event: Callable[[Mapping[str, Any]], Sequence[int]] = lambda values: ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def make(self, family: Any, values: Mapping[str, Any]) -> Distribution:
        """The distribution of a class."""
        made: Any = family.__new__(family)
        for name, value in values.items():
            setattr(made, self.renamed.get(name, name), value)
        events = family_event_dims(family)
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        batches = [value.shape[: value.ndim - events.get(name, 0)] for name, value in tensors.items()]
        sizes = zip(*batches, strict=True)  # all of one rank
        shape = torch.Size([next((size for size in held if size != 1), 1) for held in sizes])
        Distribution.__init__(made, shape, torch.Size(self.event(values)), validate_args=False)
        return made  # type: ignore[no-any-return]


def _log_normal(family: type[Distribution], values: Mapping[str, Any]) -> Distribution:
    normal = _SCALAR.make(torch.distributions.Normal, values)
    made: Any = torch.distributions.LogNormal.__new__(torch.distributions.LogNormal)
    made.base_dist, made.transforms = normal, [transforms.ExpTransform()]
    Distribution.__init__(made, normal.batch_shape, validate_args=False)
    return made  # type: ignore[no-any-return]


def _batched_normal(family: type[Distribution], values: Mapping[str, Any]) -> Distribution:
    """A kind of MultivariateNormal whose own constructor takes no batch."""
    made = family.__new__(family)
    torch.distributions.MultivariateNormal.__init__(made, **values, validate_args=False)  # type: ignore[arg-type]
    return made


def _beta_binomial(family: type[Distribution], values: Mapping[str, Any]) -> Distribution:
    ends = (values["concentration1"], values["concentration0"])
    made: Any = family.__new__(family)
    made._beta, made.total_count = torch.distributions.Beta(*ends, validate_args=False), values["total_count"]
    Distribution.__init__(made, made._beta.batch_shape, validate_args=False)
    return made  # type: ignore[no-any-return]


def _gamma_poisson(family: type[Distribution], values: Mapping[str, Any]) -> Distribution:
    made: Any = family.__new__(family)
    made._gamma = torch.distributions.Gamma(**values, validate_args=False)
    Distribution.__init__(made, made._gamma.batch_shape, validate_args=False)
    return made  # type: ignore[no-any-return]


def _lkj_cholesky(family: type[Distribution], values: Mapping[str, Any]) -> Distribution:
    held = {"dim": values["d"], "concentration": values["eta"]}
    return _LKJ.make(torch.distributions.LKJCholesky, held)


_SCALAR = _Bare()
_LKJ = _Bare(lambda values: (values["dim"], values["dim"]))
_MIXED_VECTORS = _Bare(lambda values: values["coord_scale"].shape[-1:])
_MAKERS: dict[str, Callable[[type[Distribution], Mapping[str, Any]], Distribution]] = {
    **dict.fromkeys(("Normal", "Laplace", "Logistic", "Cauchy", "StudentT", "FisherSnedecor"), _SCALAR.make),
    **dict.fromkeys(("LKJ", "LKJCholesky"), _LKJ.make),
    **dict.fromkeys(
        ("GaussianScaleMixture", "MixtureOfDiagNormals", "MixtureOfDiagNormalsSharedCovariance"), _MIXED_VECTORS.make
    ),
    **dict.fromkeys(("AVFMultivariateNormal", "OMTMultivariateNormal"), _batched_normal),
    **dict.fromkeys(("BetaBinomial", "ExtendedBetaBinomial"), _beta_binomial),
    "GammaPoisson": _gamma_poisson,
    "LKJCorrCholesky": _lkj_cholesky,
    "LogNormal": _log_normal,
    "MultivariateStudentT": _Bare(
        lambda values: values["loc"].shape[-1:], {"scale_tril": "_unbroadcasted_scale_tril"}
    ).make,
    "Wishart": _Bare(lambda values: values["scale_tril"].shape[-2:], {"scale_tril": "_unbroadcasted_scale_tril"}).make,
}
