"""Pictures: written whole, of the right kind, with what they must say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emfc.errors import UserError
from emfc.report import (
    GraphNode,
    draw_costs,
    draw_examples,
    draw_graph,
    draw_image_panels,
    draw_ranked_images,
    draw_training_curves,
    image_shape,
    series_of,
)


def _ink(path: Path) -> float:
    """Share of a picture's pixels that are not white."""
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.shape[0] > 100
    assert pixels.shape[1] > 100
    return float((pixels < 250).mean())


@pytest.mark.parametrize(
    ("sites", "flag", "shape"),
    [
        ({"x": (64,)}, None, (8, 8)),
        ({"x": (5, 7)}, None, (5, 7)),
        ({"x": (1, 28, 28)}, None, (28, 28)),
        ({"x": (9,)}, None, None),
        ({"x": (65,)}, None, None),
        ({"x": ()}, None, None),
        ({"x": (100, 2)}, None, None),
        ({"x": (4, 4, 4)}, None, None),
        ({"x": (64,), "y": ()}, None, None),
        ({"x": (60,), "y": (4,)}, "8x8", (8, 8)),
        ({"x": (64,)}, "4 x 16", (4, 16)),
        ({"x": (64,)}, "none", None),
    ],
)
def test_which_examples_are_images(sites, flag, shape) -> None:
    assert image_shape(sites, flag) == shape


@pytest.mark.parametrize(("flag", "message"), [("8", "HEIGHTxWIDTH"), ("8x9", "72 pixels"), ("x", "HEIGHTxWIDTH")])
def test_sizes_that_do_not_fit(flag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_shape({"x": (64,)}, flag)


def test_grids_of_images(tmp_path: Path) -> None:
    images = torch.rand(20, 64)
    draw_image_panels(tmp_path / "a.png", {"data": images, "samples": images[:3]}, shape=(8, 8), title="both")
    assert _ink(tmp_path / "a.png") > 0.2
    draw_image_panels(tmp_path / "b.png", {"blank": torch.zeros(1, 64)}, shape=(8, 8))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "b.png"]


def test_ranked_images(tmp_path: Path) -> None:
    images = torch.rand(11, 12)
    groups = {"most": (images, list(range(11)), [0.5] * 11), "least": (images[:1], [7], [-3.0])}
    draw_ranked_images(tmp_path / "a.png", groups, shape=(3, 4))
    assert _ink(tmp_path / "a.png") > 0.05


def test_training_curves(tmp_path: Path) -> None:
    nan = float("nan")
    histories = {"flow": {"train": [5.0, nan, 3.0], "validation": [5.0, 4.0, 4.5]}, "other": {"train": []}}
    draw_training_curves(tmp_path / "a.svg", histories)
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml")
    draw_training_curves(tmp_path / "b.png", {})
    draw_training_curves(tmp_path / "c.png", histories)
    assert _ink(tmp_path / "c.png") > _ink(tmp_path / "b.png")


def test_series_of_sites() -> None:
    lorenz = {f"{name}_{step}": () for step in range(3) for name in "xyz"}
    assert series_of(lorenz) == {"x": [0, 3, 6], "y": [1, 4, 7], "z": [2, 5, 8]}
    assert series_of({"x_10": (), "x_9": ()}) == {"x": [1, 0]}
    assert series_of({"path": (4,)}) == {"path": [0, 1, 2, 3]}
    assert series_of({"path": (3, 2)}) == {"path, part 0": [0, 2, 4], "path, part 1": [1, 3, 5]}
    assert series_of({"mu": (), "tau": (), "theta": (3,)}) == {"theta": [2, 3, 4], "other elements": [0, 1]}
    assert series_of({"v": (), "x": (2,)}) == {"x": [1, 2], "other elements": [0]}
    assert series_of({"mu": ()}) == {"other elements": [0]}
    assert series_of({"z[0]": (), "z[1]": ()}) == {"z": [0, 1]}
    assert series_of({"w1": (), "v2": ()}) == {"other elements": [0, 1]}


@pytest.mark.parametrize("dim", [1, 2, 5, 40])
def test_examples_of_every_width(tmp_path: Path, dim: int) -> None:
    values = torch.randn(30, dim)
    draw_examples(tmp_path / "a.png", {"data": values, "samples": values + 1}, {"x": (dim,)})
    assert _ink(tmp_path / "a.png") > 0.005


def test_many_series_are_said_to_be_left_out(tmp_path: Path) -> None:
    values = torch.randn(3, 40)
    draw_examples(tmp_path / "a.svg", {"data": values}, {f"{name}_{i}": () for i in range(4) for name in "abcdefghij"})
    assert (tmp_path / "a.svg").stat().st_size > 1000


def _chain(length: int) -> list[GraphNode]:
    return [GraphNode(f"x_{i}", (f"x_{i - 1}",) if i else (), ("Normal",)) for i in range(length)]


def test_graphs(tmp_path: Path) -> None:
    nodes = [
        GraphNode("z", (), ("Categorical",), summed_out=True),
        GraphNode("x", ("z",), ("Normal [3]", "plate data (3)")),
        GraphNode("y", ("x", "z"), ("Normal",), observed=True),
    ]
    draw_graph(tmp_path / "a.png", nodes, title="small")
    assert _ink(tmp_path / "a.png") > 0.02
    draw_graph(tmp_path / "a.svg", nodes)
    draw_graph(tmp_path / "none.png", [])


def test_large_graphs_say_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.axes

    said: list[str] = []
    text = matplotlib.axes.Axes.text
    monkeypatch.setattr(
        matplotlib.axes.Axes, "text", lambda self, x, y, s, **kw: (said.append(s), text(self, x, y, s, **kw))[1]
    )
    draw_graph(tmp_path / "a.png", _chain(10_000))
    assert "the first 60 of 10,000 sites; the other 9,940 are left out" in said
    assert "x_59" in said
    assert "x_60" not in said


def test_bad_targets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ending must be one of"):
        draw_graph(tmp_path / "a.txt", _chain(2))
    with pytest.raises(UserError, match="does not exist"):
        draw_graph(tmp_path / "no" / "a.png", _chain(2))


def test_scalars_that_are_no_series_are_named(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_examples(tmp_path / "a.svg", {"data": torch.randn(9, 3)}, {"mass": (), "radius": (), "heat": ()})
        draw_training_curves(tmp_path / "b.svg", {"flow": {"train": [2.0, 1.0], "validation": [2.0, 1.0]}})
    assert all(name in (tmp_path / "a.svg").read_text() for name in ("mass", "radius", "heat"))
    assert "1.2" not in (tmp_path / "b.svg").read_text().partition("epoch")[0].rpartition('<g id="matplotlib.axis_1')[2]


@pytest.mark.parametrize("panels", [0, 1, 4])
def test_costs_against_length(tmp_path: Path, panels: int) -> None:
    import matplotlib

    lines = {"emfc": [(300, 2.0), (30, 1.0), (3000, 9.0)], "Pyro": [(30, 10.0), (300, 95.0)]}
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_costs(tmp_path / "a.svg", {f"panel {number}": lines for number in range(panels)})
    text = (tmp_path / "a.svg").read_text()
    assert all(f"panel {number}" in text for number in range(panels))
    assert ("Pyro" in text) == (panels > 0)
