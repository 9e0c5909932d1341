"""What the rows of a table of the benchmark of the paper have in common, and how it is told."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import NamedTuple

from emfc.cli.bench.paper_cells import Request
from emfc.cli.bench.paper_tasks import TASKS
from emfc.training import fit

__all__ = ["Group", "Recipe", "group_of", "group_titles", "told_group", "told_recipe"]


class Recipe(NamedTuple):
    """How all flows of one table are built, trained and tested; see `Request`."""

    steps: int | None
    minutes: float | None
    batch: int
    hidden: tuple[int, ...]
    transforms: int
    activation: str | None
    learning_rate: float | None
    test_rows: int
    dtype: str


class Group(NamedTuple):
    """What the rows of one table have in common.

    Attributes:
        task: Key of the task.
        protocol: Where training and test examples come from.
        examples: Number of training examples.
        recipe: How flows are built, trained and tested.
    """

    task: str
    protocol: str | None
    examples: int | None
    recipe: Recipe


def group_of(request: Request) -> Group:
    """The table that a cell is of."""
    recipe = Recipe(*(getattr(request, name) for name in Recipe._fields))
    return Group(request.task, request.protocol, request.examples, recipe)


def told_group(group: Group) -> str:
    """A table in words, but for its recipe."""
    words = [TASKS[group.task].title]
    words += [] if group.protocol is None else [f"{group.protocol} protocol"]
    words += [] if group.examples is None else [f"{group.examples:,} examples"]
    return ", ".join(words)


def told_recipe(recipe: Recipe, names: Iterable[str] = Recipe._fields) -> list[str]:
    """Some parts of a recipe in words, by default all."""
    rate = recipe.learning_rate
    if rate is None:
        rate = inspect.signature(fit).parameters["learning_rate"].default
    length = f"{recipe.steps:,} steps" if recipe.steps is not None else f"{recipe.minutes:g} minutes of processor"
    words = {
        "transforms": f"{recipe.transforms} layers",
        "hidden": f"{' × '.join(map(str, recipe.hidden))} units",
        "activation": recipe.activation or "default activation",
        "steps": length,
        "minutes": length,
        "batch": f"batch {recipe.batch}",
        "learning_rate": f"learning rate {rate:g}",
        "test_rows": f"{recipe.test_rows:,} test examples",
        "dtype": recipe.dtype,
    }
    chosen = set(names)
    return list(dict.fromkeys(told for name, told in words.items() if name in chosen))


def group_titles(groups: Iterable[Group]) -> dict[Group, str]:
    """Tables in words, with those parts of the recipe that tell tables of one task apart.

    Args:
        groups: All tables, in any order.
    """
    alike: dict[str, list[Group]] = {}
    for group in dict.fromkeys(groups):
        alike.setdefault(told_group(group), []).append(group)
    titles = {}
    for title, held in alike.items():
        apart = [name for name in Recipe._fields if len({getattr(group.recipe, name) for group in held}) > 1]
        for group in held:
            titles[group] = ", ".join([title, *told_recipe(group.recipe, apart)])
    return titles
