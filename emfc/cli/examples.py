"""Examples on their way from a file or a program's ``data()`` to a flow."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from emfc.data import arrange_examples, column_names, first_few, read_matrix, read_table
from emfc.errors import UserError

if TYPE_CHECKING:
    from emfc.cli.loader import UserProgram

__all__ = [
    "ExampleTable",
    "check_support",
    "from_file",
    "from_program",
    "model_input",
    "read_context",
    "require_size",
    "require_width",
    "split_draws",
]


@dataclass(frozen=True)
class ExampleTable:
    """Raw examples by site, float64 on the CPU, and where they came from."""

    values: dict[str, Tensor]
    where: str

    @property
    def rows(self) -> int:
        return len(next(iter(self.values.values())))

    @property
    def flat(self) -> Tensor:
        """The examples as one matrix, shape ``[rows, D]``."""
        return torch.cat([values.reshape(self.rows, -1) for values in self.values.values()], dim=1)

    def take(self, index: Tensor) -> ExampleTable:
        """Give the rows of an index."""
        return ExampleTable({site: values[index] for site, values in self.values.items()}, self.where)


def from_file(path: Path, sites: Mapping[str, tuple[int, ...]], *, ignore: Collection[str] = ()) -> ExampleTable:
    """Read examples from a file.

    Raises:
        UserError: The file does not hold examples of these sites; see `emfc.data.read_table`.
    """
    return ExampleTable(read_table(path, sites, ignore=ignore), str(path))


def from_program(
    program: UserProgram, graph: Any, sites: Mapping[str, tuple[int, ...]], *, seed: int, rows: int | None = None
) -> ExampleTable:
    """Take examples from the ``data()`` of a program's file, as many as it gives or a number of them.

    Raises:
        UserError: There is no ``data()``, it raises, or what it returns are no examples of these sites.
    """
    given = program.call_data(seed=seed, rows=rows)
    where = f"data() of {program.path}"
    if isinstance(given, Mapping):
        observed = {name for name, site in graph.sites.items() if site.observed}
        held = [str(name) for name in given if name in observed and name not in sites]
        if held:
            raise UserError(
                f"{where} gives {held[0]!r}, which the program observes; training needs examples of "
                f"{first_few(list(sites))}: give them with --data FILE"
            )
        content: Any = {str(name): _array(value, f"{where}: {name!r}") for name, value in given.items()}
    else:
        content = _array(given, where)
    return ExampleTable(arrange_examples(content, sites, where=where), where)


def _array(value: Any, where: str) -> Any:
    try:
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
        return tensor.to(torch.float64).numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} is not an array of numbers but {type(value).__name__}") from error


def read_context(path: Path | None, rows: int) -> Tensor | None:
    """Read the context of each example, shape ``[rows, C]``.

    Raises:
        UserError: The file cannot be read or has another number of rows.
    """
    if path is None:
        return None
    context = read_matrix(path)
    if len(context) != rows:
        raise UserError(f"{path} has {len(context)} rows of context for {rows} examples; each example needs its own")
    return context


def require_width(flow: Any, path: Path, found: int) -> None:
    """Refuse contexts of the wrong width.

    Raises:
        UserError: The flow takes none, or another width.
    """
    width = flow.configuration.context_features
    if not width:
        raise UserError(f"this flow takes no context; leave out --context {path}")
    if found != width:
        raise UserError(f"{path} has {found} columns; this flow's context has {width}")


def model_input(table: ExampleTable, dtype: torch.dtype) -> dict[str, Tensor]:
    """Give raw values by site, as training and evaluation take them; these add the noise of dequantisation."""
    return {site: values.to(dtype) for site, values in table.values.items()}


def require_size(table: ExampleTable, dtype: torch.dtype) -> None:
    """Refuse values that a floating-point type cannot hold.

    Raises:
        UserError: A value is too large; says which rows and site.
    """
    for site, values in table.values.items():
        name = str(dtype).removeprefix("torch.")
        _refuse(table, site, None, ~values.to(dtype).isfinite(), f"is too large for {name}")


def check_support(table: ExampleTable, flow: Any) -> None:
    """Refuse examples that a flow gives no density.

    Args:
        table: Raw examples.
        flow: The flow, on the CPU or elsewhere.

    Raises:
        UserError: A value is no whole number where its site counts, or lies outside its site's support; says which
            rows, site and value.
    """
    layer = flow.layer
    place = flow.noise_reference
    sites = flow.graph.sites
    require_size(table, place.dtype)
    if flow.preprocess is None:
        for site, values in table.values.items():
            if sites[site].discrete:
                _refuse(table, site, sites[site], values != values.round(), "is no whole number")
        inner = {site: values + 0.5 if sites[site].discrete else values for site, values in table.values.items()}
        packed = ExampleTable(inner, table.where).flat.to(place)
    else:
        raw = flow.preprocess.pack(table.flat.to(place), generator=torch.Generator().manual_seed(0))
        packed, ladj = flow.preprocess.call_and_ladj(raw)
        if not bool(ladj.isfinite().all()):
            rows = (~ladj.isfinite()).nonzero().flatten().tolist()
            raise UserError(f"{table.where}: {_rows(rows)}: a value is out of the range that the preprocessing takes")
    outside = layer.outside(packed).cpu()
    start = 0
    for site, values in table.values.items():
        size = math.prod(values.shape[1:])
        _refuse(table, site, sites[site], outside[:, start : start + size].reshape(values.shape), "lies outside")
        start += size


def _refuse(table: ExampleTable, site: str, record: Any, bad: Tensor, fault: str) -> None:
    """Raise where a mask over a site's values has any element."""
    if not bool(bad.any()):
        return
    flat = bad.reshape(table.rows, -1)
    rows = flat.any(1).nonzero().flatten().tolist()
    column = int(flat[rows[0]].nonzero()[0])
    name = column_names({site: tuple(bad.shape[1:])})[column]
    value = float(table.values[site].reshape(table.rows, -1)[rows[0], column])
    fault = f"{fault} the support ({record.support})" if fault == "lies outside" else fault
    raise UserError(f"{table.where}: {_rows(rows)}: site {site!r}: {name} = {value:g} {fault}")


def _rows(rows: list[int]) -> str:
    return f"{'row' if len(rows) == 1 else 'rows'} {first_few(rows)} (counted from 0)"


def split_draws(flow: Any, draws: Tensor) -> dict[str, Tensor]:
    """Give a flow's draws ``[rows, D]`` as raw values by site, whole numbers where the data were.

    Args:
        flow: The flow.
        draws: Its samples.

    Returns:
        Each site's values, shape ``[rows, *shape]``.
    """
    if flow.preprocess is None:
        unpacked: dict[str, Tensor] = flow.unpack(draws)
        return unpacked
    raw = flow.preprocess.unpack(draws)
    found: dict[str, Tensor] = {}
    start = 0
    for site, shape in flow.layer.example_sites.items():
        size = math.prod(shape)
        found[site] = raw[:, start : start + size].reshape(len(raw), *shape)
        start += size
    return found
