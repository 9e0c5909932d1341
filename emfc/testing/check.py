"""`check_transform`: every law of a transform, run on one distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from emfc.errors import UserError
from emfc.testing import derivatives, laws
from emfc.testing.mapping import vmap
from emfc.testing.report import LawResult, TransformError, TransformReport
from emfc.testing.subject import Subject, subject_of
from emfc.transforms import UnsupportedFamilyError

__all__ = ["LAWS", "check_transform"]

LAWS = (
    "support",
    "round trip (float32)",
    "round trip (float64)",
    "density",
    "log-Jacobian",
    "gradients (forward)",
    "gradients (inverse)",
    "no NaN",
    "outside the support",
    "broadcasting",
    "vmap",
    "gate",
    "samples",
)


def check_transform(
    dist: Distribution | Callable[..., Distribution],
    parameters: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    *,
    noise: Tensor | None = None,
    only: Iterable[str] | None = None,
    gradient_tolerance: float = 1e-6,
    samples: int = 4000,
) -> TransformReport:
    r"""Check that the transform of a distribution obeys the laws that emfc's own families obey.

    The laws, by the names that the report gives them:

    * *support*: draws lie strictly inside the support for noise out to :math:`|e| = 16` in float32 and 50 in float64,
      and the distribution's own samples lie inside it;
    * *round trip (float32)*, *round trip (float64)*: noise -> value -> noise within
      :math:`2 \cdot 10^{-4} \max(1, |e|)` for :math:`|e| \le 8`, within :math:`10^{-9} \max(1, |e|)` for
      :math:`|e| \le 25`, or four units in the last place of the value;
    * *density*: the density through the noise is the distribution's `log_prob`;
    * *log-Jacobian*: it is that of automatic differentiation, and the inverse's is its negative;
    * *gradients (forward)*, *gradients (inverse)*: of value (or noise) and log-Jacobian by the input and by every
      parameter, against central differences in float64;
    * *no NaN*: neither values nor gradients, out to twice the range in both precisions;
    * *outside the support*: log density :math:`-\infty`, finite noise, no gradient NaN;
    * *broadcasting*: noise with fewer or more batch dimensions;
    * *vmap*: over noise and parameters;
    * *gate*: round trip and support of the gated transform, the program where open, the constraint map where shut;
    * *samples*: the noise of the distribution's own samples is standard normal (Kolmogorov-Smirnov).

    Args:
        dist: A distribution, which is built again from its `arg_constraints`, or a function that builds one from
            parameters.
        parameters: What the function takes: by name, or in order. Those of a floating dtype are varied.
        noise: Noise to check at, of a shape [..., *batch, *event] that broadcasts against a draw's noise; a grid over
            the whole range by default. It is cut to the range of each law.
        only: Names of the laws to run; all by default.
        gradient_tolerance: Permitted error of gradients, relative to :math:`\max(1, |g|)`.
        samples: How many draws of the distribution the last law takes.

    Returns:
        The worst error of each law; `print` shows a line per law.

    Raises:
        TransformError: If a law is broken. The message names each broken law, the worst place, the error and what is
            permitted.
        UnsupportedFamilyError: If the distribution has no transform.
        UserError: If the distribution cannot be built again from its parameters, or a law's name is not known.

    Example:
        >>> report = check_transform(torch.distributions.Laplace(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.2])))
        >>> report["density"].holds
        True
    """
    wanted = LAWS if only is None else tuple(only)
    unknown = [law for law in wanted if law not in LAWS]
    if unknown:
        raise UserError(f"{unknown[0]!r} is no law; the laws are {', '.join(LAWS)}.")
    subject = subject_of(dist, parameters, noise)
    subject.at(torch.float64)  # refused here if the family is not supported
    run: dict[str, Callable[[Subject], LawResult]] = {
        "support": laws.support,
        "round trip (float32)": lambda subject: laws.round_trip(subject, torch.float32),
        "round trip (float64)": lambda subject: laws.round_trip(subject, torch.float64),
        "density": laws.density,
        "log-Jacobian": derivatives.log_jacobian,
        "gradients (forward)": lambda subject: derivatives.gradients(subject, "forward", gradient_tolerance),
        "gradients (inverse)": lambda subject: derivatives.gradients(subject, "inverse", gradient_tolerance),
        "no NaN": derivatives.no_nan,
        "outside the support": laws.outside,
        "broadcasting": laws.broadcasting,
        "vmap": vmap,
        "gate": laws.gate,
        "samples": lambda subject: laws.samples(subject, samples),
    }
    results = []
    cause: Exception | None = None
    for law in wanted:
        try:
            results.append(run[law](subject))
        except UnsupportedFamilyError:
            raise
        except Exception as error:  # whatever the family raises under a law is that law broken
            results.append(LawResult(law, 1.0, 0.0, f"{type(error).__name__}: {error}"))
            cause = cause or error
    report = TransformReport(subject.name, tuple(results))
    if report.broken:
        raise TransformError(report) from cause
    return report
