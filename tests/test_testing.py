"""`check_transform`: right families pass, and a family with one thing wrong is told which law it breaks."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as pd
import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

import emfc
from emfc.testing import LAWS, TransformError, TransformReport, check_transform
from emfc.transforms import CDFTransform, Evaluation, NormalTransform, ScalarFamily, UnsupportedFamilyError, from_normal
from emfc.transforms.dispatch import class_dispatch
from tests.transforms.cases import CASES


class Gompertz(td.Distribution):
    """Survival exp(-shape (exp(rate x) - 1)), which neither torch nor Pyro has."""

    arg_constraints: ClassVar = {"rate": constraints.positive, "shape": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(self, rate: Tensor, shape: Tensor, validate_args: bool | None = None) -> None:
        self.rate, self.shape = td.utils.broadcast_all(rate, shape)
        super().__init__(self.rate.shape, validate_args=validate_args)

    def rsample(self, sample_shape=()):
        upper = torch.rand(self._extended_shape(sample_shape), dtype=self.rate.dtype)
        return torch.log1p(-torch.log1p(-upper) / self.shape) / self.rate

    def log_prob(self, value):
        growth = self.rate * value
        return self.rate.log() + self.shape.log() + growth - self.shape * torch.expm1(growth)


class GompertzFamily(ScalarFamily):
    """A right family; each test below breaks one thing in it."""

    support = constraints.positive

    def __init__(self, dist: Gompertz) -> None:
        self.rate, self.shape, self.batch_shape = dist.rate, dist.shape, dist.batch_shape

    def growth(self, value: Tensor) -> Tensor:
        return (self.rate * value).clamp(max=0.4 * math.log(torch.finfo(value.dtype).max))

    def evaluate(self, at):
        growth = self.growth(at.value)
        log_sf = (-self.shape * torch.expm1(growth)).clamp(max=-torch.finfo(growth.dtype).tiny)
        log_cdf = torch.log(-torch.expm1(log_sf))
        return Evaluation(self.rate.log() + self.shape.log() + growth + log_sf, log_cdf, log_sf)

    def quantile(self, log_p, log_q):
        return torch.log1p(-log_q / self.shape) / self.rate


PARAMETERS = {
    "rate": torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64),
    "shape": torch.tensor([0.1, 1.5, 3.0], dtype=torch.float64),
}


@pytest.fixture
def check(monkeypatch):
    """`check_transform` with a family for Gompertz that the registries of other tests do not see."""

    def run(family, build=Gompertz, **options) -> TransformReport:
        private = class_dispatch(from_normal)
        make = family if not issubclass(family, ScalarFamily) else lambda dist: CDFTransform(family(dist))
        private.register(Gompertz, make)
        monkeypatch.setattr("emfc.testing.subject.from_normal", private)
        return check_transform(build, PARAMETERS, **options)

    return run


def broken(check, family, build=Gompertz, **options) -> TransformError:
    with pytest.raises(TransformError) as caught:
        check(family, build, **options)
    return caught.value


EVERYWHERE = {"outside the support": "no number is outside the support"}


def not_run(report: TransformReport) -> dict[str, str]:
    """The laws that were not run, with the reasons."""
    return {result.law: result.note for result in report.results if result.note}


def test_a_right_family_obeys_every_law(check):
    report = check(GompertzFamily)
    assert [result.law for result in report.results] == list(LAWS)
    assert not any(result.note for result in report.results)
    assert all(result.holds for result in report.results)
    lines = str(report).splitlines()
    assert lines[0] == "Gompertz"
    assert len(lines) == 1 + len(LAWS)


def test_a_wrong_log_prob_of_the_family(check):
    class Wrong(GompertzFamily):
        def evaluate(self, at):
            right = super().evaluate(at)
            return right._replace(log_prob=right.log_prob - self.rate.log())

    error = broken(check, Wrong)
    assert {"density", "log-Jacobian"} <= set(error.laws)
    assert "samples" not in error.laws
    assert "density: error" in str(error)
    assert "by autograd" in str(error)


def test_a_wrong_log_prob_of_the_distribution(check):
    class Wrong(Gompertz):
        def log_prob(self, value):
            return super().log_prob(value) + 1e-6

    assert broken(check, GompertzFamily, Wrong).laws == ("density",)


def test_tails_that_saturate(check):
    class Wrong(GompertzFamily):
        def evaluate(self, at):
            right = super().evaluate(at)
            cdf = right.log_cdf.exp()
            tiny = torch.finfo(cdf.dtype).tiny
            return right._replace(log_cdf=cdf.clamp(min=tiny).log(), log_sf=(1 - cdf).clamp(min=tiny).log())

    error = broken(check, Wrong)
    assert {"round trip (float32)", "round trip (float64)"} <= set(error.laws)
    assert error.report["round trip (float32)"].error > 0.01
    assert "noise 7" in str(error) or "noise 8" in str(error)


def test_a_gradient_that_is_missing(check):
    class Wrong(GompertzFamily):
        def quantile(self, log_p, log_q):
            return torch.log1p(-log_q / self.shape.detach()) / self.rate

    error = broken(check, Wrong)
    assert error.laws == ("gradients (forward)",)
    assert "by shape" in str(error)

    class Other(GompertzFamily):
        def growth(self, value):
            return super().growth(value).detach() + 0 * self.rate

    assert "gradients (inverse)" in broken(check, Other).laws


def test_a_gradient_that_is_nan(check):
    class Wrong(GompertzFamily):
        def quantile(self, log_p, log_q):
            far = log_q < -100
            return super().quantile(log_p, log_q) + torch.where(far, 0.0, (log_q + 100).sqrt() * 0)

    assert broken(check, Wrong).laws == ("no NaN",)


def test_a_wrong_support(check):
    class Wrong(GompertzFamily):
        support = constraints.real

    error = broken(check, Wrong)
    assert "outside the support" in error.laws
    assert "value -1" in str(error)


def test_a_support_that_is_too_narrow(check):
    class Wrong(GompertzFamily):
        support = constraints.greater_than(0.01)

    error = broken(check, Wrong)
    assert {"support", "density"} <= set(error.laws)
    assert "which the distribution itself drew" in str(error)


def test_draws_on_the_boundary(check):
    class Wrong(GompertzFamily):
        def locate(self, log_p, log_q):
            return self.support_map.place(self.quantile(log_p, log_q))

    error = broken(check, Wrong)
    assert error.laws == ("support",)
    assert "noise -16, value -0, which is outside (float32)" in str(error)


def test_shapes_that_do_not_broadcast(check):
    class Wrong(GompertzFamily):
        def quantile(self, log_p, log_q):
            return super().quantile(log_p, log_q).reshape(-1, *self.batch_shape)

    assert broken(check, Wrong, only=["broadcasting", "round trip (float64)"]).laws == ("broadcasting",)


def test_a_family_that_looks_at_values(check):
    class Wrong(GompertzFamily):
        def quantile(self, log_p, log_q):
            if bool((log_p > log_q).all()):
                return super().quantile(log_p, log_q) * 1.0
            return super().quantile(log_p, log_q)

    error = broken(check, Wrong)
    assert error.laws == ("vmap",)
    assert isinstance(error.__cause__, RuntimeError)


def test_a_gate_whose_map_is_another(check):
    class Shifted(NormalTransform):
        """The transform, whose unconstrained map is not that of its support."""

        def __init__(self, dist: Gompertz) -> None:
            super().__init__()
            self.base = CDFTransform(GompertzFamily(dist))
            self.domain, self.codomain = self.base.domain, self.base.codomain

        def call_and_ladj(self, x):
            return self.base.call_and_ladj(x)

        def inverse_and_ladj(self, y):
            return self.base.inverse_and_ladj(y)

        def unconstrained(self):
            return (
                self.base.unconstrained().base
                if hasattr(self.base.unconstrained(), "base")
                else from_normal(td.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            )

    error = broken(check, Shifted)
    assert error.laws == ("gate",)
    assert "not the transform" in str(error)


def test_samples_of_another_distribution(check):
    class Wrong(Gompertz):
        def rsample(self, sample_shape=()):
            return 1.1 * super().rsample(sample_shape)

    assert broken(check, GompertzFamily, Wrong).laws == ("samples",)


@pytest.mark.parametrize("name", ["normal", "uniform", "halfcauchy", "categorical", "mixture of uniforms"])
def test_families_of_the_table_obey_the_laws(name):
    case = CASES[name]
    report = check_transform(case.build, case.tensors(torch.float64))
    assert max(result.ratio for result in report.results) > 0
    assert [result.law for result in report.results] == list(LAWS)
    assert not_run(report) == (EVERYWHERE if name == "normal" else {})


@pytest.mark.parametrize(
    "dist",
    [
        td.Normal(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])),
        td.LogNormal(0.0, 0.5),
        td.Uniform(torch.tensor([0.0, -3.0]), 5.0),
        pd.Logistic(1.0, torch.tensor([0.1, 2.0])),
        td.Bernoulli(probs=torch.tensor([0.3, 0.6])),
        td.Bernoulli(logits=torch.tensor([0.3, 0.6])),
        td.Binomial(5, torch.tensor([0.3, 0.6])),
        td.MultivariateNormal(torch.zeros(3), scale_tril=torch.tensor([[1.0, 0, 0], [0.5, 2, 0], [-1, 0.3, 0.7]])),
        td.MultivariateNormal(torch.zeros(2), covariance_matrix=torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    ],
    ids=lambda dist: type(dist).__name__,
)
def test_distributions_are_built_again_from_what_they_hold(dist):
    dist.log_prob(dist.sample())  # caches the other parametrisation
    report = check_transform(dist)
    assert report.family == type(dist).__name__


def test_a_distribution_that_keeps_too_little_is_refused():
    mixture = td.MixtureSameFamily(td.Categorical(torch.ones(3)), td.Normal(torch.zeros(3), 1.0))
    with pytest.raises(emfc.UserError, match="check_transform\\(build"):
        check_transform(mixture)
    with pytest.raises(emfc.UserError, match="base_distribution"):
        check_transform(td.Independent(td.Normal(torch.zeros(3), 1.0), 1))


def test_what_is_asked_wrongly_is_refused():
    normal = td.Normal(torch.zeros(2), 1.0)
    with pytest.raises(emfc.UserError, match="is no law"):
        check_transform(normal, only=["charm"])
    with pytest.raises(emfc.UserError, match="needs its parameters"):
        check_transform(td.Normal)
    with pytest.raises(emfc.UserError, match="go with a function"):
        check_transform(normal, {"loc": torch.zeros(2)})
    with pytest.raises(emfc.UserError, match="no tensor"):
        check_transform(td.Normal, [torch.zeros(2), 1.0])
    with pytest.raises(UnsupportedFamilyError):
        check_transform(td.Multinomial(3, torch.ones(2)))


def test_noise_can_be_given():
    noise = torch.tensor([[-30.0], [0.5], [3.0], [30.0]])
    report = check_transform(td.Cauchy(torch.zeros(3), 1.0), noise=noise)
    place = report["round trip (float64)"].place
    assert any(f"noise {number}, " in place for number in (-25, 0.5, 3, 25)), place


def test_laws_that_cannot_run_are_noted():
    report = check_transform(td.Normal(torch.zeros(2), 1.0))
    assert "not run" in str(report["outside the support"])
    report = check_transform(td.Wishart(torch.tensor(6.0), torch.eye(2)))
    assert "cannot be built inside vmap" in str(report["vmap"])


@pytest.mark.parametrize("name", ["dirichlet", "lkj factor", "multivariate student", "random walk"])
def test_vectors_and_matrices_obey_the_laws(name):
    case = CASES[name]
    laws = [law for law in LAWS if law != "samples" or case.sampled]
    report = check_transform(case.build, case.tensors(torch.float64), gradient_tolerance=1e-4, only=laws)
    assert [result.law for result in report.results] == laws
    assert not_run(report) == (EVERYWHERE if name in ("multivariate student", "random walk") else {})


def test_a_sampler_of_torch_that_is_of_another_distribution_is_found():
    with pytest.raises(TransformError) as caught:
        check_transform(td.LKJCholesky(3, torch.tensor(1.7)), only=["density", "samples"])
    assert caught.value.laws == ("samples",)


def test_it_is_reached_from_the_package():
    assert emfc.testing.check_transform is check_transform
