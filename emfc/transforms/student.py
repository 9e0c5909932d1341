"""Student's t distribution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributions as td

from emfc.special.precision import wide
from emfc.special.student import log_student_density, log_student_tails_and_density, student_normaliser
from emfc.special.student_quantile import student_quantile
from emfc.transforms.family import Evaluation, LocationScale
from emfc.transforms.registry import family_of

__all__ = ["StudentT"]


def _finite(z: Tensor) -> Tensor:
    limit = torch.finfo(z.dtype).max
    return z.clamp(-limit, limit)


@family_of(td.StudentT)
class StudentT(LocationScale):
    """Student's t of any number of degrees of freedom, shifted and scaled."""

    def __init__(self, dist: td.StudentT) -> None:
        super().__init__(dist)
        self.df = wide(dist.df)
        self._normaliser = student_normaliser(self.df)

    def standard_evaluate(self, z: Tensor) -> Evaluation:
        """Log density and log tails."""
        log_p, log_q, log_prob = log_student_tails_and_density(self.df, _finite(z), normaliser=self._normaliser)
        return Evaluation(log_prob, log_p, log_q)

    def standard_log_density(self, z: Tensor) -> Tensor:
        """Log density alone."""
        return log_student_density(self.df, _finite(z), normaliser=self._normaliser)

    def standard_quantile(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Quantile."""
        return student_quantile(self.df, log_p, log_q, normaliser=self._normaliser)
