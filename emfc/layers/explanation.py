"""What the compiler made of a program, in words."""

from __future__ import annotations

from emfc.layers.drawing import Drawing
from emfc.layers.plan import Plan
from emfc.layers.sampling import Sampling
from emfc.program.ir import Program

__all__ = ["explain"]


def explain(program: Program, plan: Plan, sampling: Drawing | Sampling) -> str:
    """One line for each pass, class of sites and stage of sampling.

    Args:
        program: As it was traced.
        plan: What the passes made of it.
        sampling: How examples are drawn.
    """
    lines = [
        f"trace: {len(program.sites)} sites, {len(program.instructions)} instructions, "
        f"{len(program.parameters)} parameters, {program.constants.numel()} constants",
        *plan.log,
        f"marginalise: {len(plan.populations.sites)} discrete sites summed out, {plan.elimination.describe()}",
    ]
    for kernel in plan.kernels:
        names = [program.sites[index].name for index in kernel.held.sites]
        steps = len(kernel.held.slice.values) - len(kernel.held.addresses)
        shown = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        lines.append(
            f"  {len(names)} x {kernel.held.specification.title}{list(kernel.held.shape)} ({shown}): "
            f"{len(kernel.held.addresses)} loads, {steps} instructions"
        )
    if isinstance(sampling, Drawing):
        stages = sampling.describe()
        lines.append(f"schedule: density in 1 stage, sampling in {len(stages)} stages")
        lines.extend(f"  {stage}" for stage in stages)
    else:
        lines.append(f"schedule: density in 1 stage, sampling in {len(sampling._schedule)} levels")
    return "\n".join(lines)
