"""The sliced programs of a plan as `emfc.program.verify` wants them: parameters of every site at given values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from emfc.layers.plan import Plan
from emfc.layers.readers import Environment
from emfc.program.verify import Evaluate

__all__ = ["evaluate_plan"]


def evaluate_plan(plan: Plan) -> Evaluate:
    """A function from flat site values and flat parameters to each site's distribution parameters by path."""
    program = plan.program
    summed = set(plan.populations.sites)
    dtype = getattr(torch, program.dtype)

    def evaluate(values: Tensor, parameters: Tensor) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        columns = torch.from_numpy(plan.layout.columns)
        example = torch.zeros(len(values), plan.dim, dtype=dtype)
        example[:, columns[columns >= 0]] = values[:, columns >= 0].to(dtype)
        plain = plan.environment(example, parameters.to(dtype))
        chosen = values[:, torch.from_numpy(plan.populations.addresses) - program.site_base]
        configured = Environment(plain.values, plain.parameters, chosen.to(dtype))
        for kernel in (*plan.kernels, *plan.observed):
            reads = kernel.mixed or kernel.held.sites[0] in summed
            held = kernel.parameters(configured if reads else plain, kernel.full)
            if reads:  # row and joint value belong together
                held = {path: _diagonal(tensor, 2 + kernel.batch_ranks[path]) for path, tensor in held.items()}
            for row, index in enumerate(kernel.held.sites):
                yield index, {path: tensor[:, row if tensor.shape[1] > 1 else 0] for path, tensor in held.items()}

    return evaluate


def _diagonal(tensor: Tensor, dim: int) -> Tensor:
    """Choose joint value ``r`` (along `dim`) for row ``r``, where either may be one for all."""
    rows = max(tensor.shape[0], tensor.shape[dim])
    picked = [tensor[min(row, len(tensor) - 1)].select(dim - 1, min(row, tensor.shape[dim] - 1)) for row in range(rows)]
    return torch.stack(picked)
