"""The populations behind one site: its elements' univariate components given everything before them."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from emfc.layers.kernel import Kernel
from emfc.program.errors import CompileError
from emfc.program.ir import Program
from emfc.program.specification import build, event_dim
from emfc.transforms import ScalarFamily, UnsupportedFamilyError, scalar_family

__all__ = ["check_components", "components", "sequential_components"]


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


def sequential_components(kernel: Kernel, parameters: dict[str, Tensor]) -> Generator[ScalarFamily, Tensor, None]:
    """Components of one site's elements in turn, batch ``[B or 1, K]``; send each element's value back before the next.

    Args:
        kernel: A mixed kernel.
        parameters: Evaluated for one row.
    """
    specification = kernel.held.specification
    shape = kernel.held.shape
    if specification.family == "MultivariateNormal":
        yield from _sequential_normal(parameters, shape)
        return
    for place in range(int(torch.Size(shape).numel())):
        index = _unravel(place, shape)
        chosen = {path: _element(tensor, index) for path, tensor in parameters.items()}
        yield _family(build(specification, chosen), kernel)


def _unravel(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        index.append(place % size)
        place //= size
    return tuple(reversed(index))


def _element(tensor: Tensor, index: tuple[int, ...]) -> Tensor:
    """Pick a batch element of ``[B, 1, *batch, K, *event]``, keeping ``[B, K, *event]``."""
    tensor = tensor.squeeze(1)
    for place in index:
        tensor = tensor.select(1, 0 if tensor.shape[1] == 1 else place)
    return tensor


def _sequential_normal(parameters: dict[str, Tensor], shape: tuple[int, ...]) -> Generator[ScalarFamily, Tensor, None]:
    batch = shape[:-1]
    for outer in range(int(torch.Size(batch).numel())):
        index = _unravel(outer, batch)
        loc, scale_tril = (_element(parameters[name], index) for name in ("loc", "scale_tril"))
        noises: list[Tensor] = []
        for place in range(shape[-1]):
            conditional = loc[..., place]
            if noises:
                conditional = conditional + (scale_tril[..., place, :place] * torch.stack(noises, -1)).sum(-1)
            scale = scale_tril[..., place, place]
            value = yield scalar_family(Normal(conditional, scale, validate_args=False))
            noises.append((value - conditional) / scale)
