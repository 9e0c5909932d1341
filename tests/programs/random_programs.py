"""Random programs: tensor operations composed between a few sites, the same program for the same seed.

A program is data, a list of statements over numbered tensors ``v0, v1, ...``, so it can be printed and cut down.
Every statement has been run once when it is chosen, and indices stay inside their tables at every draw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from tests.programs.random_operations import OPERATIONS, SHAPES, constant_tensor

__all__ = ["OPERATIONS", "RandomProgram", "Statement", "generate"]

ELEMENTWISE_FAMILIES: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "Normal": dist.Normal,
    "LogNormal": dist.LogNormal,
    "Laplace": dist.Laplace,
    "Logistic": dist.Logistic,
    "Cauchy": dist.Cauchy,
    "HalfNormal": lambda loc, scale: dist.HalfNormal(scale + loc * loc),
    "HalfCauchy": lambda loc, scale: dist.HalfCauchy(scale + loc * loc),
    "Exponential": lambda loc, scale: dist.Exponential(scale + loc * loc),
    "Uniform": lambda loc, scale: dist.Uniform(loc, loc + scale),
}
SUMMED_OUT = ("Categorical", "Bernoulli")
MOST_ELEMENTS, MOST_DIMENSIONS, LARGEST = 27, 3, 50.0


@dataclass(frozen=True)
class Statement:
    """``v<out> = operation(v<operands>; options)``."""

    out: int
    operation: str
    operands: tuple[int, ...] = ()
    options: tuple[Any, ...] = ()

    def __str__(self) -> str:
        options = "; " + ", ".join(map(repr, self.options)) if self.options else ""
        return f"v{self.out} = {self.operation}({', '.join(f'v{number}' for number in self.operands)}{options})"


def _sample(statement: Statement, operands: list[torch.Tensor]) -> torch.Tensor:
    """The site ``s<out>``: its location is bounded, its scale between a half and one and a half."""
    family, shape = statement.options
    loc = torch.sin(operands[0]) if operands else torch.tensor(0.0)
    scale = 0.5 + torch.sigmoid(operands[1]) if len(operands) > 1 else torch.tensor(1.0)
    if family == "MultivariateNormal":
        size = shape[-1]
        factor = 0.3 * torch.eye(size) + 0.2 * scale.mean() * torch.ones(size, size).tril()
        normal = dist.MultivariateNormal(loc.expand(shape), scale_tril=factor)
        return pyro.sample(f"s{statement.out}", normal.to_event(len(shape) - 1))
    if family == "Categorical leaf":
        logits = torch.stack([loc.expand(shape), torch.zeros(shape), scale.expand(shape)], -1)
        return pyro.sample(f"s{statement.out}", dist.Categorical(logits=logits).to_event(len(shape)))
    if family == "Categorical":
        logits = torch.cat([loc.reshape(-1)[:1], torch.zeros(1), scale.reshape(-1)[:1]])
        return pyro.sample(f"s{statement.out}", dist.Categorical(logits=logits))
    if family == "Bernoulli":
        return pyro.sample(f"s{statement.out}", dist.Bernoulli(logits=2 * loc.reshape(-1)[0]))
    return pyro.sample(f"s{statement.out}", ELEMENTWISE_FAMILIES[family](loc, scale).expand(shape).to_event(len(shape)))


def _run(statement: Statement, tensors: dict[int, torch.Tensor]) -> torch.Tensor | None:
    operands = [tensors[number] for number in statement.operands]
    if statement.operation == "sample":
        return _sample(statement, operands)
    if statement.operation == "param":
        return pyro.param(f"p{statement.out}", constant_tensor(*statement.options))
    return OPERATIONS[statement.operation].function(*operands, *statement.options)


@dataclass(frozen=True)
class RandomProgram:
    """A model made of statements; ``str`` shows them."""

    statements: tuple[Statement, ...]

    def __call__(self) -> None:
        tensors: dict[int, torch.Tensor] = {}
        for statement in self.statements:
            result = _run(statement, tensors)
            if result is not None:
                tensors[statement.out] = result

    def __str__(self) -> str:
        return "\n".join(map(str, self.statements))


class _Writer:
    """Writes a program statement by statement, running each at one draw."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.statements: list[Statement] = []
        self.tensors: dict[int, torch.Tensor] = {}
        self.fixed: set[int] = set()
        """Values of sites and parameters, and views of them: nothing is stored there."""

    def keep(self, statement: Statement, result: torch.Tensor | None, *, fixed: bool = False) -> None:
        self.statements.append(statement)
        if result is not None:
            self.tensors[statement.out] = result
            if fixed:
                self.fixed.add(statement.out)

    def fits(self, number: int, kind: str) -> bool:
        tensor = self.tensors[number]
        if kind == "z":
            return tensor.dtype == torch.long and self.statements[number].operation == "sample"
        of_tensor = "b" if tensor.dtype == torch.bool else "f" if tensor.is_floating_point() else "i"
        return of_tensor == kind.lower() and not (kind.isupper() and number in self.fixed)

    def pick(self, kind: str) -> int | None:
        """A tensor of that kind, more often a recent one."""
        pool = [number for number in self.tensors if self.fits(number, kind)]
        return self.random.choice(pool[-6:] if self.random.random() < 0.6 else pool) if pool else None

    def operation(self) -> None:
        """Adds one operation, unless a dozen attempts in a row aren't possible or leave the bounds."""
        for _ in range(12):
            weights = [operation.weight for operation in OPERATIONS.values()]
            name = self.random.choices(list(OPERATIONS), weights)[0]
            operands = tuple(self.pick(kind) for kind in OPERATIONS[name].kinds)
            if None in operands:
                continue
            statement = Statement(len(self.statements), name, operands, OPERATIONS[name].options(self.random))
            if self.attempt(statement):
                return

    def attempt(self, statement: Statement) -> bool:
        before = {number: tensor.clone() for number, tensor in self.tensors.items() if number not in self.fixed}
        in_place = OPERATIONS[statement.operation].in_place
        try:
            result = _run(statement, self.tensors)
        except (RuntimeError, IndexError, ValueError, TypeError):
            result, possible = None, False
        else:
            possible = _within_bounds(self.tensors[statement.operands[0]] if in_place else result)
        if possible:
            storage = None if result is None else result.untyped_storage().data_ptr()
            of_fixed = [self.tensors[number].untyped_storage().data_ptr() for number in self.fixed]
            reshaped = statement.operation == "reshape" and statement.operands[0] in self.fixed  # at times a view
            self.keep(statement, result, fixed=reshaped or storage in of_fixed)
        elif in_place:
            for number, tensor in before.items():
                if not torch.equal(self.tensors[number], tensor):
                    self.tensors[number].copy_(tensor)
        return possible

    def site(self, *, families: list[str]) -> None:
        """Adds a site, with a random location and scale where there are tensors to compute them from."""
        wanted = self.random.choice([(), ("f",), ("f",), ("f", "f"), ("f", "f")]) if self.tensors else ()
        operands = tuple(number for number in map(self.pick, wanted) if number is not None)
        try:
            shape = tuple(torch.broadcast_shapes(*(self.tensors[number].shape for number in operands)))
        except RuntimeError:
            operands = operands[:1]
            shape = tuple(self.tensors[operands[0]].shape)
        family = self.random.choice(families)
        shape = () if family in SUMMED_OUT else shape if operands else self.random.choice(SHAPES)
        if family == "MultivariateNormal" and not shape:
            family = "Normal"
        statement = Statement(len(self.statements), "sample", operands, (family, shape))
        value = _run(statement, self.tensors)
        self.keep(statement, None if family == "Categorical leaf" else value, fixed=True)


