"""The log joint density of a model's latent sites and its data: the target of variational inference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from emfc.errors import UserError
from emfc.layers.density import connected
from emfc.layers.filtering import Filter
from emfc.layers.kernel import Kernel
from emfc.layers.logdensity import LogDensity
from emfc.layers.mixed_density import MixedLogDensity
from emfc.layers.parameters import Parameters, lifted
from emfc.layers.plan import Plan
from emfc.layers.planning import make_plan
from emfc.layers.supports import UNCOMPUTABLE
from emfc.layers.terms import site_log_density
from emfc.program.errors import CompileError
from emfc.program.improper import IMPROPER
from emfc.program.target import Target
from emfc.special.precision import eager

__all__ = ["LogJoint"]


class LogJoint(nn.Module):
    r"""The unnormalised log posterior of a model's latent sites.

    .. math:: \log p(x, y) = \sum_j s_j m_j \log p(x_j \mid x_{pa(j)}) + \sum_k \log f_k

    with the scales s, masks m and factors f of the model; what has no density (an improper prior) counts as 0, and
    discrete latent sites that others read are summed out. The model's own parameters are the module's, unconstrained.

    Args:
        target: The model, read as a target.

    Raises:
        CompileError: The program cannot be compiled.

    Attributes:
        dim: Number of elements D of the latent sites, without those that are summed out.
        data: The model's own data ``[O]``, side by side in program order.
    """

    data: Tensor

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        program = target.program
        self.plan = make_plan(program, data=frozenset(target.data))
        _check_summed(self.plan, frozenset(target.improper()))
        dtype = getattr(torch, program.dtype)
        held = [value.reshape(-1).to(dtype) for _, value in sorted(target.data.items())]
        self.register_buffer("data", torch.cat(held) if held else torch.zeros(0, dtype=dtype), persistent=False)
        self.dim = self.plan.dim - len(self.data)
        self._constraints, self._transforms, self.unconstrained = lifted(program)
        improper = frozenset(target.improper())
        self._apart = not self.plan.mixtures and _reads_apart(self.plan, self.dim)
        split = self.dim if self._apart else None
        self._plain = LogDensity(self.plan, only=lambda kernel: kernel.held.sites[0] not in improper, split=split)
        self._mixed = (
            MixedLogDensity(self.plan, Filter(self.plan, target=True), self._plain) if self.plan.mixtures else None
        )
        self._some = any(kernel.held.sites[0] not in improper for kernel in self.plan.ordinary)

    @cached_property
    def data_sites(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the data, in order."""
        sites = self.target.program.sites
        return {sites[index].name: sites[index].shape for index in sorted(self.target.data)}

    def forward(self, examples: Tensor, data: Tensor | None = None) -> Tensor:
        """Log joint density ``[*]``; gradients reach the examples, the data and the model's parameters.

        It is -inf, with a gradient of zero, where an example lies outside the support or the density cannot be
        computed, and no number only where an element of the example is none.

        Args:
            examples: Values of the latent sites ``[*, D]``, in program order.
            data: Other data than the model's own, ``[O]`` or ``[*, O]``, the data sites side by side in program order.
                They take the place of the values of the observed sites, and of what the model computes from what
                `pyro.sample` returns for these; not of numbers that it reads in its arguments elsewhere.

        Raises:
            UserError: A tensor of another width, or other data where the model reads its data elsewhere, too.
        """
        if examples.ndim == 0 or examples.shape[-1] != self.dim:
            width = examples.shape[-1] if examples.ndim else 1
            raise UserError(f"the model has {self.dim} latent numbers, not {width}")
        flat = examples if examples.ndim == 2 else examples.reshape(examples.shape[:-1].numel(), self.dim)
        held = self._data_rows(flat, examples, data)
        parameters = self._parameters_like(flat)
        if not eager():
            total = self._total(flat, held, parameters)
            return torch.where(total.isnan(), -torch.inf, total).reshape(examples.shape[:-1])
        total = self._whole(flat, held, parameters)
        return total if examples.ndim == 2 else total.reshape(examples.shape[:-1])

    def _parameters_like(self, like: Tensor) -> Parameters:
        own = [value for value in self.unconstrained._parameters.values() if value is not None]
        return Parameters(own, self._transforms, like)

    def _data_rows(self, flat: Tensor, examples: Tensor, data: Tensor | None) -> Tensor:
        """Data ``[B or 1, O]``."""
        held = self.data if data is None else data
        width = len(self.data)
        if held.ndim == 0 or held.shape[-1] != width:
            raise UserError(f"the model has {width} numbers of data, not {held.shape[-1] if held.ndim else 1}")
        if data is not None and self.target.reread and not bool((held.detach() == self.data.to(held)).all()):
            raise UserError(
                f"the model reads the data of {self.target.reread[0]!r} in its arguments as well as by obs=, so that "
                "other data need compiling again; or let it read what pyro.sample returns"
            )
        held = held.to(dtype=flat.dtype, device=flat.device)
        if held.shape[:-1].numel() == 1:
            return held.reshape(1, width)
        try:
            rows = held.expand(*examples.shape[:-1], width)
        except RuntimeError:
            raise UserError(
                f"data of shape {tuple(data.shape if data is not None else ())} do not go with examples of shape "
                f"{tuple(examples.shape)}"
            ) from None
        return rows.reshape(len(flat), width)

    def _whole(self, flat: Tensor, data: Tensor, parameters: Parameters) -> Tensor:
        """The density of all rows, where those that fail become -inf and do no harm to the others' gradients."""
        failed = False
        try:
            total = self._total(flat, data, parameters)
            if math.isfinite(total.detach().sum().item()):
                return connected(total, flat)
            bad = total.detach().isnan() | (total.detach() == -torch.inf)
        except UNCOMPUTABLE as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            failed = True
            bad = self._uncomputable(flat.detach(), data.detach(), parameters)
        if not bool(bad.any()) and not failed:
            return connected(total, flat)
        good = (~bad).nonzero()
        missing = torch.where(flat.detach().isnan().any(-1), torch.nan, -torch.inf).to(flat.dtype)
        if not len(good):
            return connected(missing, flat)
        safe = torch.where(bad[:, None], flat.detach()[good[0]], flat)
        held = data if len(data) == 1 else torch.where(bad[:, None], data.detach()[good[0]], data)
        return torch.where(bad, missing, self._total(safe, held, parameters))

    def _uncomputable(self, flat: Tensor, data: Tensor, parameters: Parameters) -> Tensor:
        """Which rows fail, found by halving."""
        try:
            with torch.no_grad():
                total = self._total(flat, data, parameters)
            return total.isnan() | (total == -torch.inf)
        except UNCOMPUTABLE as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
        if len(flat) == 1:
            return torch.ones(1, dtype=torch.bool, device=flat.device)
        middle = len(flat) // 2
        parts = [slice(None, middle), slice(middle, None)]
        return torch.cat([self._uncomputable(flat[p], data if len(data) == 1 else data[p], parameters) for p in parts])

    def _total(self, flat: Tensor, data: Tensor, parameters: Parameters) -> Tensor:
        """Sum of all terms ``[B]``."""
        values = flat
        if not self._apart and data.shape[-1]:
            values = torch.cat([flat, data.expand(len(flat), -1)], -1)
        terms = []
        if self._mixed is not None:
            terms.append(self._mixed(values, parameters))
        elif self._some:
            terms.append(self._plain(values, parameters, data if self._apart else None))
        if self.plan.observed:
            environment = self.plan.environment(values, parameters.flat)
            for kernel in self.plan.observed:
                own = kernel.full.own(values)
                held = kernel.parameters(environment, kernel.full)
                terms.append(site_log_density(kernel.held.specification, held, own).flatten(1).sum(-1))
        total = flat.new_zeros(len(flat))
        for term in terms:
            total = total + term
        return total

    # ------------------------------------------------------------------ what `emfc.program.verify` asks

    def at(self, values: Tensor, parameters: Tensor) -> Tensor | None:
        """Log joint density ``[rows]`` at values ``[rows, S]`` of all sites that are not computed, data among them, and
        constrained parameters ``[P]``; None where discrete sites are summed out.
        """
        if self.plan.populations.sites:
            return None
        dtype = self.data.dtype
        columns = torch.from_numpy(self.plan.layout.columns)
        example = torch.zeros(len(values), self.plan.dim, dtype=dtype)
        example[:, columns[columns >= 0]] = values[:, columns >= 0].to(dtype)
        shapes = [held.shape for held in self.target.program.parameters]
        split = parameters.to(dtype).split([math.prod(shape) for shape in shapes])
        own = [value.reshape(shape) for value, shape in zip(split, shapes, strict=True)]
        return self._total(example[:, : self.dim], example[:, self.dim :], Parameters(own, [None] * len(own), example))

    def term(self, index: int, parameters: Mapping[str, Tensor], value: Tensor) -> Tensor:
        """Log density of a site at its value ``[rows, 1, *shape]`` under its parameters ``[rows, 1, ...]``."""
        site = self.target.program.sites[index]
        if site.adjustment == IMPROPER:
            return value.new_zeros(1, 1)
        given = index in self.plan.given or index in self.plan.populations.sites
        return site_log_density(site.specification, parameters, value, given=given)


