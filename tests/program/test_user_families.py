"""Families that users register: they compile, are stored by name, and are looked up among registered classes only."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

import emfc
from emfc.program.serialize import program_from_document, program_to_document
from emfc.special.normal import log1mexp
from emfc.transforms import (
    Evaluation,
    LadjTransform,
    NormalAffine,
    ScalarFamily,
    TransformedNormal,
    family_of,
    from_normal,
    unconstrained_map,
)
from emfc.transforms.affine import SupportedNormal
from emfc.transforms.base import IndependentNormal


class Rayleigh(Distribution):
    """Length of a vector of two normal numbers."""

    arg_constraints: ClassVar = {"scale": constraints.positive}
    support = constraints.positive

    def __init__(self, scale, validate_args=None):
        self.scale = torch.as_tensor(scale)
        super().__init__(self.scale.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return Rayleigh(self.scale.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape=()):
        shape = self._extended_shape(sample_shape)
        return self.scale * torch.randn(2, *shape).square().sum(0).sqrt()

    def log_prob(self, value):
        return value.log() - 2 * self.scale.log() - 0.5 * (value / self.scale) ** 2


@family_of(Rayleigh)
class RayleighFamily(ScalarFamily):
    support = constraints.positive

    def __init__(self, held):
        self.scale, self.batch_shape = held.scale, held.batch_shape

    def evaluate(self, at):
        log_sf = -0.5 * (at.value / self.scale) ** 2
        return Evaluation(at.value.log() - 2 * self.scale.log() + log_sf, log1mexp(log_sf), log_sf)

    def quantile(self, log_p, log_q):
        log_sf = torch.where(log_p < log_q, log1mexp(log_p), log_q)
        return self.scale * (-2 * log_sf).sqrt()


class Moved(Distribution):
    """Another distribution, moved by a number and turned round if asked to."""

    arg_constraints: ClassVar = {}

    def __init__(self, base, by=0.0, direction="same", steps=1):
        self.base, self.by, self.direction, self.steps = base, by, direction, steps
        super().__init__(base.batch_shape, validate_args=False)

    @property
    def part(self):
        return dist.transforms.AffineTransform(self.by * self.steps, 1.0 if self.direction == "same" else -1.0)

    @constraints.dependent_property
    def support(self):
        return constraints.real

    def sample(self, sample_shape=()):
        return self.part(self.base.sample(sample_shape))

    def log_prob(self, value):
        return self.base.log_prob(self.part.inv(value))


@from_normal.register(Moved)
def _moved(held):
    return TransformedNormal(from_normal(held.base), [held.part], constraints.real)


class Balanced(constraints.Constraint):
    """Vectors whose elements sum to zero."""

    event_dim = 1

    def check(self, value):
        return value.sum(-1).abs() < 1e-4


class Contrasts(Distribution):
    """Normal numbers and, as the last element, minus their sum."""

    arg_constraints: ClassVar = {"scale": constraints.positive}
    support = Balanced()

    def __init__(self, scale, size, validate_args=None):
        self.scale, self.size = torch.as_tensor(scale), size
        super().__init__(self.scale.shape, Size((size,)), validate_args=validate_args)

    def sample(self, sample_shape=()):
        free = torch.randn(*sample_shape, *self.batch_shape, self.size - 1) * self.scale.unsqueeze(-1)
        return torch.cat([free, -free.sum(-1, keepdim=True)], -1)

    def log_prob(self, value):
        return dist.Normal(0.0, self.scale.unsqueeze(-1)).log_prob(value[..., :-1]).sum(-1)


class BalancedMap(LadjTransform):
    domain = constraints.real_vector
    codomain = Balanced()

    def call_and_ladj(self, x):
        return torch.cat([x, -x.sum(-1, keepdim=True)], -1), x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y):
        return y[..., :-1], torch.where(self.codomain.check(y), 0.0, -math.inf).to(y)

    def forward_shape(self, shape):
        return Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape):
        return Size((*shape[:-1], shape[-1] - 1))


@unconstrained_map.register(Balanced)
def _balanced(constraint):
    return BalancedMap()


@from_normal.register(Contrasts)
def _contrasts(held):
    scale = held.scale.unsqueeze(-1)
    return SupportedNormal(IndependentNormal(NormalAffine(torch.zeros_like(scale), scale), 1), Balanced())


class Unregistered(Rayleigh):
    """A subclass of a registered class may have another law."""


def program():
    spread = pyro.sample("spread", Rayleigh(1.5))
    pyro.sample("moved", Moved(Rayleigh(spread), by=2.0, direction="turned", steps=3))
    with pyro.plate("rows", 2):
        parts = pyro.sample("parts", Contrasts(spread + torch.tensor([0.1, 0.2]), 3))
    pyro.sample("x", dist.Normal(parts[1, 2], 0.5))


def pyro_log_prob(values: dict[str, Tensor]) -> Tensor:
    with pyro.validation_enabled(False):
        trace = pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace()
    return trace.log_prob_sum()


def test_registered_families_compile(dtype):
    layer = emfc.compile(program)
    assert (layer.dim, layer.noise_dim) == (9, 7)
    assert [row["family"] for row in layer.rows()] == ["Rayleigh", "Moved", "Contrasts", "Normal"]
    noise = torch.randn(20, 7)
    x, ladj = layer().call_and_ladj(noise)
    again, inverse = layer().inv.call_and_ladj(x)
    tight = 1e-9 if dtype is torch.float64 else 1e-3
    torch.testing.assert_close(again, noise, rtol=0, atol=tight)
    torch.testing.assert_close(inverse, -ladj, rtol=0, atol=10 * tight)
    expected = torch.stack([pyro_log_prob(layer.unpack(row)) for row in x])
    torch.testing.assert_close(layer().log_prob(x), expected, rtol=0, atol=10 * tight)


def test_vectors_of_a_user_are_outside_as_a_whole():
    layer = emfc.compile(program)
    x = layer()(torch.randn(2, 7)).detach()
    x[1, 3] += 1.0
    assert layer.outside(x).nonzero().tolist() == [[1, 2], [1, 3], [1, 4]]
    assert layer().log_prob(x).isneginf().tolist() == [False, True]


@pytest.mark.parametrize("gate", ["site", "element"])
def test_gates_follow_the_noise(gate):
    layer = emfc.compile(program, gate=gate)
    assert layer.gate_logits.shape == ((4,) if gate == "site" else (7,))
    shapes = {name: tuple(value.shape) for name, value in layer.gate_values().items()}
    assert shapes == {
        "spread": (),
        "moved": (),
        "parts": () if gate == "site" else (2, 2),
        "x": (),
    }
    layer.set_gates(0.4)
    noise = torch.randn(5, 7)
    x, ladj = layer().call_and_ladj(noise)
    again, inverse = layer().inv.call_and_ladj(x)
    assert not layer.outside(x).any()
    torch.testing.assert_close(again, noise)
    torch.testing.assert_close(inverse, -ladj)


@pytest.mark.parametrize("placement", ["top", "middle", "bottom"])
def test_saved_flows_find_their_families(tmp_path, placement):
    flow = emfc.EmbeddedModelFlow(program, backbone="mvn", placement=placement)
    emfc.save(flow, tmp_path / "run")
    x = flow().sample((4,))
    torch.testing.assert_close(emfc.load(tmp_path / "run")().log_prob(x), flow().log_prob(x))


def test_a_family_that_is_not_registered_when_loading_is_named(tmp_path):
    emfc.save(emfc.EmbeddedModelFlow(program, backbone=None), tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", f"import emfc; emfc.load({str(tmp_path / 'run')!r})"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError" in last
    assert f"{__name__}.Rayleigh" in last
    assert "import the module that registers it first" in last


def test_stored_names_are_never_imported():
    document, tensors = program_to_document(emfc.compile(program).program)
    document["sites"][0]["specification"]["family"] = "this.module.Missing"
    with pytest.raises(emfc.UserError, match=r"'this\.module\.Missing'.* no transform is registered"):
        program_from_document(document, tensors)
    assert "this" not in sys.modules


def test_a_class_that_nobody_registered_is_refused():
    def refused():
        pyro.sample("x", Unregistered(1.0))

    with pytest.raises(emfc.CompileError) as caught:
        emfc.compile(refused)
    assert caught.value.code == "E-NOCDF"
    assert "Unregistered" in caught.value.reason
    assert "family_of" in caught.value.advice


class Forgetful(Rayleigh):
    def __init__(self, sigma, validate_args=None):
        super().__init__(sigma, validate_args)


class Secretive(Rayleigh):
    def __init__(self, scale, helper, validate_args=None):
        self.helper = helper
        super().__init__(scale, validate_args)


for _refused in (Forgetful, Secretive):
    from_normal.register(_refused, lambda held: from_normal(Rayleigh(held.scale)))


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: Forgetful(1.0), "its argument 'sigma'"), (lambda: Secretive(1.0, object()), "helper = a object")],
    ids=["attribute of another name", "an argument that is no data"],
)
def test_what_cannot_be_read_back_is_told(make, words):
    with pytest.raises(emfc.CompileError, match=words) as caught:
        emfc.compile(lambda: pyro.sample("x", make()))
    assert caught.value.code == "E-NOCDF"


def test_a_later_class_of_the_same_name_is_not_the_earlier():
    class Local(Rayleigh):
        pass

    earlier = Local
    family_of(Local)(RayleighFamily)

    class Local(Rayleigh):
        pass

    family_of(Local)(RayleighFamily)
    emfc.compile(lambda: pyro.sample("x", Local(1.0)))
    with pytest.raises(emfc.CompileError, match="Local"):
        emfc.compile(lambda: pyro.sample("x", earlier(1.0)))
