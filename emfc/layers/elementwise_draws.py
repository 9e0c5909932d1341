"""Mixtures drawn element by element, each from its components weighed by what the elements before it tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from emfc.layers.components import element_components, element_noise
from emfc.layers.draw_groups import Draw, Group, Key, Step
from emfc.layers.latents import Enumeration, Gates
from emfc.layers.part_filter import log_normalised, marginal
from emfc.transforms import CDFTransform, mixture_family

__all__ = ["State", "draw_element"]


@dataclass(eq=False)
class State:
    """What a group knows so far.

    Attributes:
        shared: Log weights of the conditioned values ``[B or 1, lanes, *conditioned]``.
        local: By part, log weights of the values alive, normalised for each joint level of the conditioned ones,
            ``[B or 1, lanes, *conditioned, *live]``.
        noises: Those of the vector that is being drawn.
    """

    shared: Tensor | None = None
    local: dict[int, Tensor] = field(default_factory=dict)
    noises: list[Tensor] = field(default_factory=list)


def _factor(step: Step, log_prob: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Log densities ``[B or 1, lanes, K]`` over the axes, ``[B or 1, lanes, *axes]``."""
    return log_prob.reshape(*log_prob.shape[:2], *sizes) if step.inner is None else step.inner(log_prob)


def _advance(state: State, draw: Draw, conditioned: tuple[int, ...], masses: Mapping[Key, list[Tensor]]) -> None:
    """What the filter of a part does before an observation."""
    for step in draw.before:
        operation, weights = step.operation, state.local.get(draw.part)
        if operation.kind == "introduce":
            factor = _factor(step, masses[step.key][step.piece], (*conditioned, *operation.live))
            state.local[draw.part] = factor if weights is None else weights.unsqueeze(-1) + factor
        elif weights is not None:
            weights = weights.logsumexp(2 + operation.axis)
            if weights.ndim == 2 + len(conditioned):
                del state.local[draw.part]
            else:
                state.local[draw.part] = weights


def _observe(state: State, draw: Draw, conditioned: tuple[int, ...], log_prob: Tensor) -> None:
    """Take in the log densities ``[B or 1, lanes, K]`` of what was just seen."""
    live = draw.step.operation.live
    factor = _factor(draw.step, log_prob, (*conditioned, *live))
    if live:
        joint = state.local[draw.part] + factor
        state.local[draw.part] = log_normalised(joint, tuple(range(-len(live), 0)))
        factor = joint.logsumexp(tuple(range(-len(live), 0))) if conditioned else factor
    if conditioned:
        state.shared = factor if state.shared is None else state.shared + factor


def draw_element(
    draw: Draw,
    group: Group,
    state: State,
    enumeration: Enumeration,
    parameters: Mapping[str, Tensor] | None,
    masses: Mapping[Key, list[Tensor]],
    noise: Tensor,
    gates: Gates,
    floor: float,
) -> tuple[Tensor, Tensor] | None:
    """One element of every lane: values and log-Jacobians ``[B, lanes]``; None where nothing is drawn.

    Args:
        draw: Which.
        group: Its group.
        state: What is known before; changed.
        enumeration: The class at its joint values.
        parameters: Of the elements, ``[B or 1, lanes or 1, K or 1, *event]``.
        masses: Pieces of the log probabilities of what is summed out.
        noise: ``[B, lanes]``.
        gates: Of the layer.
        floor: The least log density that is told apart from zero.
    """
    _advance(state, draw, group.conditioned, masses)
    if not draw.mixed or parameters is None:
        _observe(state, draw, group.conditioned, masses[draw.step.key][draw.step.piece])
        return None
    lanes, count = noise.shape[1], enumeration.count
    if draw.place == 0:
        state.noises = []
    family = element_components(enumeration.kernel, dict(parameters), draw.place, state.noises)
    joint = state.local.get(draw.part)
    if state.shared is not None:
        shared = state.shared.reshape(*state.shared.shape, *(1,) * len(draw.step.operation.live))
        joint = shared if joint is None else joint + shared
    if joint is None:
        joint = noise.new_zeros(1, 1, *group.conditioned)
    weights = marginal(joint.expand(-1, lanes, *joint.shape[2:]), draw.step.operation.axes, enumeration, 2)
    transform = CDFTransform(mixture_family(weights.log_softmax(-1), family))
    value, ladj = gates.apply(transform, draw.columns).call_and_ladj(noise)
    log_prob = family.log_prob(value.unsqueeze(-1)).clamp(min=floor).expand(len(noise), lanes, count)
    _observe(state, draw, group.conditioned, log_prob)
    if enumeration.kernel.held.specification.family == "MultivariateNormal":
        state.noises.append(element_noise(family, value))
    return value, ladj
