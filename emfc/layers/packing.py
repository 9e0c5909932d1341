"""Between site values and flat examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property

import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.layers.plan import Plan
from emfc.program.ir import SiteRecord

__all__ = ["Packing"]

_TRIALS = ("Binomial", "BetaBinomial", "ExtendedBinomial", "ExtendedBetaBinomial")


def _choices(site: SiteRecord) -> int | None:
    """How many values a site has whose draws are integers by dtype; None for all others."""
    parameters = site.specification.parameters
    if site.specification.family == "Categorical":
        return int(parameters["logits"].shape[-1])
    if site.specification.family == "OrderedLogistic":
        return int(parameters["cutpoints"].shape[-1]) + 1
    return None


class Packing:
    """Packs site values into examples ``[*, D]`` and unpacks them.

    Attributes:
        places: For each site of an example its first column and its shape, in order.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sites = [plan.program.sites[index] for index in plan.example]
        self.places = {
            site.name: (plan.column(index), site.shape) for index, site in zip(plan.example, self._sites, strict=True)
        }
        self.dim = plan.dim

    def pack(
        self, values: Mapping[str, Tensor], *, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Tensor:
        """Flat examples of site values ``[*, *site_shape]``; discrete sites get uniform noise on [0, 1) added.

        Raises:
            UserError: A site is missing, unknown or of the wrong shape, or a discrete one holds fractions.
        """
        for name in values:
            if name not in self.places:
                close = get_close_matches(name, self.places, 1)
                raise UserError(f"no site {name!r} in an example" + (f"; did you mean {close[0]!r}?" if close else ""))
        missing = [name for name in self.places if name not in values]
        if missing:
            raise UserError(f"the example lacks values for {', '.join(repr(name) for name in missing[:5])}")
        parts = []
        for site in self._sites:
            value = torch.as_tensor(values[site.name])
            batch = value.ndim - len(site.shape)
            if batch < 0 or tuple(value.shape[batch:]) != site.shape:
                raise UserError(
                    f"site {site.name!r} has shape {list(site.shape)}; a value of shape {list(value.shape)} was given"
                )
            if bool(value.isnan().any()):
                raise UserError(f"site {site.name!r}: a value is no number (NaN)")
            part = self._dequantise(site, value, dtype, generator) if site.discrete else value.to(dtype)
            parts.append(part.reshape((*value.shape[:batch], site.size)))
        try:
            batch_shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        except RuntimeError:
            raise UserError("the sites' values have different numbers of examples") from None
        return torch.cat([part.expand(*batch_shape, part.shape[-1]) for part in parts], -1)

    @staticmethod
    def _dequantise(site: SiteRecord, value: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
        whole = value.to(dtype)
        if bool((whole != whole.floor()).any()):
            raise UserError(f"site {site.name!r} is discrete; its values must be whole numbers")
        levels = _choices(site)
        if bool((whole < 0).any()) or (levels is not None and bool((whole >= levels).any())):
            top = f" to {levels - 1}" if levels is not None else " on"
            raise UserError(f"site {site.name!r} takes whole numbers from 0{top}; a value lies outside")
        noise = torch.rand(whole.shape, dtype=dtype, device=whole.device, generator=generator)
        noise = noise.clamp(min=torch.finfo(dtype).eps / 2)  # strictly inside: the ends have no logit
        below = torch.nextafter(whole + 1, torch.full_like(whole, -math.inf))
        return torch.minimum(whole + noise, below)

    def unpack(self, examples: Tensor) -> dict[str, Tensor]:
        """Site values of flat examples; discrete sites give whole numbers, in the dtype that the program draws.

        Raises:
            UserError: The last dimension is not D.
        """
        if examples.shape[-1] != self.dim:
            raise UserError(f"an example of this program has {self.dim} elements, not {examples.shape[-1]}")
        result = {}
        for site in self._sites:
            start, shape = self.places[site.name]
            value = examples[..., start : start + site.size].reshape(examples.shape[:-1] + torch.Size(shape))
            if site.discrete:
                value = value.floor()
                if _choices(site) is not None:
                    value = value.long()
            result[site.name] = value
        return result

    def element_names(self) -> list[str]:
        """Names of the elements of an example."""
        names = []
        for site in self._sites:
            if not site.shape:
                names.append(site.name)
                continue
            for index in itertools.product(*(range(size) for size in site.shape)):
                names.append(f"{site.name}[{','.join(map(str, index))}]")
        return names

    @cached_property
    def levels(self) -> list[int] | None:
        """Number of levels of each element, or None where some site is not discrete with a fixed number of levels."""
        result: list[int] = []
        for site in self._sites:
            choices = 2 if site.specification.family == "Bernoulli" else _choices(site)
            if choices is not None:
                result.extend([choices] * site.size)
            elif site.specification.family in _TRIALS:
                addresses = site.specification.parameters["total_count"].addresses
                if addresses.max(initial=0) >= self._plan.program.parameter_base:
                    return None
                counts = torch.as_tensor(self._plan.program.constant_values[addresses]).reshape(addresses.shape)
                result.extend((counts.expand(site.shape).reshape(-1) + 1).long().tolist())
            else:
                return None
        return result
