"""The slow direction of autoregressive layers, without a pass of the whole network for every element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributions import Transform
from torch.func import functional_call

from emfc.flows._zuko import AutoregressiveTransform, DependentTransform
from emfc.flows.networks import MaskedNetwork
from emfc.flows.staircase import Staircase, sweep
from emfc.special.precision import eager

__all__ = ["FEWEST", "BlockwiseTransform", "block_size"]

FEWEST = 8
"""With fewer elements than this, passes of the whole network cost no more."""


class BlockwiseTransform(AutoregressiveTransform):  # type: ignore[misc]
    r"""An autoregressive map :math:`y_i = f(x_i; h_i(x_{<i}, c))` whose inverse is found block by block.

    The forward direction is one pass of the network h. The inverse takes about the arithmetic of one pass too, and D
    small steps at most, instead of D passes (`emfc.flows.staircase.sweep`). It gives the values of the D passes to
    rounding. Its gradients are those of the implicit function: for the cotangent v of x, the triangular system
    :math:`(\partial y / \partial x)^T w = v` is solved by the same steps in the opposite order, and w is the cotangent
    of y and, through one pass at x, of the parameters and the context: :math:`-w^T \partial y / \partial \theta`.

    Where values may not steer Python (``torch.compile``, function transforms), where dropout is on, in forward mode,
    and for second derivatives, the D passes are made.

    Args:
        network: h, whose outputs for elements ``[*, D]`` and a context ``[*, C]`` are ``[*, D, outputs]``.
        univariate: The elementwise map f for outputs ``[*, outputs]``.
        context: ``[*, C]``, or None.
        limit: The network sees its inputs clipped to ``[-limit, limit]``.
        passes: Number of passes that are enough.

    Source: Song, Meng, Liao and Ermon (2021), "Accelerating feedforward computation via parallel nonlinear equation
    solving", for the rounds within a block.
    """

    def __init__(
        self,
        network: nn.Module,
        univariate: Callable[[Tensor], Transform],
        context: Tensor | None,
        *,
        limit: float,
        passes: int,
    ) -> None:
        super().__init__(partial(_elementwise, network, univariate, context, limit), passes)
        self.network, self.univariate, self.context, self.limit = network, univariate, context, limit

    def _inverse(self, y: Tensor) -> Tensor:
        if not self._by_blocks(y):
            return self.by_passes(y)
        network: Any = self.network
        context = self.context
        if context is not None:
            if context.dim() > 1:
                context = context.expand(*y.shape[:-1], context.shape[-1])
            context = context.reshape(-1, context.shape[-1])
        names, parameters = zip(*network.named_parameters(), strict=True)
        problem = _Problem(network, self.univariate, self.limit, self.passes, names)
        given = (y.reshape(-1, y.shape[-1]), context, *parameters)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given):
            result: Tensor = _Inverse.apply(problem, *given)  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                result, _, _ = problem.solve(given[0], context)
        return result.reshape(y.shape)

    def by_passes(self, y: Tensor) -> Tensor:
        """The inverse by passes of the whole network, each of which settles one more element."""
        result: Tensor = super()._inverse(y)
        return result

    def _by_blocks(self, y: Tensor) -> bool:
        network, context = self.network, self.context
        if not isinstance(network, MaskedNetwork) or network.features < FEWEST or y.numel() == 0 or not eager():
            return False
        if forward_ad._current_level >= 0 or torch.is_autocast_enabled(y.device.type):
            return False
        tensors = [y, *network.parameters(), *(() if context is None else (context,))]
        if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
            return False
        if any(tensor.dtype != y.dtype or tensor.device != y.device for tensor in tensors):
            return False
        widths = y.shape[-1], 0 if context is None else context.shape[-1]
        if widths != (network.features, network.context_features):
            return False
        return not any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in network.modules())


def _elementwise(
    network: nn.Module, univariate: Callable[[Tensor], Transform], context: Tensor | None, limit: float, value: Tensor
) -> Transform:
    """The map of every element given those before it."""
    outputs = network(value.clamp(-limit, limit), context)
    transform: Transform = DependentTransform(univariate(outputs), 1)
    return transform


def block_size(network: MaskedNetwork, batch: int, device: torch.device) -> int:
    """Number of elements that are renewed together: as many as cost little more than one alone, or one alone.

    What a round costs beyond starting its operations grows with the numbers that the univariate map takes and with the
    part of the network that lies within the block. Where fewer than eight elements would fit, rounds do not pay.
    """
    if device.type != "cpu":
        return 64
    batch = max(batch, 1)
    weights = sum(parameter.numel() for parameter in network.parameters())
    univariate = 20_000 / (batch * network.outputs)
    inner = network.features * math.sqrt(2.5e6 / (batch * weights))
    size = int(min(univariate, inner, 64.0))
    return 1 if size < 8 else size


@dataclass(frozen=True)
class _Problem:
    """A network and a univariate map to invert for rows ``[B, D]`` and contexts ``[B, C]``, ``[1, C]`` or None."""

    network: MaskedNetwork
    univariate: Callable[[Tensor], Transform]
    limit: float
    passes: int
    names: tuple[str, ...]

    def solve(self, noise: Tensor, context: Tensor | None) -> tuple[Tensor, Staircase, list[Tensor]]:
        """Returns x, the network in order, and the values ``[n, B]`` of its hidden units before their activations."""
        network, limit = self.network, self.limit
        given = noise.t()[network.order]
        values = torch.empty_like(given)

        def advance(ranks: slice, outputs: Tensor) -> tuple[Tensor, Tensor]:
            parameters = outputs.unflatten(0, (-1, network.outputs)).transpose(1, 2)
            found = self.univariate(parameters).inv(given[ranks])
            return found.clamp(-limit, limit), found

        stairs = network.staircase(context)
        before = sweep(stairs, advance, values, block_size(network, len(noise), noise.device))
        return self._placed(values, network.order), stairs, before

    @staticmethod
    def _placed(values: Tensor, order: Tensor) -> Tensor:
        """Rows ``[B, D]`` of values ``[D, B]`` in some order of the elements."""
        result = values.new_empty(values.shape[::-1])
        result[:, order] = values.t()
        return result

    def gradients(
        self,
        given: Sequence[Tensor | None],
        wanted: Sequence[bool],
        value: Tensor,
        stairs: Staircase,
        before: Sequence[Tensor],
        cotangent: Tensor,
    ) -> list[Tensor | None]:
        """Cotangents of the noise, the context and the parameters.

        Args:
            given: Noise, context and parameters.
            wanted: Which of them want one.
            value: x ``[B, D]``.
            stairs: What `solve` returned with it.
            before: The same.
            cotangent: That of x.
        """
        own = [
            None if one is None else one.detach().requires_grad_(need) for one, need in zip(given, wanted, strict=True)
        ]
        _, context, *parameters = own
        with torch.enable_grad():
            inside = value.detach().clamp(-self.limit, self.limit)
            outputs = self._outputs(parameters, inside, context)
            leaf, point = outputs.detach().requires_grad_(), value.detach().requires_grad_()
            image = self.univariate(leaf)(point)
            slope, by_outputs = torch.autograd.grad(image.sum(), (point, leaf))
        slopes = [_slope(activation, level) for activation, level in zip(stairs.activations, before, strict=True)]
        pulled = self._pull(value.abs() <= self.limit, slope, by_outputs, stairs.transposed(slopes), cotangent)
        sought = [one for one in own[1:] if one is not None and one.requires_grad]
        if sought:
            found = torch.autograd.grad(outputs, sought, -pulled[..., None] * by_outputs, allow_unused=True)
            iterator = iter(found)
        return [pulled if wanted[0] else None] + [
            next(iterator) if one is not None and one.requires_grad else None for one in own[1:]
        ]

    def gradients_by_passes(
        self, given: Sequence[Tensor | None], wanted: Sequence[bool], cotangent: Tensor
    ) -> list[Tensor | None]:
        """The same, through passes of the whole network, so that they can be differentiated again."""
        noise, context, *parameters = given
        if noise is None:
            raise ValueError("there is no noise to differentiate")
        value = torch.zeros_like(noise)
        for _ in range(self.passes):
            outputs = self._outputs(parameters, value.clamp(-self.limit, self.limit), context)
            value = self.univariate(outputs).inv(noise)
        sought = [one for one, need in zip(given, wanted, strict=True) if need and one is not None]
        found = iter(torch.autograd.grad(value, sought, cotangent, create_graph=True, allow_unused=True))
        return [next(found) if need and one is not None else None for one, need in zip(given, wanted, strict=True)]

    def _outputs(self, parameters: Sequence[Tensor | None], inside: Tensor, context: Tensor | None) -> Tensor:
        held = {name: one for name, one in zip(self.names, parameters, strict=True) if one is not None}
        result: Tensor = functional_call(self.network, held, (inside, context))
        return result

    def _pull(self, inside: Tensor, slope: Tensor, by_outputs: Tensor, stairs: Staircase, cotangent: Tensor) -> Tensor:
        r"""Solves :math:`(\partial y / \partial x)^T w = v` for w ``[B, D]``.

        Args:
            inside: Which elements ``[B, D]`` the network sees as they are.
            slope: :math:`\partial f_i / \partial x_i` ``[B, D]``.
            by_outputs: :math:`\partial f_i / \partial h_i` ``[B, D, outputs]``.
            stairs: The transposed network, linear at x.
            cotangent: v ``[B, D]``.
        """
        order = self.network.order.flip(0)
        inside, slope, cotangent = (one.t()[order] for one in (inside, slope, cotangent))
        by_outputs = by_outputs.permute(1, 2, 0)[order]
        values = torch.empty_like(cotangent)

        def advance(ranks: slice, pulled: Tensor) -> tuple[Tensor, Tensor]:
            found = (cotangent[ranks] - pulled.where(inside[ranks], 0)) / slope[ranks]
            return (found[:, None] * by_outputs[ranks]).flatten(0, 1), found

        sweep(stairs, advance, values, block_size(self.network, values.shape[1], values.device))
        return self._placed(values, order)


def _slope(activation: Callable[[slice, Tensor], Tensor], values: Tensor) -> Tensor:
    """Derivative of an elementwise map."""
    with torch.enable_grad():
        leaf = values.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activation(slice(None), leaf).sum(), leaf)
    return slope


class _Inverse(torch.autograd.Function):
    """The inverse with the gradients of the implicit function."""

    @staticmethod
    def forward(ctx: Any, problem: _Problem, *given: Tensor | None) -> Tensor:
        noise, context = given[:2]
        if noise is None:
            raise ValueError("there is no noise to invert")
        value, stairs, before = problem.solve(noise, context)
        ctx.problem, ctx.stairs, ctx.count = problem, stairs, len(given)
        ctx.save_for_backward(*given, value, *before)
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        given, (value, *before) = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled():  # second derivatives are wanted
            return None, *ctx.problem.gradients_by_passes(given, wanted, cotangent)
        return None, *ctx.problem.gradients(given, wanted, value, ctx.stairs, before, cotangent)
