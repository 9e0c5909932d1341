"""Pictures of posteriors are drawn for any number of elements, long series and single numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emfc.report.inference import draw_elbo, draw_marginals, draw_pairs, draw_predictive

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "sites",
    [
        {"x": ()},
        {"mean": (), "scale": (), "w": (3,)},
        {"matrix": (4, 5), "path": (40,)},
        {f"x_{t}": (2,) for t in range(30)},
        {f"v{name}": (10,) for name in "abcdefgh"},
    ],
)
def test_marginals(sites: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    width = sum(int(np.prod(shape)) for shape in sites.values())
    draws = RNG.standard_normal((500, width)) * 10.0 ** RNG.integers(-2, 3, width)
    weights = RNG.dirichlet(np.ones(500))
    draw_marginals(tmp_path / "m.png", sites, draws, weights, title="any.py")
    assert (tmp_path / "m.png").stat().st_size > 4000


def test_marginals_of_one_value(tmp_path: Path) -> None:
    draw_marginals(tmp_path / "m.png", {"x": (), "y": ()}, np.ones((100, 2)), np.full(100, 0.01), title="any.py")
    assert (tmp_path / "m.png").stat().st_size > 4000


@pytest.mark.parametrize("count", [1, 2, 4])
def test_pairs(count: int, tmp_path: Path) -> None:
    logs = RNG.standard_normal(800)
    logs[3] = -np.inf
    names = [f"x[{place}]" for place in range(count)]
    draw_pairs(tmp_path / "p.png", names, RNG.standard_normal((800, count)), logs, title="any.py")
    assert (tmp_path / "p.png").stat().st_size > 4000


def test_course_and_predictions(tmp_path: Path) -> None:
    draw_elbo(tmp_path / "e.png", [(10, -5.0), (20, float("nan")), (30, -4.0)], elbo=-3.9)
    draw_elbo(tmp_path / "one.png", [(10, -5.0)], elbo=-5.0)
    data = {"y": RNG.standard_normal(100), "few": RNG.standard_normal(5), "z_0": np.array(1.0), "z_1": np.array(2.0)}
    predicted = {name: RNG.standard_normal((50, *value.shape)) for name, value in data.items()}
    draw_predictive(tmp_path / "d.png", data, predicted, title="any.py")
    for name in ("e", "one", "d"):
        assert (tmp_path / f"{name}.png").stat().st_size > 4000
