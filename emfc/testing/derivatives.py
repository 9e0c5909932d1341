"""The laws of derivatives: log-Jacobians, gradients against differences, and NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import biject_to

from emfc.testing.report import LawResult, worst
from emfc.testing.rounding import free_elements, jacobian
from emfc.testing.subject import LIMITS, Subject
from emfc.transforms import NormalTransform

__all__ = ["gradients", "log_jacobian", "no_nan"]

# Outputs, and elements of one parameter, that differences look at; evenly spaced where there are more.
_MOST = 48
_STEPS = (1e-2, 1e-3, 1e-4, 1e-5)


def log_jacobian(subject: Subject) -> LawResult:
    """The log-Jacobian is that of automatic differentiation, and the inverse's is its negative."""
    result = LawResult("log-Jacobian")
    transform = subject.at(torch.float64)
    dims, value_dims = transform.domain.event_dim, transform.codomain.event_dim
    noise = subject.moderate(2.5, 7).requires_grad_()
    value, ladj = transform.call_and_ladj(noise)
    inverse = transform.inverse_and_ladj(value.detach())[1]
    shown = noise.flatten(-dims) if dims else noise
    if dims:
        places = free_elements(transform, value.shape[value.dim() - value_dims :], shown.shape[-1])
        if places is None:
            return LawResult(result.law, note=f"which elements are free on {transform.codomain} is not known")
        expected = torch.linalg.slogdet(jacobian(transform.call_and_ladj, noise, dims, value_dims, places))[1]
    else:
        expected = _gradients(value.sum(), [noise])[0].log()
    permitted = 1e-7 * expected.abs().clamp(min=1)
    result = worst(result, (ladj - expected).abs(), permitted, noise=shown, log_Jacobian=ladj, by_autograd=expected)
    return worst(result, (inverse + ladj).abs(), permitted, noise=shown, log_Jacobian=ladj, of_the_inverse=inverse)


