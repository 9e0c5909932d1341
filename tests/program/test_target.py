"""Reading a model and its data as a variational target."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import constraints

import emfc
from emfc.compiler import compile_target, parse_target
from emfc.layers.structured import StructuredLayer
from emfc.program.condition import condition
from emfc.program.errors import CompileError
from tests.programs.oracle import pyro_log_prob
from tests.programs.targets import SUMMED, TARGETS


def target_of(name):
    model, args, kwargs = TARGETS[name].build()
    return parse_target(model, *args, **kwargs)


def test_data_are_sites_with_values():
    target = target_of("observed_parent")
    names = [site.name for site in target.program.sites]
    assert names == ["table", "y", "level", "latent", "z"]
    assert sorted(target.data) == [1, 2, 4]
    assert [names[index] for index in target.latent()] == ["table", "latent"]
    assert target.improper() == ()
    assert target.subsampled == ()


def test_improper_priors_are_known():
    target = target_of("several_of_everything")
    assert [target.program.sites[index].name for index in target.improper()] == ["c"]


@pytest.mark.parametrize("name", ["grouped", "matrices", "with_parameters", "scaled_by_a_tensor", "masked_by_tensors"])
def test_prior_is_the_density_of_the_latent_sites(name):
    """Scales, masks and factors belong to the target, not to its prior."""
    model, args, kwargs = TARGETS[name].build()
    layer = StructuredLayer(parse_target(model, *args, **kwargs).prior())
    x = layer()(torch.randn(3, layer.noise_dim))

    def latent_sites(*args, **kwargs):
        with poutine.block(hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"]):
            model(*args, **kwargs)

    for row in x:
        held = layer.unpack(row)
        with pyro.validation_enabled(False):
            trace = poutine.trace(pyro.condition(latent_sites, data=held)).get_trace(*args, **kwargs)
        expected = sum(trace.nodes[site]["fn"].log_prob(held[site]).sum() for site in held)
        torch.testing.assert_close(layer().log_prob(row), expected, rtol=1e-9, atol=1e-9)


def test_what_priors_read_of_data_is_constant():
    """The prior of a site that reads an observed one is that at the data."""
    model, (y, n), _ = TARGETS["observed_parent"].build()
    layer = StructuredLayer(parse_target(model, y, n).prior())
    assert layer.example_sites == {"table": (8,), "latent": (4,)}
    x = layer()(torch.randn(2, layer.noise_dim))
    for row in x:
        held = layer.unpack(row)
        expected = dist.Normal(torch.arange(8.0), 1.0).log_prob(held["table"]).sum()
        expected = expected + dist.Normal(y, 1.0).log_prob(held["latent"]).sum()
        torch.testing.assert_close(layer().log_prob(row), expected)


def test_prior_of_a_discrete_latent_model_keeps_its_populations():
    model, args, kwargs = SUMMED["latent_below_a_label"].build()
    layer = StructuredLayer(parse_target(model, *args, **kwargs).prior())
    x = layer()(torch.randn(2, layer.noise_dim))

    def prior():
        with pyro.plate("rows", 4):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(z.double(), 1.0))

    expected = [pyro_log_prob(prior, (), {}, layer.unpack(row), {}, summed=("z",)) for row in x]
    torch.testing.assert_close(layer().log_prob(x), torch.stack(expected))


def free(y):
    a = pyro.sample("a", dist.ImproperUniform(constraints.positive, (), ()))
    s = pyro.sample("s", dist.ImproperUniform(constraints.simplex, (), (3,)))
    pyro.sample("y", dist.Normal(a + s[0], 1.0), obs=y[0])


def test_prior_of_an_improper_site_is_a_free_coordinate():
    layer = StructuredLayer(parse_target(free, torch.ones(2)).prior())
    noise = torch.randn(5, 3)
    x = layer()(noise)
    torch.testing.assert_close(x[:, 0], noise[:, 0].exp())
    torch.testing.assert_close(x[:, 1:].sum(-1), torch.ones(5))
    assert layer.noise_dim == 3
    assert layer.dim == 4
    assert not layer.outside(x).any()


def test_a_density_layer_refuses_what_only_a_target_counts():
    with pytest.raises(CompileError, match=r"not normalised.*guide") as caught:
        emfc.compile(free, torch.ones(2))
    assert caught.value.code == "E-NOCDF"
    for name in ("latent_factor", "scaled_by_a_number", "masked_by_false"):
        model, args, kwargs = TARGETS[name].build()
        with pytest.raises(CompileError, match="guide") as caught:
            emfc.compile(model, *args, **kwargs)
        assert caught.value.code == "E-FACTOR"


# ---------------------------------------------------------------------- subsampling


def subsampled(y, size):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(a, 1.0), obs=y[rows])


def chosen_rows(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 2 * len(y), subsample=torch.arange(len(y))):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def latent_in_a_subsample(y):
    with pyro.plate("rows", len(y), subsample_size=2) as rows:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=y[rows])


def test_subsampled_data():
    y = torch.randn(6)
    for model, args in ((subsampled, (y, 2)), (chosen_rows, (y,))):
        target = parse_target(model, *args)
        assert target.subsampled == ("rows",)
        assert StructuredLayer(target.prior()).example_sites == {"a": ()}
        with pytest.raises(CompileError, match=r"part of its rows.*full size") as caught:
            compile_target(model, *args)
        assert caught.value.code == "E-SUBSAMPLE"
    assert parse_target(subsampled, y, 6).subsampled == ()
    assert compile_target(subsampled, y, 6)(torch.zeros(1)).shape == ()


def test_a_latent_site_in_a_subsample_is_refused():
    for read in (parse_target, compile_target):
        with pytest.raises(CompileError, match="latent site stands in plate 'rows'") as caught:
            read(latent_in_a_subsample, torch.randn(6))
        assert (caught.value.code, caught.value.site) == ("E-SUBSAMPLE", "a")


# ---------------------------------------------------------------------- data that cannot be


def likelihood(make, y):
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", make(a), obs=y)

    return model


OUTSIDE = {
    "a gap": (lambda a: dist.Normal(a, 1.0), torch.tensor([0.0, torch.nan, 1.0])),
    "negative": (lambda a: dist.Gamma(a.exp(), 1.0), torch.tensor([1.0, -2.0, 1.0])),
    "no count": (lambda a: dist.Poisson(a.exp()), torch.tensor([1.0, 2.5, 1.0])),
    "soft label": (lambda a: dist.Bernoulli(logits=a), torch.tensor([1.0, 0.25, 1.0])),
    "too many": (lambda a: dist.Binomial(3, logits=a), torch.tensor([1.0, 4.0, 1.0])),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_data_outside_the_support_are_told(name):
    make, y = OUTSIDE[name]
    with pytest.raises(CompileError, match="lies outside the support") as caught:
        compile_target(likelihood(make, y))
    assert (caught.value.code, caught.value.site) == ("E-MODEL", "y")
    masked = likelihood(lambda a: make(a).mask(torch.tensor([True, False, True])), y)
    assert compile_target(masked)(torch.zeros(1)).isfinite()
    with pyro.validation_enabled(False):
        found = compile_target(likelihood(make, y))(torch.zeros(1))
        expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) + make(torch.tensor(0.0)).log_prob(y).sum()
    if expected.isnan():
        assert found == -torch.inf
    else:
        torch.testing.assert_close(found, expected)


def moving_bound(y):
    top = pyro.sample("top", dist.Pareto(1.0, 2.0))
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.Uniform(0.0, top), obs=y)


def test_a_support_that_depends_on_a_latent_site():
    held = compile_target(moving_bound, torch.tensor([0.5, 3.0, 1.0]))
    found = held(torch.tensor([[2.0], [4.0]]))
    assert found[0] == -torch.inf
    expected = dist.Pareto(1.0, 2.0).log_prob(torch.tensor(4.0)) - 3 * torch.tensor(4.0).log()
    torch.testing.assert_close(found[1], expected)


def random_data():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.randn(()))


def changing_sites():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    for number in range(1 + int(torch.rand(()) > 0.5)):
        pyro.sample(f"y_{number}", dist.Normal(a, 1.0), obs=torch.tensor(1.0))


def nothing_latent():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def wrong_shape():
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(a, 1.0).to_event(1), obs=torch.zeros(4))


@pytest.mark.parametrize(
    ("model", "code"),
    [(random_data, "E-IMPURE"), (nothing_latent, "E-STRUCT"), (wrong_shape, "E-MODEL")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_refused(model, code):
    with pytest.raises(CompileError) as caught:
        compile_target(model)
    assert caught.value.code == code


def test_a_target_leaves_nothing_behind():
    """Neither the parameter store nor the random state nor the data change."""
    model, (y,), _ = TARGETS["with_parameters"].build()
    before, state = y.clone(), torch.get_rng_state()
    held = compile_target(model, y)
    assert torch.equal(y, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())
    with torch.no_grad():
        held.data.zero_()
    assert torch.equal(y, before)


def test_condition_keeps_what_is_left():
    """A program less one of its sites is the program with that site's value as a constant."""

    def chain():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.LogNormal(a, 1.0))
        pyro.sample("c", dist.Normal(a * b, b))

    program = emfc.parse(chain).program
    for gone in range(3):
        value = torch.tensor(1.3)
        left = StructuredLayer(condition(program, {gone: value.double().numpy()}))
        kept = [site for site in "abc" if site != "abc"[gone]]
        assert list(left.example_sites) == kept
        x = left()(torch.randn(2, 2))
        for row in x:
            held = {**left.unpack(row), "abc"[gone]: value}
            trace = poutine.trace(pyro.condition(chain, data=held)).get_trace()
            trace.compute_log_prob()
            expected = sum(trace.nodes[site]["log_prob_sum"] for site in kept)
            torch.testing.assert_close(left().log_prob(row), expected)