def _reads_apart(plan: Plan, split: int) -> bool:
    """Whether every tensor that a class of sites reads is of latent values alone or of data alone, and whether nothing
    else reads data.
    """

    def ends(kernels: Iterable[Kernel]) -> Iterable[tuple[bool, int, int]]:
        for kernel in kernels:
            for reader in kernel.full.readers:
                picker = reader.pickers.get("site")
                if picker is not None and picker.size:
                    yield len(reader.masks) == 1, int(picker.positions.min()), int(picker.positions.max())

    inner = all(last < split for _, _, last in ends((*plan.virtual_kernels, *plan.observed)))
    return inner and all(last < split or (alone and first >= split) for alone, first, last in ends(plan.kernels))


def _check_summed(plan: Plan, improper: frozenset[int]) -> None:
    """Refuse what has no meaning beside discrete sites that are summed out.

    Raises:
        CompileError: A scale or an improper prior there (E-FACTOR).
    """
    for kernel in (*plan.mixtures, *plan.latents):
        index = kernel.held.sites[0]
        what = "an improper prior" if index in improper else None
        if "scale" in kernel.held.specification.parameters and kernel.held.specification.family == "Adjusted":
            what = "poutine.scale"
        if what is not None:
            site = plan.program.sites[index]
            raise CompileError(
                "E-FACTOR",
                f"{what} on a site that is summed out, or that reads one that is, has no single meaning",
                site=site.name,
                location=site.location,
                source=site.source,
                advice="put it on sites that read no discrete latent site",
            )
