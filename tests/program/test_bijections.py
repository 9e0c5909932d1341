"""Every transform of torch and Pyro inside a ``TransformedDistribution`` compiles or is refused with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch.distributions.transforms import Transform

import emfc
from emfc.layers import StructuredLayer
from emfc.program.serialize import program_from_document, program_to_document

T = torch.tensor
CLASSES = {
    name: found
    for name in dir(transforms)
    if isinstance(found := getattr(transforms, name), type) and issubclass(found, Transform)
}
TRIL = [[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]]

# The base's shape, and a transform that may read the value of a site before it.
WORKS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], Transform]]] = {
    "AffineTransform": ((2,), lambda a: transforms.AffineTransform(a, T([2.0, -0.5]))),
    "ComposeTransform": (
        (2,),
        lambda a: transforms.ComposeTransform(
            [
                transforms.ExpTransform(),
                transforms.ComposeTransform([transforms.ExpTransform(), transforms.AffineTransform(0.0, 2.0)]).inv,
            ]
        ),
    ),
    "CorrCholeskyTransform": ((3,), lambda a: transforms.CorrCholeskyTransform()),
    "CorrLCholeskyTransform": ((3,), lambda a: transforms.CorrLCholeskyTransform()),
    "CumulativeDistributionTransform": (
        (2,),
        lambda a: transforms.CumulativeDistributionTransform(dist.Normal(a, T([1.0, 2.0]))),
    ),
    "DiscreteCosineTransform": ((4,), lambda a: transforms.DiscreteCosineTransform()),
    "ELUTransform": ((2,), lambda a: transforms.ELUTransform()),
    "ExpTransform": ((2,), lambda a: transforms.ExpTransform()),
    "HaarTransform": ((4,), lambda a: transforms.HaarTransform(flip=True)),
    "IndependentTransform": (
        (2,),
        lambda a: transforms.IndependentTransform(transforms.AffineTransform(a, 2.0), 1),
    ),
    "LeakyReLUTransform": ((2,), lambda a: transforms.LeakyReLUTransform()),
    "LowerCholeskyAffine": ((3,), lambda a: transforms.LowerCholeskyAffine(a * torch.ones(3), a.exp() * T(TRIL))),
    "OrderedTransform": ((3,), lambda a: transforms.OrderedTransform()),
    "Permute": ((3,), lambda a: transforms.Permute(T([2, 0, 1]))),
    "PositivePowerTransform": ((2,), lambda a: transforms.PositivePowerTransform(T(1.5))),
    "ReshapeTransform": ((6,), lambda a: transforms.ReshapeTransform((6,), (2, 3))),
    "SigmoidTransform": ((2,), lambda a: transforms.SigmoidTransform()),
    "SoftplusTransform": ((2,), lambda a: transforms.SoftplusTransform()),
    "StickBreakingTransform": ((2,), lambda a: transforms.StickBreakingTransform()),
    "TanhTransform": ((2,), lambda a: transforms.TanhTransform()),
    "an inverse": ((2,), lambda a: transforms.SigmoidTransform().inv.inv),
    "an inverse affine map": ((3,), lambda a: transforms.LowerCholeskyAffine(a * torch.ones(3), T(TRIL)).inv),
    "several": (
        (3,),
        lambda a: transforms.ComposeTransform(
            [
                transforms.OrderedTransform(),
                transforms.AffineTransform(a, 0.5),
                transforms.Permute(T([1, 2, 0])),
                transforms.TanhTransform(),
            ]
        ),
    ),
}
POSITIVE = {"PowerTransform": ((2,), lambda a: transforms.PowerTransform(T(-0.5)))}
# The base's shape, a transform, and a word of the reason.
REFUSED: dict[str, tuple[tuple[int, ...], Callable[[], Transform], str]] = {
    "AbsTransform": ((2,), transforms.AbsTransform, "AbsTransform"),
    "CatTransform": ((2,), lambda: transforms.CatTransform([transforms.ExpTransform()] * 2, -1), "CatTransform"),
    "LowerCholeskyTransform": ((2, 2), transforms.LowerCholeskyTransform, "LowerCholeskyTransform"),
    "Normalize": ((2,), transforms.Normalize, "Normalize"),
    "PositiveDefiniteTransform": ((2, 2), transforms.PositiveDefiniteTransform, "PositiveDefiniteTransform"),
    "SimplexToOrderedTransform": ((3,), transforms.SimplexToOrderedTransform, "SimplexToOrderedTransform"),
    "SoftmaxTransform": ((3,), transforms.SoftmaxTransform, "SoftmaxTransform"),
    "SoftplusLowerCholeskyTransform": ((2, 2), transforms.SoftplusLowerCholeskyTransform, "SoftplusLowerCholesky"),
    "StackTransform": ((2,), lambda: transforms.StackTransform([transforms.ExpTransform()] * 2, -1), "StackTransform"),
    "UnitLowerCholeskyTransform": ((2, 2), transforms.UnitLowerCholeskyTransform, "UnitLowerCholeskyTransform"),
}
MATRICES: dict[str, tuple[Callable[[], dist.Distribution], Callable[[], Transform]]] = {
    "CholeskyTransform": (
        lambda: dist.Wishart(T(5.0), scale_tril=torch.eye(2)),
        transforms.CholeskyTransform,
    ),
    "CorrMatrixCholeskyTransform": (lambda: dist.LKJ(3, T(1.5)), transforms.CorrMatrixCholeskyTransform),
}
BASES = {"Transform"}
LEARNED = {name for name, found in CLASSES.items() if issubclass(found, torch.nn.Module)}


@pytest.fixture(autouse=True)
def _quiet(_clean_state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_every_class_is_in_exactly_one_table():
    named = {*WORKS, *POSITIVE, *REFUSED, *MATRICES, *BASES, *LEARNED}
    assert set(CLASSES) == {name for name in named if " " not in name and name != "several"}
    assert not set(WORKS) & set(REFUSED)


def _program(name):
    shape, make = {**WORKS, **POSITIVE}[name]

    def program():
        a = pyro.sample("a", dist.Normal(0.0, 0.5))
        base = dist.LogNormal(torch.zeros(shape), 0.5) if name in POSITIVE else dist.Normal(torch.zeros(shape) + a, 0.7)
        pyro.sample("x", dist.TransformedDistribution(base, [make(a)], validate_args=False))
        with pyro.plate("rows", 2):
            rows = dist.TransformedDistribution(base.expand((2, *shape)), [make(a)], validate_args=False)
            pyro.sample("y", rows.to_event(len(rows.batch_shape) - 1))

    return program


@pytest.mark.parametrize("name", [*WORKS, *POSITIVE])
def test_a_chain_has_the_density_that_pyro_gives_it(name):
    program = _program(name)
    layer = emfc.compile(program)
    noise = torch.randn(6, layer.noise_dim)
    x, ladj = layer().call_and_ladj(noise)
    again, inverse = layer().inv.call_and_ladj(x)
    torch.testing.assert_close(again, noise, rtol=0, atol=1e-8)
    torch.testing.assert_close(inverse, -ladj, rtol=0, atol=1e-8)
    assert not layer.outside(x).any()
    for row, log_prob in zip(x, layer().log_prob(x), strict=True):
        with pyro.validation_enabled(False):
            trace = pyro.poutine.trace(pyro.poutine.condition(program, layer.unpack(row))).get_trace()
        rough = 1e-6 if name == "ELUTransform" else 1e-8  # Pyro keeps its logarithm a little off zero
        torch.testing.assert_close(log_prob, trace.log_prob_sum(), rtol=0, atol=rough)
    stored = StructuredLayer(program_from_document(*program_to_document(layer.program)))
    assert torch.equal(stored().log_prob(x), layer().log_prob(x))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_bijection_of_vectors_is_refused(name):
    shape, make, word = REFUSED[name]

    def program():
        base = dist.Normal(torch.zeros(shape), 1.0)
        pyro.sample("x", dist.TransformedDistribution(base, [make()]))

    with pytest.raises(emfc.CompileError) as caught:
        emfc.compile(program)
    assert caught.value.code == "E-NOCDF", str(caught.value)
    assert word in caught.value.reason
    assert caught.value.advice


@pytest.mark.parametrize("name", ["Spline", "Planar", "Householder"])
def test_learned_transforms_are_refused_with_advice(name):
    part = CLASSES[name](2)

    def program():
        pyro.module("part", part)
        pyro.sample("x", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [part]))

    with pytest.raises(emfc.CompileError, match=rf"{name} has weights of its own.*backbone"):
        emfc.compile(program)


@pytest.mark.parametrize("name", MATRICES)
def test_transforms_of_matrices_keep_the_density(name):
    base, make = MATRICES[name]

    def program():
        pyro.sample("x", dist.TransformedDistribution(base(), [make()], validate_args=False))

    layer = emfc.compile(program)
    noise = torch.randn(4, layer.noise_dim)
    x = layer()(noise).detach()
    expected = dist.TransformedDistribution(base(), [make()], validate_args=False).log_prob(layer.unpack(x)["x"])
    torch.testing.assert_close(layer().inv(x), noise)
    torch.testing.assert_close(layer().log_prob(x), expected)
