"""Evaluates the slice of one site at given values, step by step, and finds what the oracle calls the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from emfc.layers.batching import apply_step, cast
from emfc.passes.classify import flatten_paths, slice_sites
from emfc.passes.slices import Load, Slice, Step
from emfc.program.ir import Program

__all__ = ["canonical", "site_elements", "sliced_parameters"]


def _value_space(program: Program, values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
    dtype = torch.get_default_dtype()
    pieces = [program.constants.to(dtype)]
    pieces += [parameters[held.name].reshape(-1).to(dtype) for held in program.parameters]
    pieces += [values[site.name].reshape(-1).to(dtype) for site in program.sites if not site.observed]
    return torch.cat(pieces)


def _evaluate(held: Slice, space: Tensor) -> list[Tensor]:
    dtype = torch.get_default_dtype()
    computed: dict[int, Tensor] = {}
    for number, value in zip(held.numbers, held.values, strict=True):
        if isinstance(value, Load):
            computed[number] = cast(space[torch.as_tensor(value.addresses)], value.dtype, dtype)
        elif isinstance(value, Step):
            inputs = [
                cast(computed[source], kind, dtype) for source, kind in zip(value.inputs, value.kinds, strict=True)
            ]
            for offset, result in enumerate(apply_step(value, inputs, 0, dtype)):
                computed[number + offset] = result
        else:
            flat = torch.cat([cast(computed[source], value.dtype, dtype).reshape(-1) for source in value.inputs])
            computed[number] = flat[torch.as_tensor(value.indices)]
    return [computed[number] for number in held.outputs]


def sliced_parameters(
    program: Program, values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Site -> path -> parameter, from the program's slices; expanded dimensions have size one."""
    space = _value_space(program, values, parameters)
    return {
        site.name: dict(zip(flatten_paths(site.specification), _evaluate(held, space), strict=True))
        for site, held in zip(program.sites, slice_sites(program), strict=True)
    }


def site_elements(program: Program) -> dict[str, dict[str, set[int]]]:
    """Site -> parent -> the parent's elements that the site's slice reads."""
    found: dict[str, dict[str, set[int]]] = {}
    latent = [site for site in program.sites if not site.observed]
    for site, held in zip(program.sites, slice_sites(program), strict=True):
        read = np.concatenate([np.zeros(0, dtype=np.int64), *(load.addresses.reshape(-1) for load in held.loads())])
        found[site.name] = {
            parent.name: {int(a) - parent.start for a in read if parent.start <= a < parent.start + parent.size}
            for parent in latent
        }
    return found


def canonical(path: str, held: Mapping[str, Tensor]) -> Tensor:
    """The tensor that the oracle holds for a path of a specification.

    The oracle keeps the tensors that a distribution was made from, such as probabilities or a covariance; the compiler
    has one parametrisation of each family.
    """
    prefix, _, name = path.rpartition(".")
    prefix = "".join(f"{part.replace('transform', 'transform_')}." for part in prefix.split(".") if part)
    if prefix + name in held:
        return held[prefix + name]
    if name == "logits":
        probs = held[prefix + "probs"]
        return probs.log()
    if name == "gate_logits":
        return held[prefix + "gate"].log()
    if name == "scale_tril":
        if prefix + "covariance_matrix" in held:
            return torch.linalg.cholesky(held[prefix + "covariance_matrix"])
        if prefix + "precision_matrix" in held:
            return torch.linalg.cholesky(torch.linalg.inv(held[prefix + "precision_matrix"]))
    raise KeyError(path)
