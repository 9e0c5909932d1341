"""A variational target: a program over latent sites and data, and the programs that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from emfc.program.condition import condition
from emfc.program.errors import CompileError
from emfc.program.improper import IMPROPER
from emfc.program.ir import Operand, Program, SiteRecord, Specification

__all__ = ["Target", "without_adjustment"]


@dataclass(frozen=True, eq=False)
class Target:
    """What a model says about its latent sites given its data.

    Attributes:
        program: Data are sites like the others; scales, masks, factors and computed observations stand in the
            specifications.
        data: Values of the sites that are given, by index.
        subsampled: Names of plates that took only a part of their rows, of which only the structure can be relied on.
        reread: Names of data sites whose numbers the model also reads in its arguments, such as the lags of a series.
    """

    program: Program
    data: Mapping[int, Tensor]
    subsampled: tuple[str, ...] = ()
    reread: tuple[str, ...] = ()

    def improper(self) -> tuple[int, ...]:
        """Indices of the sites whose prior is not normalised."""
        return tuple(index for index, site in enumerate(self.program.sites) if site.adjustment == IMPROPER)

    def latent(self) -> tuple[int, ...]:
        """Indices of the latent sites, in order."""
        sites = enumerate(self.program.sites)
        return tuple(index for index, site in sites if not site.observed and index not in self.data)

    def summed(self) -> tuple[int, ...]:
        """Indices of the discrete latent sites that no continuous latent site depends on."""
        program, latent = self.program, self.latent()
        discrete = [index for index in latent if program.sites[index].discrete]
        if not discrete:
            return ()
        read: set[int] = set()
        waiting = [index for index in latent if index not in discrete]
        while waiting:
            for index in waiting:
                for operand in _operands(program.sites[index].specification):
                    read.update(operand.addresses.reshape(-1).tolist())
            for held in reversed(program.instructions):
                if any(not read.isdisjoint(range(output.start, output.start + output.size)) for output in held.outputs):
                    for operand in held.operands:
                        read.update(operand.addresses.reshape(-1).tolist())
            waiting = [index for index in discrete if not read.isdisjoint(_places(program.sites[index]))]
            discrete = [index for index in discrete if index not in waiting]
        return tuple(discrete)

    def prior(self) -> Program:
        """The program of the latent sites alone; what their priors read of the data is constant.

        Improper priors are the map from the real numbers to their support, of a standard normal variable. Discrete
        latent sites that only data and each other read leave: they are summed out of the target.

        Raises:
            CompileError: No latent site is left (E-STRUCT).
        """
        sites = tuple(without_adjustment(site) for site in self.program.sites)
        dropped = [index for index, site in enumerate(sites) if site.observed]
        values = {index: np.asarray(value.double().numpy()) for index, value in self.data.items()}
        summed = self.summed()
        if len(summed) == len(self.latent()):
            raise CompileError(
                "E-STRUCT",
                "all latent sites are discrete and summed out",
                advice="give a guide at least one continuous latent site",
            )
        for index in summed:
            site, base = sites[index], self.program.site_base
            held = self.program.prototype[site.start - base : site.start - base + site.size]
            values[index] = np.asarray(held.double().numpy())
        return condition(replace(self.program, sites=sites), values, dropped)

    def flat(self) -> tuple[str, ...]:
        """Names of continuous latent sites of which a mask takes the prior of some elements away.

        Those that ``obs_mask=`` leaves to data do not count.
        """
        sites = ((index, self.program.sites[index]) for index in self.latent())
        return tuple(site.name for index, site in sites if not site.discrete and self._masked(index, flat=True).any())

    def imputed(self) -> Target:
        """The target whose ``obs_mask=`` sites have their own distribution at every element, observed ones included.

        Pyro makes two sites of one with ``obs_mask=``: the observed elements, and a latent site of all elements under
        the other mask, of which only the missing ones are read. Elements that nothing reads integrate to 1 under their
        own distribution, so that the posterior of all else and the evidence stay, where a flat density has neither.
        """
        sites = list(self.program.sites)
        for index in self.latent():
            if not self._masked(index, flat=True).any() and self._masked(index, flat=False).any():
                held = sites[index].specification
                others = {name: operand for name, operand in held.parameters.items() if name != "mask"}
                kept = replace(held, parameters=others) if others else held.children["base"]
                sites[index] = replace(sites[index], specification=kept, adjustment="poutine.scale" if others else None)
        return replace(self, program=replace(self.program, sites=tuple(sites)))

    def _masked(self, index: int, *, flat: bool) -> npt.NDArray[np.bool_]:
        """Elements of a latent site that its mask leaves out; if flat, not those that ``obs_mask=`` leaves out."""
        site = self.program.sites[index]
        masked = ~self._mask(site)
        for own, other in (("_unobserved", "_observed"), ("_observed", "_unobserved")):
            if flat and site.name.endswith(own):
                twin = site.name.removesuffix(own) + other
                for found in self.program.sites:
                    if found.name == twin and found.shape == site.shape:
                        masked = masked & ~self._mask(found)
        return masked

    def _mask(self, site: SiteRecord) -> npt.NDArray[np.bool_]:
        """Where the prior of a site counts, ``[*shape]``; nowhere by a mask that depends on random values."""
        mask = site.specification.parameters.get("mask") if site.specification.family == "Adjusted" else None
        if mask is None:
            return np.ones(site.shape, dtype=bool)
        constant = mask.addresses < self.program.parameter_base
        held = constant & (self.program.constant_values[np.where(constant, mask.addresses, 0)] != 0)
        return np.broadcast_to(held.reshape(held.shape + (1,) * (len(site.shape) - held.ndim)), site.shape)


def _operands(held: Specification) -> list[Operand]:
    """What a distribution reads."""
    return [*held.parameters.values(), *(operand for child in held.children.values() for operand in _operands(child))]


def _places(site: SiteRecord) -> range:
    """Addresses of a site's value."""
    return range(site.start, site.start + site.size)


def without_adjustment(site: SiteRecord) -> SiteRecord:
    """A site with its own distribution, whatever scales or masks its log density."""
    held = site.specification
    return replace(site, specification=held.children["base"] if held.family == "Adjusted" else held, adjustment=None)
