"""Layered layout: parents above children, no two nodes in one place, about linear time."""

from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from emfc.report import layered_layout
from emfc.report.layout import layers_of


@st.composite
def _graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    size = draw(st.integers(0, 60))
    return {
        str(node): [str(parent) for parent in draw(st.lists(st.integers(0, node - 1), max_size=3, unique=True))]
        if node
        else []
        for node in range(size)
    }


@given(_graphs())
def test_every_node_has_its_own_place_below_its_parents(parents: dict[str, list[str]]) -> None:
    places = layered_layout(parents)
    layers = layers_of(parents)
    assert set(places) == set(parents)
    assert len(set(places.values())) == len(places)
    for node, above in parents.items():
        assert all(layers[parent] < layers[node] for parent in above)
    rows: dict[float, list[float]] = {}
    for place in places.values():
        rows.setdefault(place.y, []).append(place.x)
    for row in rows.values():
        ordered = sorted(row)
        assert all(right - left >= 0.99 for left, right in pairwise(ordered))


def test_crossings_are_undone() -> None:
    places = layered_layout({"a": [], "b": [], "under_b": ["b"], "under_a": ["a"]})
    assert (places["a"].x < places["b"].x) == (places["under_a"].x < places["under_b"].x)


def test_a_long_chain_is_folded_and_quick() -> None:
    began = time.perf_counter()
    places = layered_layout({str(i): [str(i - 1)] if i else [] for i in range(20_000)})
    assert time.perf_counter() - began < 5
    assert max(place.y for place in places.values()) < 14