def _within_bounds(tensor: torch.Tensor) -> bool:
    return (
        0 < tensor.numel() <= MOST_ELEMENTS
        and tensor.ndim <= MOST_DIMENSIONS
        and bool(torch.isfinite(tensor).all())
        and float(tensor.double().abs().max()) <= LARGEST
    )


@torch.no_grad()
def generate(seed: int) -> RandomProgram:
    """A random program of two to six sites; with three seeds in ten it has discrete sites to be summed out."""
    writer = _Writer(seed)
    leaves = [*ELEMENTWISE_FAMILIES, "Normal", "Normal", "MultivariateNormal", "Categorical leaf"]
    number = writer.random.choice([2, 3, 3, 4, 5, 6])
    gap = writer.random.choice([1, 2, 4, 6, 9])
    summed = 2 if writer.random.random() < 0.3 else 0
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        if writer.random.random() < 0.2:
            shape = writer.random.choice([(), (2,), (3,)])
            numbers = [round(writer.random.uniform(-1, 1), 2) for _ in range(math.prod(shape))]
            statement = Statement(0, "param", (), (numbers, shape))
            writer.keep(statement, _run(statement, {}), fixed=True)
        for position in range(number):
            for _ in range(writer.random.randrange(gap + 1)):
                writer.operation()
            discrete = summed > 0 and position < number - 1 and writer.random.random() < 0.4
            summed -= discrete
            writer.site(families=list(SUMMED_OUT) if discrete else leaves)
    return RandomProgram(tuple(writer.statements))
