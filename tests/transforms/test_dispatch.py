"""The tables by class: every way of registering, the nearest class above, and what a compiler makes of a call."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td

from emfc.transforms import from_normal
from emfc.transforms.dispatch import class_dispatch


class Animal: ...


class Cat(Animal): ...


class Kitten(Cat): ...


@pytest.fixture
def sound():
    @class_dispatch
    def sound(animal: object, loud: bool = False) -> str:
        """What it says."""
        return "nothing"

    return sound


def test_the_decorated_function_is_for_all_others(sound):
    assert sound(Animal()) == "nothing"
    assert sound.__doc__ == "What it says."


def test_every_way_of_registering(sound):
    @sound.register(Cat)
    def meow(animal, loud=False):
        return "MEOW" if loud else "meow"

    @sound.register
    def roar(animal: Animal, loud: bool = False) -> str:
        return "roar"

    def purr(animal, loud=False):
        return "purr"

    assert sound.register(Kitten, purr) is purr
    assert (sound(Animal()), sound(Cat(), loud=True), sound(Kitten()), sound(3)) == ("roar", "MEOW", "purr", "nothing")
    assert sound.dispatch(Cat) is meow
    assert sound.registry[Animal] is roar


def test_the_nearest_class_above_is_used(sound):
    sound.register(Animal, lambda animal: "roar")
    assert sound(Kitten()) == "roar"
    sound.register(Cat, lambda animal: "meow")
    assert sound(Kitten()) == "meow"


BUILDS = {
    "Normal": lambda a: td.Normal(a, a, validate_args=False),
    "Uniform": lambda a: td.Uniform(-a, a, validate_args=False),
    "Gamma": lambda a: td.Gamma(a, a, validate_args=False),
    "Weibull": lambda a: td.Weibull(a, a, validate_args=False),
    "Poisson": lambda a: td.Poisson(a, validate_args=False),
    "exponential of Normal": lambda a: td.TransformedDistribution(
        td.Normal(a, a, validate_args=False), [td.ExpTransform()], validate_args=False
    ),
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_transform_is_made_inside_a_compiled_region_without_a_break(name, dtype):
    def draw(noise, a):
        return from_normal(BUILDS[name](a)).call_and_ladj(noise)

    noise, a = torch.linspace(-3, 3, 7, dtype=dtype), torch.tensor(1.5, dtype=dtype, requires_grad=True)
    torch._dynamo.reset()
    found = torch.compile(draw, backend="aot_eager", fullgraph=True)(noise, a)
    expected = draw(noise, a)
    torch.testing.assert_close(found, expected)
    for one, other in zip(found, expected, strict=True):
        slopes = [torch.autograd.grad(part.sum(), a, retain_graph=True, allow_unused=True)[0] for part in (one, other)]
        assert (slopes[0] is None) == (slopes[1] is None)
        if slopes[0] is not None:
            torch.testing.assert_close(*slopes)
