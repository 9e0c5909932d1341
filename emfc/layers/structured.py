"""The structured layer: a compiled program as an `nn.Module`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import transform_to

from emfc.errors import UserError
from emfc.layers.cache import cached_plan
from emfc.layers.components import check_components
from emfc.layers.density import Density
from emfc.layers.drawing import Drawing
from emfc.layers.explanation import explain
from emfc.layers.kernel import Kernel
from emfc.layers.latents import OPEN, Gates
from emfc.layers.packing import Packing
from emfc.layers.parameters import Parameters, lifted
from emfc.layers.plan import Plan
from emfc.layers.sampling import Sampling
from emfc.layers.structured_transform import StructuredTransform
from emfc.layers.supports import ProgramConstraintMap, Supports
from emfc.program.graph import ModelGraph
from emfc.program.ir import Program

__all__ = ["StructuredLayer", "StructuredTransform"]

OPEN_GATE = 5.0
"""Logit of a gate that is nearly open, as gates begin: sigmoid(5) = 0.993."""


class StructuredLayer(nn.Module):
    """A compiled program: an invertible layer from standard-normal noise to joint draws of the program's sites.

    Args:
        program: What the front end wrote down, or what was loaded.
        gate: ``None``, ``"site"`` (one learned gate per site) or ``"element"``. A gate at 1 is the program, at 0 the
            identity followed by the support's constraint map; gates start nearly open.
        gate_form: What a gate acts on: ``"value"``, or ``"parameter"`` for location and scale of the sites that have
            these (`emfc.transforms.parameter_gates`).
        optimize: False evaluates site by site: the reference that the optimised layer equals.
        passes: Names of the passes that run, where not all should: out of fold, common, dead, recurrences, classify.
        compile: Whether log densities run under `torch.compile`, which pays after some hundred evaluations.
        chunk: How many sites of one kind a log density takes at a time, and again for their gradients, so that memory
            does not grow with the length of the program; None for all.

    Raises:
        CompileError: The program cannot be compiled.
        UserError: An option has a value that it can't have.
    """

    def __init__(
        self,
        program: Program,
        *,
        gate: str | None = None,
        gate_form: str = "value",
        optimize: bool = True,
        passes: Collection[str] | None = None,
        compile: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if gate not in (None, "site", "element"):
            raise UserError(f"gate must be None, 'site' or 'element', not {gate!r}")
        if gate_form not in ("value", "parameter"):
            raise UserError(f"gate_form must be 'value' or 'parameter', not {gate_form!r}")
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise UserError(f"chunk is a number of sites, 1 or more, or None for all; not {chunk!r}")
        if not optimize and (passes is not None or compile or chunk is not None):
            raise UserError("optimize=False is the plain reference; it takes neither passes nor compile nor chunk")
        self.program = program
        self.gate = gate
        self.gate_form = gate_form
        self.optimize = optimize
        if gate and (compile or chunk is not None):
            raise UserError("compile and chunk are for layers without gates, whose density needs no noise")
        self.plan: Plan = cached_plan(program, optimize=optimize, passes=passes)
        for kernel in self.plan.mixtures:
            check_components(kernel, program)
        if chunk is not None and self.plan.populations.sites:
            raise UserError("chunk is for programs without discrete sites that are summed out")
        self.supports = Supports(self.plan)
        self.density = Density(self.plan, self.supports, direct=optimize, compiled=compile, chunk=chunk)
        staged = optimize and not self.plan.populations.sites
        self.sampling: Drawing | Sampling = Drawing(self.plan) if staged else Sampling(self.plan)
        self.packing = Packing(self.plan)
        self._transform: StructuredTransform | None = None
        self._constraints, self._transforms, self.unconstrained = lifted(program)
        if gate:
            self.supports.check_gates()
        count = {None: 0, "site": len(self.plan.example), "element": self.noise_dim}[gate]
        self.gate_logits = (
            nn.Parameter(torch.full((count,), OPEN_GATE, dtype=getattr(torch, program.dtype))) if gate else None
        )
        owners = np.repeat(np.arange(len(self.plan.example)), [program.sites[i].noise_size for i in self.plan.example])
        self._owners: Tensor
        self.register_buffer("_owners", torch.from_numpy(owners), persistent=False)

    # ------------------------------------------------------------------ the transform

    def forward(self, context: Tensor | None = None) -> StructuredTransform:
        """The transform from noise to examples.

        Args:
            context: Accepted so that all layers of a flow are called alike; a program takes its inputs when it is
                compiled.
        """
        made = self._transform
        if made is None or made.layer is not self:  # a shallow copy has its own
            made = self._transform = StructuredTransform(self)
        return made

    @property
    def dim(self) -> int:
        """Number of elements D of an example."""
        return self.plan.dim

    @property
    def noise_dim(self) -> int:
        """Number of noise variables N; less than D where a site lives on a set of lower dimension."""
        return self.plan.noise_dim

    @property
    def graph(self) -> ModelGraph:
        """The program's graph."""
        return ModelGraph(self.program, partial(getattr, self.plan, "parents"))

    # ------------------------------------------------------------------ parameters and gates

    def _constrained(self) -> list[Tensor]:
        return [
            value if transform is None else transform(value)
            for transform, value in zip(self._transforms, self.unconstrained, strict=True)
        ]

    def parameters_like(self, like: Tensor) -> Parameters:
        """All program parameters, constrained, in the dtype and device of `like`."""
        return Parameters(tuple(self._raw()), self._transforms, like)

    def _raw(self) -> Iterable[Tensor]:
        """The program's unconstrained parameters, sooner than through the list of them."""
        return self._modules["unconstrained"]._parameters.values()  # type: ignore[union-attr,return-value]

    def program_log_prob(self, examples: Tensor, unconstrained: Sequence[Tensor]) -> Tensor:
        """Log density ``[B]`` of examples ``[B, D]`` under the bare program at some unconstrained parameters."""
        return self.density.log_prob(examples, Parameters(unconstrained, self._transforms, examples), OPEN)

    def flat_parameters(self, like: Tensor) -> Tensor:
        """All program parameters, constrained and flat ``[P]``, in the dtype and device of `like`."""
        return self.parameters_like(like).flat

    def flattened(self, value: Tensor) -> Tensor:
        """Examples ``[*, D]`` as ``[B, D]``.

        Raises:
            UserError: They have another number of elements.
        """
        if value.shape[-1] != self.dim:
            raise UserError(f"an example of this program has {self.dim} elements, not {value.shape[-1]}")
        return value if value.ndim == 2 else value.reshape(value.shape[:-1].numel(), self.dim)

    def values(self) -> dict[str, Tensor]:
        """The program's parameters by name, constrained."""
        return {p.name: value for p, value in zip(self.program.parameters, self._constrained(), strict=True)}

    def set_values(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters to constrained values.

        Raises:
            UserError: No such parameter, another shape, or a value outside its constraint.
        """
        names = [parameter.name for parameter in self.program.parameters]
        for name, value in values.items():
            if name not in names:
                raise UserError(f"the program has no parameter {name!r}; it has {', '.join(names) or 'none'}")
            place = names.index(name)
            target, constraint = self.unconstrained[place], self._constraints[place]
            value = torch.as_tensor(value, dtype=target.dtype, device=target.device)
            if tuple(value.shape) != self.program.parameters[place].shape:
                raise UserError(
                    f"parameter {name!r} has shape {self.program.parameters[place].shape}, not {tuple(value.shape)}"
                )
            if not bool(constraint.check(value).all()):
                raise UserError(f"the value given for parameter {name!r} violates its constraint {constraint}")
            with torch.no_grad():
                target.copy_(transform_to(constraint).inv(value))

    def element_gates(self) -> Tensor | None:
        """The gate of each element of the noise ``[N]``, in [0, 1]; None where the layer has none."""
        if self.gate is None or self.gate_logits is None:
            return None
        gates = self.gate_logits.sigmoid()
        return gates[self._owners] if self.gate == "site" else gates

    def _gates(self) -> Gates:
        return OPEN if self.gate is None else Gates(self.element_gates(), self.gate_form)

    def gate_values(self) -> dict[str, Tensor]:
        """Gate of each site in [0, 1]: a number, or an array in the shape of the site's noise for ``gate="element"``.

        The noise has the site's own shape, except where the site lives on a set of lower dimension.
        """
        held = self.element_gates()
        if held is None or self.gate_logits is None:
            return {}
        result = {}
        for place, index in enumerate(self.plan.example):
            site, start = self.program.sites[index], self.plan.noise[index]
            if self.gate == "site":
                result[site.name] = self.gate_logits.detach()[place].sigmoid()
            else:
                result[site.name] = held[start : start + site.noise_size].detach().reshape(site.noise_shape)
        return result

    def set_gates(self, value: float) -> None:
        """Set every gate: 1 is exactly the program, 0 exactly the backbone; at these two ends it no longer trains.

        Raises:
            UserError: The layer has no gates, or the value is outside [0, 1].
        """
        if self.gate_logits is None:
            raise UserError("this layer was compiled without gates; compile it with gate='site' or gate='element'")
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise UserError(f"a gate is a number in [0, 1], not {value!r}")
        with torch.no_grad():
            self.gate_logits.fill_(math.log(value / (1 - value)) if 0 < value < 1 else math.inf * (2 * value - 1))

    # ------------------------------------------------------------------ examples

    @property
    def example_sites(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the sites of an example, in order."""
        return {name: shape for name, (_, shape) in self.packing.places.items()}

    @property
    def levels(self) -> list[int] | None:
        """Number of levels of each element where all sites are discrete with finitely many levels, else None."""
        return self.packing.levels

    def pack(self, values: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Tensor:
        """Flat examples ``[*, D]`` of site values; discrete sites get uniform dequantisation noise."""
        like = self.unconstrained[0] if len(self.unconstrained) else self.gate_logits
        dtype = like.dtype if like is not None else getattr(torch, self.program.dtype)
        return self.packing.pack(values, dtype=dtype, generator=generator)

    def unpack(self, examples: Tensor) -> dict[str, Tensor]:
        """Site values of flat examples; discrete sites give their integers back."""
        return self.packing.unpack(examples)

    def element_names(self) -> list[str]:
        """Names of the elements of an example: ``"site"``, ``"site[3]"``, ``"site[1,2]"``."""
        return self.packing.element_names()

    def constraint_map(self) -> ProgramConstraintMap:
        """The map from R^N to the product of the supports.

        Raises:
            CompileError: The support of a site depends on other sites' values (E-SUPPORT).
        """
        return ProgramConstraintMap(self)

    def outside(self, examples: Tensor) -> Tensor:
        """Which elements ``[*, D]`` lie outside their site's support."""
        flat = self.flattened(examples)
        return self.supports.outside(flat, self.flat_parameters(flat)).reshape(examples.shape)

    # ------------------------------------------------------------------ telling

    def rows(self) -> list[dict[str, Any]]:
        """One row per site: what it is and what it became."""
        told = []
        kernels = self.plan.rows()
        for index, site in enumerate(self.program.sites):
            kernel: Kernel | None = kernels[index][0] if index in kernels else None
            told.append(
                {
                    "name": site.name,
                    "family": site.specification.title,
                    "shape": list(site.shape),
                    "parents": [self.program.sites[parent].name for parent in self.plan.parents[index]],
                    "observed": site.observed,
                    "transform": self._became(index, kernel),
                }
            )
        return told

    def _became(self, index: int, kernel: Kernel | None) -> str:
        site = self.program.sites[index]
        if site.observed:
            return "observed: outside the layer"
        if index in self.plan.populations.sites:
            populations = self.plan.populations
            start = self.plan.program.sites[index].start
            levels = populations.levels[int(np.searchsorted(populations.addresses, start))]
            return f"summed out ({levels} populations)"
        if kernel is None:
            return "empty"
        text = self.supports.names[kernel.number]
        if kernel.mixed:
            text = f"mixture of {self.plan.elimination.slots[kernel.number].count} x {site.specification.title}"
        return f"dequantised {text}" if site.discrete else text

    def explain(self) -> str:
        """What each pass did, in words."""
        return explain(self.program, self.plan, self.sampling)

    def extra_repr(self) -> str:
        noise = f", N={self.noise_dim}" if self.noise_dim != self.dim else ""
        return f"{len(self.plan.example)} sites, D={self.dim}{noise}, gate={self.gate!r}"
