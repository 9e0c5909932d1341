"""The populations behind one site: its elements' univariate components given everything before them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from emfc.layers.kernel import Kernel
from emfc.program.errors import CompileError
from emfc.program.ir import Program
from emfc.program.specification import build, event_dim
from emfc.transforms import ScalarFamily, UnsupportedFamilyError, scalar_family

__all__ = ["check_components", "components", "element_components", "element_noise"]


def check_components(kernel: Kernel, program: Program) -> None:
    """Refuse a family that cannot be mixed element by element.

    Raises:
        CompileError: The family is neither univariate nor a multivariate normal (E-NOCDF).
    """
    specification = kernel.held.specification
    site = program.sites[kernel.held.sites[0]]
    if (event_dim(specification) or site.noise_shape != site.shape) and specification.family != "MultivariateNormal":
        raise CompileError(
            "E-NOCDF",
            f"a {specification.title} site cannot depend on a discrete site that is summed out",
            site=site.name,
            location=site.location,
            source=site.source,
            advice="use a univariate family or MultivariateNormal there",
        )


def components(kernel: Kernel, parameters: dict[str, Tensor], value: Tensor) -> ScalarFamily:
    """Components of all elements at known values, batch ``[B or 1, n, *shape, K]``.

    A multivariate normal falls apart into the conditional normals of its elements given those before,
    ``N(x_d - L_dd e_d, L_dd)`` with ``e = L^-1 (x - mu)``.

    Args:
        kernel: A mixed kernel.
        parameters: Its evaluated parameters.
        value: Site values ``[B, n, *shape]``.
    """
    distribution = build(kernel.held.specification, parameters)
    if isinstance(distribution, MultivariateNormal):
        scale_tril = parameters["scale_tril"]
        difference = value.unsqueeze(-2) - parameters["loc"]
        noise = torch.linalg.solve_triangular(scale_tril, difference.unsqueeze(-1), upper=False).squeeze(-1)
        diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
        loc = value.unsqueeze(-2) - diagonal * noise
        return scalar_family(
            Normal(loc.transpose(-1, -2), diagonal.expand(loc.shape).transpose(-1, -2), validate_args=False)
        )
    return _family(distribution, kernel)


def _family(distribution: torch.distributions.Distribution, kernel: Kernel) -> ScalarFamily:
    try:
        return scalar_family(distribution)
    except UnsupportedFamilyError as error:
        raise CompileError("E-NOCDF", str(error), advice="use a univariate family there") from error


def element_components(kernel: Kernel, parameters: dict[str, Tensor], place: int, noises: list[Tensor]) -> ScalarFamily:
    """Components of one element of each of some sites, batch ``[B or 1, C or 1, K or 1]``.

    Args:
        kernel: A mixed kernel.
        parameters: Those of the elements, ``[B or 1, C or 1, K or 1, *event]``.
        place: Of the element inside its vector, where the sites are vectors.
        noises: Of the vector's elements before, from `element_noise`.
    """
    if kernel.held.specification.family != "MultivariateNormal":
        return _family(build(kernel.held.specification, parameters), kernel)
    loc, scale_tril = parameters["loc"], parameters["scale_tril"]
    conditional = loc[..., place]
    if place:
        conditional = conditional + (scale_tril[..., place, :place] * torch.stack(noises, -1)).sum(-1)
    conditional, scale = torch.broadcast_tensors(conditional, scale_tril[..., place, place])
    return scalar_family(Normal(conditional, scale, validate_args=False))


def element_noise(family: ScalarFamily, value: Tensor) -> Tensor:
    """Noise of a vector's element under each component, from the family of `element_components`."""
    return (value.unsqueeze(-1) - family.loc) / family.scale  # type: ignore[attr-defined, no-any-return]
