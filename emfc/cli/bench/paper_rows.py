"""Rows of the benchmark of the paper: which flow is built around which program, with matched parameter counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from emfc.cli.bench.paper_tasks import PaperTask
from emfc.errors import UserError

if TYPE_CHECKING:
    from emfc.flows import EmbeddedModelFlow

__all__ = ["BASELINE", "KINDS", "FlowSize", "Kind", "Row", "build_flow", "read_row", "row_title"]

BASELINE = "maf"
_GATE_TITLES = {"element": " per element"}


@dataclass(frozen=True)
class Kind:
    """How a flow is put together.

    Attributes:
        title: Its name in the paper, or in the manner of the paper.
        backbone: Kind of the learned layers; None for the bare program.
        placement: Where the program stands; None for a flow without one.
        gate: Gates of the program.
        more: Learned layers beyond those of the baseline; the counts of parameters then aren't matched.
    """

    title: str
    backbone: str | None
    placement: str | None = None
    gate: str | None = None
    more: int = 0

    @property
    def embedded(self) -> bool:
        """Whether a program stands among learned layers."""
        return self.backbone is not None and self.placement is not None

    @property
    def matched(self) -> bool:
        """Whether its number of parameters is brought near to that of the baseline."""
        return self.backbone is not None and not self.more and self != KINDS[BASELINE]


def _kinds() -> dict[str, Kind]:
    kinds = {"maf": Kind("MAF", "maf"), "maf-l": Kind("MAF-L", "maf", more=1), "nsf": Kind("NSF", "nsf")}
    for backbone, prefix, before in (("maf", "", ""), ("nsf", "nsf-", "NSF ")):
        for letter, placement in (("t", "top"), ("m", "middle")):
            name = f"EMF-{letter.upper()}"
            kinds[f"{prefix}emf-{letter}"] = Kind(f"{before}{name}", backbone, placement)
            for gate in ("site", "element"):
                key = f"{prefix}gemf-{letter}" + ("" if gate == "site" else "-element")
                kinds[key] = Kind(f"{before}G{name}{_GATE_TITLES.get(gate, '')}", backbone, placement, gate)
        kinds[f"b-{backbone}"] = Kind(f"B-{backbone.upper()}", backbone, "bottom")
    kinds["bare"] = Kind("program alone", None, "top")
    return kinds


KINDS = _kinds()
"""Kinds of flows by their names on the command line."""


@dataclass(frozen=True)
class Row:
    """A row of a task's table.

    Attributes:
        kind: Key of its kind.
        program: Key of the task's program; None for a flow without one.
    """

    kind: str
    program: str | None

    @property
    def key(self) -> str:
        """How it is written on the command line."""
        return self.kind if self.program is None else f"{self.kind}:{self.program}"


def read_row(text: str, task: PaperTask) -> Row | None:
    """Read a row such as ``maf``, ``gemf-t`` (with the task's first program) or ``gemf-t:s``.

    Args:
        text: The row.
        task: The task that it is of.

    Returns:
        The row; None where the task has no such program.

    Raises:
        UserError: No kind has that name, or a flow without program is given one.
    """
    from emfc.cli.options import require_named

    name, colon, program = text.strip().partition(":")
    require_named([name], list(KINDS), what="the row")
    if KINDS[name].placement is None:
        if colon:
            raise UserError(f"{name!r} has no program; write it without {':' + program!r}")
        return Row(name, None)
    chosen = program if colon else next(iter(task.programs))
    return Row(name, chosen) if chosen in task.programs else None


def row_title(row: Row, task: PaperTask) -> str:
    """The name of a row in tables, such as ``GEMF-T, continuity``."""
    title = KINDS[row.kind].title
    if row.program is None:
        return title
    program = task.programs[row.program].title if row.program in task.programs else row.program
    return f"{title}, {program}"


@dataclass(frozen=True)
class FlowSize:
    """Size of the baseline, to which others are matched.

    Attributes:
        hidden: Widths of the hidden layers.
        transforms: Number of learned layers.
        activation: Activation of all networks; None for the default.
    """

    hidden: tuple[int, ...]
    transforms: int = 2
    activation: str | None = None


def build_flow(graph: Any, kind: Kind, size: FlowSize, *, seed: int) -> tuple[EmbeddedModelFlow, int]:
    """Build a flow around a program, as large as the baseline.

    Where the count of parameters is not that of the baseline, the hidden layers get the width whose count is nearest.
    Flows with more layers keep the baseline's widths.

    Args:
        graph: The parsed program; its supports are all that a flow without program keeps of it.
        kind: What to build.
        size: Size of the baseline.
        seed: Seed of the weights.

    Returns:
        The flow, and the number of parameters of the baseline.
    """
    from emfc.compiler import compile as compile_program
    from emfc.flows import EmbeddedModelFlow
    from emfc.flows.baseline import SupportLayer

    layers: dict[Kind, Any] = {}

    def build(chosen: Kind, hidden: Sequence[int]) -> EmbeddedModelFlow:
        options: dict[str, Any] = {} if size.activation is None else {"activation": size.activation}
        if chosen not in layers:
            compiled = compile_program(graph, gate=chosen.gate)
            layers[chosen] = SupportLayer(compiled) if chosen.placement is None else compiled
        torch.manual_seed(seed)
        return EmbeddedModelFlow.from_layer(
            layers[chosen],
            backbone=chosen.backbone,
            placement=chosen.placement or "top",
            transforms=size.transforms + chosen.more,
            hidden_features=tuple(hidden),
            program=chosen.placement is not None,
            **options,
        )

    target = build(KINDS[BASELINE], size.hidden).parameter_count
    flow = build(kind, size.hidden)
    if kind.more or kind.backbone is None or flow.parameter_count == target:
        return flow, target
    return _nearest(lambda width: build(kind, _widths(size.hidden, width)), target, size.hidden[0]), target


def _widths(hidden: Sequence[int], width: int) -> tuple[int, ...]:
    """Widths in the same proportions whose first is ``width``."""
    return tuple(max(1, round(width * other / hidden[0])) for other in hidden)


def _nearest(build: Callable[[int], EmbeddedModelFlow], target: int, first: int) -> EmbeddedModelFlow:
    """The flow whose number of parameters is nearest to a target.

    Numbers grow with the width, but for the narrowest: these need direct connections in place of hidden units.

    Args:
        build: The flow of a width.
        target: The number wanted.
        first: The width to search from.
    """
    counts: dict[int, int] = {}

    def count(width: int) -> int:
        if width not in counts:
            counts[width] = build(width).parameter_count
        return counts[width]

    high = first
    while count(high) <= target:
        high *= 2
    low = high // 2
    while low > 1 and count(low) > target and count(low // 2) < count(low):
        low //= 2
    while high - low > 1:
        middle = (low + high) // 2
        if count(middle) <= target:
            low = middle
        else:
            high = middle
    return build(min(counts, key=lambda width: abs(counts[width] - target)))
