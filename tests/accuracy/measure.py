"""The figures of one family: round trips of every draw, and mpmath on as many as there is time for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution

from emfc.testing.rounding import BOUNDS, jacobian, rounding_of
from emfc.testing.subject import LIMITS, unvalidated
from emfc.transforms import NormalTransform, from_normal
from tests.accuracy.oracle import Truth
from tests.accuracy.ranges import Range

DRAWS, NOISES = 10_000, 8
FLOOR = 1e-3


@dataclass(frozen=True)
class Family:
    """A family, where its parameters are drawn from, and its exact tails.

    Attributes:
        build: Makes the distribution of named parameters.
        ranges: The parameters, in the order in which the oracle takes them.
        tails: Lower and upper tail of a value given parameters, in mpmath; for vectors a list of such pairs, one per
            element of the noise.
        oracle: Draws that mpmath sees, in each precision.
        digits: Of mpmath.
        gradient: What the relative error of gradients may be.
        draws: Draws that make the round trip.
        reach: Size of noise beyond which values are rounded too coarsely for a round trip.
        single: True for a distribution whose parameters take no batch; it is mapped by `vmap`.
        note: What the page says instead of a number of draws.
    """

    build: Callable[..., Distribution]
    ranges: dict[str, Range]
    tails: Callable[..., Any] | None
    oracle: int = 1000
    digits: int = 60
    gradient: float = 1e-6
    draws: int = DRAWS
    reach: float = math.inf
    single: bool = False
    note: str = ""

    def parameters(self, count: int, dtype: torch.dtype, generator: Generator) -> dict[str, Tensor]:
        """Random parameters, rounded to a dtype."""
        return {name: part.draw(count, generator).to(dtype) for name, part in self.ranges.items()}

    def transform(self, parameters: dict[str, Tensor]) -> NormalTransform:
        """The transform with these parameters."""
        if self.single:
            return _Mapped(self.build, parameters)
        with unvalidated():
            return from_normal(self.build(**parameters))

    def noise_shape(self, parameters: dict[str, Tensor]) -> torch.Size:
        """Shape of one noise per draw."""
        first = {name: value[0] for name, value in parameters.items()}
        count = next(iter(parameters.values())).shape[0]
        with unvalidated():
            dist = self.build(**first)
            shape = from_normal(dist).inverse_shape(dist.batch_shape + dist.event_shape)
        return torch.Size((count, *shape))

    def noise(self, shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
        """Random noise over the whole range, one in eleven at its ends."""
        place = torch.rand(shape, dtype=torch.float64, generator=generator).to(dtype)
        return min(LIMITS[dtype], self.reach) * (2.2 * place - 1.1).clamp(-1, 1)


class _Mapped(NormalTransform):
    """Transforms of many distributions without a batch, one per draw."""

    def __init__(self, build: Callable[..., Distribution], parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.build, self.parameters = build, parameters
        one = self._one({name: value[0] for name, value in parameters.items()})
        self.domain, self.codomain, self.discrete = one.domain, one.codomain, one.discrete

    def _one(self, parameters: dict[str, Tensor]) -> NormalTransform:
        with unvalidated():
            return from_normal(self.build(**parameters))

    def _map(self, direction: str, x: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        place = x.dim() - event_dim - 1
        run = torch.func.vmap(
            lambda parameters, e: getattr(self._one(parameters), direction)(e), (0, place), (place, place)
        )
        return run(self.parameters, x)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._map("call_and_ladj", x, self.domain.event_dim)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._map("inverse_and_ladj", y, self.codomain.event_dim)


@dataclass
class Worst:
    """The worst figure so far and where it was found."""

    figure: float = 0.0
    place: dict[str, Any] = field(default_factory=dict)

    def see(self, figures: Tensor, place: Callable[[int], dict[str, Any]]) -> None:
        """Take the worst of flat figures, if it is worse; what is not a number is worst of all."""
        figures = figures.detach().double().nan_to_num(nan=torch.inf)
        if figures.numel() and float(figures.max()) > self.figure:
            index = int(figures.argmax())
            self.figure, self.place = float(figures[index]), place(index)


def _describe(parameters: dict[str, Tensor], noise: Tensor, draw: int) -> dict[str, Any]:
    return {name: value[draw].tolist() for name, value in parameters.items()} | {"noise": noise[draw].tolist()}


def round_trips(family: Family, dtype: torch.dtype, seed: int) -> Worst:
    """Worst error of the round trip as a multiple of what is permitted, over all draws and the whole range of noise."""
    generator = torch.Generator().manual_seed(seed)
    result = Worst()
    block = 2500
    for start in range(0, family.draws, block):
        count = min(block, family.draws - start)
        parameters = family.parameters(count, dtype, generator)
        shape = family.noise_shape(parameters)
        noise = family.noise((NOISES, *shape), dtype, generator)
        transform = family.transform(parameters)
        with torch.no_grad():
            value, _ = transform.call_and_ladj(noise)
            back, _ = transform.inverse_and_ladj(value)
        error = (back - noise).abs().double()
        allowed = BOUNDS[dtype] * noise.abs().clamp(min=1).double()
        if not bool((error <= allowed).all()):
            allowed = torch.maximum(allowed, rounding_of(transform, noise, value))
        finite = torch.isfinite(value).flatten(2).all(-1) if value.dim() > 2 else torch.isfinite(value)
        ratio = (error / allowed).flatten(2).amax(-1) if error.dim() > 2 else error / allowed
        ratio = torch.where(finite, ratio, torch.inf)
        result.see(
            ratio.flatten(),
            lambda at, p=parameters, e=noise, n=count: _describe(p, e[at // n], at % n),
        )
    return result


def _subnormal(value: Tensor) -> Tensor:
    """True for draws with an element next to 0, where derivatives of noise are cut off lest multiples overflow."""
    size = value.reshape(value.shape[0], -1).abs()
    return ((size > 0) & (size < 1e-300)).any(-1)


def _along(gradient: Tensor | None, tangent: Tensor) -> Tensor:
    """The derivative of each draw along its direction."""
    if gradient is None:
        return torch.zeros(tangent.shape[0], dtype=tangent.dtype)
    return (gradient * tangent).reshape(tangent.shape[0], -1).sum(-1)


def against_mpmath(family: Family, dtype: torch.dtype, seed: int) -> dict[str, Worst]:
    """Worst errors against mpmath: of the value in noise, and in float64 of gradients in both directions."""
    generator = torch.Generator().manual_seed(seed + 1)
    count = family.oracle
    parameters = family.parameters(count, dtype, generator)
    shape = family.noise_shape(parameters)
    noise = family.noise(shape, dtype, generator)
    transform = family.transform(parameters)
    with torch.no_grad():
        value = transform.call_and_ladj(noise)[0]
    rounding = rounding_of(transform, noise, value).reshape(count, -1)
    bound = BOUNDS[dtype] * noise.abs().clamp(min=1).double().reshape(count, -1)
    permitted = torch.maximum(bound, rounding)
    flat = noise.reshape(count, -1).tolist()
    truths = [
        Truth(family.tails, x, [part[draw].tolist() for part in parameters.values()], family.digits)
        for draw, x in enumerate(value.tolist())
    ]
    error = torch.tensor(
        [[truth.error(place, e) for place, e in enumerate(row)] for truth, row in zip(truths, flat, strict=True)]
    )
    worst = {"mpmath": Worst()}
    place = lambda at: _describe(parameters, noise, at)  # noqa: E731
    worst["mpmath"].see((error.abs() / permitted).amax(-1), place)
    if dtype == torch.float64:
        exact = (rounding <= bound).all(-1) & ~_subnormal(value)
        for name, figures in _gradients(family, parameters, noise, value, truths, flat, exact, generator).items():
            worst[name] = Worst()
            worst[name].see(figures, place)
    return worst


def _gradients(
    family: Family,
    parameters: dict[str, Tensor],
    noise: Tensor,
    value: Tensor,
    truths: Sequence[Truth],
    flat: Sequence[Sequence[float]],
    exact: Tensor,
    generator: Generator,
) -> dict[str, Tensor]:
    """Relative errors of every derivative, per draw: by the input, and by each parameter, the worse direction's.

    Derivatives along a direction of noises by values and parameters are compared as they are; those of values by
    noises and parameters are carried to noise by the former. Draws whose value is rounded more coarsely than the round
    trip asks for are left out: their derivatives change within the rounding.
    """
    count, names = value.shape[0], list(parameters)
    leaves = [part.clone().requires_grad_() for part in parameters.values()]
    transform = family.transform(dict(zip(names, leaves, strict=True)))
    tangents = [part.tangent(value, generator) for part, value in zip(family.ranges.values(), leaves, strict=True)]
    tangents = [part.detach() for part in tangents]
    dims, value_dims = noise.dim() - 1, value.dim() - 1
    if dims:
        slopes = jacobian(transform.call_and_ladj, noise, dims, value_dims, None).detach()
        chosen = torch.randint(slopes.shape[-1], (count, 1, 1), generator=generator)
        ahead = torch.take_along_dim(slopes, chosen, -1).reshape(value.shape)
        unit = torch.zeros(count, slopes.shape[-1], dtype=value.dtype).scatter(1, chosen[:, :, 0], 1)
    else:
        ahead = transform.call_and_ladj(noise)[1].exp().detach()
        unit = torch.ones(count, 1, dtype=value.dtype)
    # derivatives of each noise by the value and the parameters, along their directions
    leaf = value.clone().requires_grad_()
    back = transform.inverse_and_ladj(leaf)[0].reshape(count, -1)
    rows = [
        torch.autograd.grad(back[:, place].sum(), [leaf, *leaves], retain_graph=True, allow_unused=True)
        for place in range(back.shape[1])
    ]
    inverse = [
        torch.stack([_along(row[which], tangent) for row in rows], -1)
        for which, tangent in enumerate([ahead, *tangents])
    ]
    # derivatives of each element of the value by the parameters, carried to noise
    out = transform.call_and_ladj(noise)[0].reshape(count, -1)
    columns = [
        torch.autograd.grad(out[:, place].sum(), leaves, retain_graph=True, allow_unused=True)
        for place in range(out.shape[1])
    ]
    result = {}
    for which, (name, tangent) in enumerate(zip(["input", *names], [ahead, *tangents], strict=True)):
        sizes = inverse[which].detach().abs().amax(-1).nan_to_num(nan=1.0, posinf=1e300).tolist()
        true = torch.tensor(
            [
                truth.derivative(e, which - 1 if which else None, along, size) if good else [0.0] * len(e)
                for truth, e, along, good, size in zip(
                    truths, flat, tangent.tolist(), exact.tolist(), sizes, strict=True
                )
            ],
            dtype=value.dtype,
        )
        size = true.abs().amax(-1, keepdim=True).clamp(min=FLOOR)
        error = (inverse[which] - true).abs() / size
        if which:
            moved = torch.stack([_along(column[which - 1], tangent) for column in columns], -1).reshape(value.shape)
            carried = torch.stack([_along(row[0], moved) for row in rows], -1)
            forward = (carried + true).abs() / size
        else:
            forward = (true - unit).abs()
        result[name] = torch.where(exact, torch.maximum(error, forward).amax(-1), 0.0)
    return result


def within(seconds: float, draws: int, limit: int, run: Callable[[int], object]) -> int:
    """How many draws fit into seconds, by the time that some take: those at least, and a round number."""
    begun = time.perf_counter()
    run(draws)
    fitting = draws * seconds / (time.perf_counter() - begun)
    round_down = 10 ** max(math.floor(math.log10(fitting)), 0)
    return min(max(int(fitting) // round_down * round_down, draws), limit)


def measure(family: Family, seed: int = 0, seconds: float = 0.0) -> dict[str, Any]:
    """All figures of a family, as they are stored.

    Args:
        family: What is measured.
        seed: Of the draws.
        seconds: As many draws meet mpmath as fit into this time, those of the family at least, all of them at most.
    """
    if seconds and family.tails is not None:

        def pilot(count: int) -> None:
            for dtype in (torch.float32, torch.float64):
                against_mpmath(replace(family, oracle=count), dtype, seed)

        family = replace(family, oracle=within(seconds, family.oracle, family.draws, pilot))
    begun = time.perf_counter()
    figures: dict[str, Any] = {"draws": family.draws, "oracle": family.oracle if family.tails else 0}
    for dtype, name in ((torch.float32, "float32"), (torch.float64, "float64")):
        found = {"round trip": round_trips(family, dtype, seed)}
        if family.tails is not None:
            found |= against_mpmath(family, dtype, seed)
        figures[name] = {key: {"figure": worst.figure, "place": worst.place} for key, worst in found.items()}
    figures["seconds"] = time.perf_counter() - begun
    return figures
