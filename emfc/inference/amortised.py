"""Amortised inference: a flow that is conditioned on the data, trained for all data that the model can draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from emfc.errors import UserError
from emfc.inference.encoders import SetNetwork, perceptron, rows_of
from emfc.inference.predictive import JointProgram
from emfc.program.errors import CompileError
from emfc.program.target import Target

__all__ = ["Amortiser", "data_vector", "simulator"]


class Amortiser(nn.Module):
    """From the data of a model to what its flow is conditioned on.

    Data are centred and scaled as simulations of the model are, once `standardise` has seen some.

    Args:
        network: True or a width for a perceptron of the flat data, ``"set"`` for a network that does not depend on the
            order of rows, or an `nn.Module` from flat data ``[*, O]`` to ``[*, C]``.
        target: The model; its own data are the default.

    Raises:
        UserError: The model has no data, or the network is none of these.
    """

    def __init__(self, network: bool | int | str | nn.Module, target: Target) -> None:
        super().__init__()
        sites = target.program.sites
        self.sites = {sites[index].name: tuple(sites[index].shape) for index in sorted(target.data)}
        if not self.sites:
            raise UserError("an amortised guide needs data: the model observes nothing")
        dtype = getattr(torch, target.program.dtype)
        held = torch.cat([value.reshape(-1).to(dtype) for _, value in sorted(target.data.items())])
        self.data: Tensor
        self.centre: Tensor
        self.spread: Tensor
        self.register_buffer("data", held, persistent=False)
        self.register_buffer("centre", torch.zeros_like(held))
        self.register_buffer("spread", torch.ones_like(held))
        self.own = not isinstance(network, nn.Module)
        if isinstance(network, nn.Module):
            self.network = network
        elif network == "set":
            self.network = SetNetwork([rows_of(sites[index]) for index in sorted(target.data)], 64, dtype)
        elif isinstance(network, int) and network > 0:
            width = 64 if network is True else network
            self.network = perceptron(2 * len(held), width, width, dtype)
        else:
            raise UserError(f"amortize is True, a width, 'set' or an nn.Module, not {network!r}")
        with torch.no_grad():
            self.features = int(self(None).shape[-1])

    def forward(self, data: Tensor | None) -> Tensor:
        """Context ``[*, C]`` of flat data ``[*, O]``; of the model's own where None."""
        held = self.data if data is None else data.to(self.data)
        if held.shape[-1] != len(self.data):
            raise UserError(f"the model has {len(self.data)} numbers of data, not {held.shape[-1]}")
        scaled = (held - self.centre) / self.spread
        if self.own:
            scaled = torch.cat([scaled.clamp(-8, 8), scaled.asinh()], -1)
        return self.network(scaled)  # type: ignore[no-any-return]

    def standardise(self, data: Tensor) -> None:
        """Centre and scale by medians and interquartile ranges of simulated data ``[S, O]``."""
        low, middle, high = torch.quantile(data[:10_000], data.new_tensor([0.25, 0.5, 0.75]), dim=0)
        spread = torch.where(high > low, (high - low) / 1.349, data.std(0))
        self.centre.copy_(middle)
        self.spread.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def flat(self, data: Tensor | Mapping[str, Any]) -> Tensor:
        """Flat data ``[*, O]`` of values by site.

        Raises:
            UserError: A site is missing, unknown or of another shape.
        """
        if isinstance(data, Tensor):
            return data
        if not isinstance(data, Mapping):
            raise UserError(f"data must be a flat tensor or a mapping from data sites to values, not {data!r}")
        if set(data) != set(self.sites):
            raise UserError(f"the data sites are {', '.join(self.sites)}, not {', '.join(map(str, data)) or 'none'}")
        parts = []
        for name, shape in self.sites.items():
            value = _numbers(data[name], name).to(self.data)
            batch = value.ndim - len(shape)
            if batch < 0 or tuple(value.shape[batch:]) != shape:
                raise UserError(f"data site {name!r} has shape {list(shape)}, not {list(value.shape)}")
            parts.append(value.reshape(*value.shape[:batch], -1))
        shapes = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shapes, part.shape[-1]) for part in parts], -1)


def _numbers(value: Any, name: str) -> Tensor:
    """A data site's value as a tensor.

    Raises:
        UserError: It is not numbers.
    """
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the value of data site {name!r} is not an array of numbers but {value!r}") from error


def data_vector(
    model: Callable[..., Any], sites: Mapping[str, tuple[int, ...]], latent: Mapping[str, Tensor],
    args: tuple[Any, ...], kwargs: Mapping[str, Any],
) -> Tensor | None:  # fmt: skip
    """The flat data ``[O]`` that a model observes, given its arguments; None where it observes nothing.

    Args:
        model: The model.
        sites: Shapes of the data sites, in order.
        latent: Values of the latent sites, which are not drawn.
        args: The model's own arguments.
        kwargs: The model's own keyword arguments.

    Raises:
        UserError: A data site is missing or has another shape.
    """
    with poutine.block(), torch.no_grad():
        nodes = poutine.trace(poutine.condition(model, data=dict(latent))).get_trace(*args, **kwargs).nodes
    seen = [name for name in sites if name in nodes and nodes[name]["is_observed"]]
    found: dict[str, Any] = {name: nodes[name]["value"] for name in seen}
    if not found:
        return None
    for name, shape in sites.items():
        if name not in found:
            raise UserError(f"the model observes no value for data site {name!r} with these arguments")
        if tuple(found[name].shape) != shape:
            raise UserError(f"data site {name!r} has shape {list(shape)}, not {list(found[name].shape)}")
    return torch.cat([found[name].reshape(-1).to(torch.get_default_dtype()) for name in sites])


def simulator(target: Target) -> JointProgram:
    """What draws a model's latent sites and data together.

    Args:
        target: The model.

    Raises:
        UserError: The model cannot be simulated: it has factors, masks, scales, improper priors or computed data, or a
            family without a transform.
    """
    advice = "train the guide with objective='elbo' on data sets of your own (datasets=...)"
    for site in target.program.sites:
        if site.observed or site.adjustment is not None or site.specification.family == "Adjusted":
            told = site.adjustment or "a computed or weighted observation"
            raise UserError(f"the model cannot be simulated: site {site.name!r} has {told}; {advice}")
    try:
        return JointProgram(target)
    except CompileError as error:
        raise UserError(f"the model cannot be simulated by its compiled program ({error}); {advice}") from error
