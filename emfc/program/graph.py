"""The graph view of a program: sites and the sites whose values their parameters really depend on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import networkx
from pydantic import BaseModel

from emfc.program.constraint import constraint_from_data
from emfc.program.ir import Parameter, Plate, Program, SiteRecord

__all__ = ["GraphDocument", "ModelGraph", "ParameterInfo", "Site"]


@dataclass(frozen=True)
class Site:
    """A sample site.

    Attributes:
        name: Its name.
        family: Class name of its distribution, wrappers removed.
        shape: Shape of its value.
        event_dim: How many of the last dimensions are one event.
        support: Short name of its support.
        observed: Whether its value is data; it is then outside the layer.
        plates: The plates that it stands in.
        discrete: Whether its values are integers.
        latent_discrete: Whether it is summed out, and so has no place in an example.
        location: ``"file.py:12"`` of its `pyro.sample`.
    """

    name: str
    family: str
    shape: tuple[int, ...]
    event_dim: int
    support: str
    observed: bool
    plates: tuple[Plate, ...]
    discrete: bool
    latent_discrete: bool
    location: str | None
    find_parents: Callable[[], tuple[str, ...]] = field(repr=False, compare=False)

    @property
    def parents(self) -> tuple[str, ...]:
        """Sites whose values its parameters depend on, in program order."""
        return self.find_parents()


@dataclass(frozen=True)
class ParameterInfo:
    """A learnable parameter: name, shape and the constraint that its value obeys."""

    name: str
    shape: tuple[int, ...]
    constraint: Any


class _PlateDocument(BaseModel):
    name: str
    size: int
    dim: int | None


class _SiteDocument(BaseModel):
    name: str
    family: str
    shape: list[int]
    event_dim: int
    support: str
    parents: list[str]
    observed: bool
    plates: list[_PlateDocument]
    discrete: bool
    latent_discrete: bool
    location: str | None


class _ParameterDocument(BaseModel):
    name: str
    shape: list[int]
    constraint: dict[str, Any]


class GraphDocument(BaseModel):
    """The JSON form of a graph."""

    format: str = "emfc-graph"
    version: int = 1
    dim: int
    noise_dim: int
    sites: list[_SiteDocument]
    parameters: list[_ParameterDocument]


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """What a program is made of.

    Attributes:
        program: The program as instructions.
        find_parents: Tells for each site the indices of its parents; called when they are first asked for, since in a
            program that carries a state they are everything before.
        model: The callable it was read from, with `args` and `kwargs`; None where the program was loaded from a file.
    """

    program: Program
    find_parents: Callable[[], tuple[tuple[int, ...], ...]]
    model: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def parent_indices(self) -> tuple[tuple[int, ...], ...]:
        """For each site the indices of its parents."""
        return self.find_parents()

    def _parents(self, index: int) -> tuple[str, ...]:
        return tuple(self.program.sites[parent].name for parent in self.parent_indices[index])

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Sites by name, in program order."""
        records = self.program.sites
        discrete = any(record.discrete and not record.observed for record in records)
        read = {parent for held in self.parent_indices for parent in held} if discrete else set()
        return {
            record.name: Site(
                name=record.name,
                family=record.specification.title,
                shape=record.shape,
                event_dim=record.event_dim,
                support=record.support,
                observed=record.observed,
                plates=record.plates,
                discrete=record.discrete,
                latent_discrete=record.discrete and not record.observed and index in read,
                location=record.location,
                find_parents=partial(self._parents, index),
            )
            for index, record in enumerate(records)
        }

    @cached_property
    def parameters(self) -> dict[str, ParameterInfo]:
        """Learnable parameters by name."""
        return {
            held.name: ParameterInfo(held.name, held.shape, constraint_from_data(held.constraint))
            for held in self.program.parameters
        }

    @cached_property
    def dim(self) -> int:
        """Number of elements D of an example."""
        return sum(record.size for record in self._example)

    @cached_property
    def noise_dim(self) -> int:
        """Number of noise variables N, less than D where a site lives on a set of lower dimension."""
        return sum(record.noise_size for record in self._example)

    @property
    def _example(self) -> list[SiteRecord]:
        """The sites of an example."""
        return [
            record
            for record, site in zip(self.program.sites, self.sites.values(), strict=True)
            if not site.observed and not site.latent_discrete
        ]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites.values())

    def to_networkx(self) -> networkx.DiGraph:
        """A directed graph whose nodes are site names, with each site's facts as attributes."""
        graph = networkx.DiGraph()
        for site in self:
            graph.add_node(
                site.name,
                family=site.family,
                shape=site.shape,
                observed=site.observed,
                summed_out=site.latent_discrete,
                plates=tuple(plate.name for plate in site.plates),
            )
        graph.add_edges_from((parent, site.name) for site in self for parent in site.parents)
        return graph

    def to_json(self, indent: int | None = 2) -> str:
        """The graph as versioned JSON; `GraphDocument` is its schema."""
        held: dict[str, Parameter] = {parameter.name: parameter for parameter in self.program.parameters}
        document = GraphDocument(
            dim=self.dim,
            noise_dim=self.noise_dim,
            sites=[
                _SiteDocument(
                    name=site.name,
                    family=site.family,
                    shape=list(site.shape),
                    event_dim=site.event_dim,
                    support=site.support,
                    parents=list(site.parents),
                    observed=site.observed,
                    plates=[_PlateDocument(name=p.name, size=p.size, dim=p.dim) for p in site.plates],
                    discrete=site.discrete,
                    latent_discrete=site.latent_discrete,
                    location=site.location,
                )
                for site in self
            ],
            parameters=[
                _ParameterDocument(name=name, shape=list(info.shape), constraint=dict(held[name].constraint))
                for name, info in self.parameters.items()
            ],
        )
        return document.model_dump_json(indent=indent)

    def to_mermaid(self) -> str:
        """The graph in Mermaid's flowchart language; observed sites are shaded, summed-out ones dashed."""
        names = {name: f"n{number}" for number, name in enumerate(self.sites)}
        lines = ["flowchart TD"]
        for site in self:
            label = f"{site.name}\\n{site.family}{list(site.shape) if site.shape else ''}".replace('"', "'")
            lines.append(f'    {names[site.name]}("{label}")')
        lines += [f"    {names[parent]} --> {names[site.name]}" for site in self for parent in site.parents]
        lines += [f"    style {names[site.name]} fill:#cccccc" for site in self if site.observed]
        lines += [f"    style {names[site.name]} stroke-dasharray: 5 5" for site in self if site.latent_discrete]
        return "\n".join(lines) + "\n"

    def to_dot(self) -> str:
        """The graph in Graphviz's language."""
        lines = ["digraph program {", "  node [shape=ellipse];"]
        for site in self:
            label = f"{site.name}\\n{site.family}{list(site.shape) if site.shape else ''}"
            style = "filled" if site.observed else "dashed" if site.latent_discrete else "solid"
            lines.append(f'  "{_escape(site.name)}" [label="{_escape(label)}", style={style}];')
        lines += [f'  "{_escape(parent)}" -> "{_escape(site.name)}";' for site in self for parent in site.parents]
        return "\n".join([*lines, "}"]) + "\n"


def _escape(text: str) -> str:
    return re.sub(r'"', r"\\\"", text)
