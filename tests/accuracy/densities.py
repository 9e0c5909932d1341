"""`python -m tests.accuracy.densities`: the picture of the classic densities and of the flows fitted to them."""

from __future__ import annotations

import matplotlib
import torch
from matplotlib.figure import Figure

from emfc.inference.density import FittedDensity, fit_density
from emfc.report.canvas import new_figure, save_figure
from tests.accuracy import page
from tests.inference.densities_classic import CLASSIC

PICTURE = page.ROOT / "docs" / "images" / "densities.svg"
STEPS = 2400
SECONDS = 60.0
POINTS = 101
WINDOWS = {"funnel": 5.0, "eight_gaussians": 4.5, "ring": 3.5, "two_moons": 3.5, "u1": 3.5, "banana": 3.5}


def integral(name: str, points: int = 1601) -> float:
    """Logarithm of a density's integral by quadrature."""
    held = CLASSIC[name]
    axis = torch.linspace(-held.window, held.window, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return float(held.log_density(grid).logsumexp(0) + 2 * torch.log(axis[1] - axis[0]))


def fitted(name: str) -> FittedDensity:
    """A flow of the default kind."""
    return fit_density(CLASSIC[name].log_density, 2, steps=STEPS, seconds=SECONDS, dtype=torch.float64)


def draw() -> Figure:
    """The figure: densities above, the flows that were fitted to them below."""
    figure = new_figure(1.4 * len(CLASSIC), 3.1)
    axes = figure.subplots(2, len(CLASSIC))
    for column, name in enumerate(CLASSIC):
        flow, exact = fitted(name), integral(name)
        estimate = f"{flow.log_normaliser:.4f} (se {flow.log_normaliser_se:.4f})"
        record = flow.record
        told = f"k-hat {flow.khat:.2f}, {record.steps} steps in {record.seconds:.0f} s, start {record.start}"
        print(
            f"{name}: log normaliser {exact:.4f}, estimated {estimate}, elbo {flow.elbo:.4f}, {told}",
            flush=True,
        )
        window = WINDOWS.get(name, 5.0)
        axis = torch.linspace(-window, window, POINTS, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        with torch.no_grad():
            pair = (CLASSIC[name].log_density(grid) - exact, flow.log_prob(grid))
        for row, values in enumerate(pair):
            panel = axes[row, column]
            picture = values.exp().sqrt().reshape(POINTS, POINTS).T.numpy()
            panel.imshow(picture, origin="lower", cmap="Blues", interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
        axes[0, column].set_title(name.replace("_", " "), fontsize=9)
    axes[0, 0].set_ylabel("density", fontsize=9)
    axes[1, 0].set_ylabel("flow", fontsize=9)
    return figure


def main() -> None:
    """Fit all, tell the figures, draw."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "emfc", "svg.fonttype": "path"}):
        save_figure(draw(), PICTURE)
    print(f"wrote {PICTURE.relative_to(page.ROOT)}")


if __name__ == "__main__":
    main()