def _gradients(score: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients that are zero, not missing, where there is no connection."""
    if not score.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(score, list(leaves), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, found, strict=True)]


class _Direction(NamedTuple):
    """A direction in which one input is moved, with its name."""

    name: str
    place: int
    vector: Tensor
    size: Tensor


def _spaced(count: int) -> list[int]:
    return sorted({int(i) for i in torch.linspace(0, count - 1, min(count, _MOST)).round().long()})


def _directions(
    names: Sequence[str], inputs: Sequence[Tensor], event: Size, mapped: Sequence[bool]
) -> list[_Direction]:
    """One direction per element of an event for the first input, of which all examples move at once; per parameter
    element for the others."""
    found = []
    for place in _spaced(event.numel()):
        vector = torch.zeros(event.numel(), dtype=torch.float64, device=inputs[0].device)
        vector[place] = 1
        vector = vector.reshape(event).expand(inputs[0].shape)
        found.append(_Direction(names[0], 0, vector, torch.ones((), dtype=torch.float64, device=vector.device)))
    for index, (name, value) in enumerate(zip(names[1:], inputs[1:], strict=True), 1):
        for place in _spaced(value.numel()):
            vector = torch.zeros_like(value).reshape(-1)
            vector[place] = 1
            size = value.reshape(-1)[place].abs()
            scaled = (size == 0) | mapped[index]
            size = torch.where(scaled, 1.0, size)
            label = f"{name}[{place}]" if value.numel() > 1 else name
            found.append(_Direction(label, index, vector.reshape(value.shape), size))
    return found


def _difference(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], direction: _Direction
) -> tuple[Tensor, Tensor]:
    """Derivative of every output in a direction by central differences of fourth order, and how far it is trusted.

    Of several steps that one is taken which agrees best with the next.
    """

    def moved(amount: Tensor) -> Tensor:
        values = list(inputs)
        values[direction.place] = values[direction.place] + amount * direction.vector
        return function(*values)

    estimates = []
    for step in _STEPS:
        h = step * direction.size
        near, far = moved(h) - moved(-h), moved(2 * h) - moved(-2 * h)
        estimates.append((8 * near - far) / (12 * h))
    table = torch.stack(estimates)
    apart = (table[1:] - table[:-1]).abs().nan_to_num(nan=torch.inf)
    best = apart.argmin(0, keepdim=True)
    return table[1:].gather(0, best).squeeze(0), apart.gather(0, best).squeeze(0)


def _free(transform: NormalTransform, value: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Values in coordinates without a constraint, and the way back."""
    try:
        back: Callable[[Tensor], Tensor] = biject_to(transform.codomain)
        coordinate = back.inv(value)  # type: ignore[attr-defined]
    except (NotImplementedError, AttributeError):  # a constraint without a bijection
        return value, torch.Tensor.clone
    return (coordinate, back) if bool(torch.isfinite(coordinate).all()) else (value, torch.Tensor.clone)


def gradients(subject: Subject, direction: str, tolerance: float) -> LawResult:
    """Gradients of value (or noise) and log-Jacobian by the input and by every parameter, against differences."""
    result = LawResult(f"gradients ({direction})")
    forward = direction == "forward"
    noise = subject.moderate(2.0, 5)
    fixed = subject.at(torch.float64)
    dims = fixed.domain.event_dim
    with torch.no_grad():
        value = fixed.call_and_ladj(noise)[0]
    start, back = (noise, torch.Tensor.clone) if forward else _free(fixed, value)
    event = start.shape[start.dim() - (dims if forward else fixed.codomain.event_dim) :]

    def run(x: Tensor, *free: Tensor) -> Tensor:
        transform = subject.transform(subject.bound(free))
        y, ladj = (transform.call_and_ladj if forward else transform.inverse_and_ladj)(back(x))
        return torch.cat((y.flatten(), ladj.flatten()))

    inputs = [start, *subject.free()]
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    outputs = run(*leaves)
    picks = _spaced(outputs.numel())
    by_autograd = [_gradients(outputs[pick], leaves) for pick in picks]
    examples = noise.flatten(-dims).flatten(0, -2) if dims else noise.flatten()
    count = (value if forward else noise).numel()
    each = count // examples.shape[0]
    first = torch.tensor([pick < count for pick in picks], device=noise.device)
    shown = torch.stack([examples[pick // each if pick < count else pick - count] for pick in picks])
    names = ["the noise" if forward else "the value", *subject.names]
    mapped = [True, *(map is not None for map in subject.maps)]
    for way in _directions(names, inputs, event, mapped):
        with torch.no_grad():
            expected, apart = (part[picks] for part in _difference(run, inputs, way))
        found = torch.stack([(parts[way.place] * way.vector).sum() for parts in by_autograd])
        scale = tolerance * expected.abs().clamp(min=1)
        smooth = apart <= 10 * scale  # elsewhere a corner lies within the steps
        if not bool(smooth.any()):
            result = worst(result, ~smooth, 0.0, f"no derivative by {way.name}: differences do not settle", noise=shown)
        for kind, of in (("value" if forward else "noise", first), ("log-Jacobian", ~first)):
            rows = of & smooth
            places = {"noise": shown[rows], "by_autograd": found[rows], "by_differences": expected[rows]}
            error, permitted = (found - expected).abs()[rows], (scale + 2 * apart)[rows]
            result = worst(result, error, permitted, f"derivative of the {kind} by {way.name}", **places)
    return result


def no_nan(subject: Subject) -> LawResult:
    """Out to twice the range nothing is NaN: values, log-Jacobians, and gradients by the input and every parameter."""
    result = LawResult("no NaN")
    for dtype, limit in LIMITS.items():
        noise = subject.noise(dtype, 2 * limit, 41)
        with torch.no_grad():
            value = subject.at(dtype).call_and_ladj(noise)[0]
        for direction, start in (("forward", noise), ("inverse", value)):
            leaf = start.detach().clone().requires_grad_()
            parameters = [part.requires_grad_() for part in subject.parameters(dtype)]
            transform = subject.transform(parameters)
            run = transform.call_and_ladj if direction == "forward" else transform.inverse_and_ladj
            output, ladj = run(leaf)
            text = f"{direction}, {str(dtype).removeprefix('torch.')}"
            for name, part in (("value" if direction == "forward" else "noise", output), ("log-Jacobian", ladj)):
                wrong = torch.isnan(part)
                result = worst(result, wrong, 0.0, f"the {name} is NaN ({text})", **_near(noise, wrong))
            leaves = {"the input": leaf, **dict(zip(subject.names, parameters, strict=True))}
            for name, gradient in zip(
                leaves, _gradients(output.sum() + ladj.sum(), list(leaves.values())), strict=True
            ):
                wrong = torch.isnan(gradient)
                near = _near(noise, wrong) if name == "the input" else {}
                result = worst(result, wrong, 0.0, f"the gradient by {name} is NaN ({text})", **near)
    return result


def _near(noise: Tensor, wrong: Tensor) -> dict[str, Tensor]:
    """The noise to show beside each truth value, where their first dimensions agree."""
    if noise.shape[: wrong.dim()] == wrong.shape:
        return {"noise": noise}
    cut = noise.dim() - 1
    if wrong.shape[:cut] == noise.shape[:cut]:
        spread = noise.reshape(*noise.shape[:cut], *(1,) * (wrong.dim() - cut), noise.shape[-1])
        return {"noise": spread.expand(*wrong.shape, noise.shape[-1])}
    return {}
