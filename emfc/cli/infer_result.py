"""What ``emfc infer`` makes of a posterior: JSON, files, pictures and a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emfc import __version__
from emfc.cli.console import print_table
from emfc.cli.run_folder import write_json
from emfc.inference.storage import posterior_files

if TYPE_CHECKING:
    from emfc.cli.infer_run import Extras, InferenceRun
    from emfc.inference import Posterior

__all__ = ["print_posterior", "result_document", "write_posterior"]

MOST_ROWS = 60


def result_document(run: InferenceRun, posterior: Posterior, extras: Extras) -> dict[str, Any]:
    """Give the result as the JSON output has it."""
    record = posterior.record
    result: dict[str, Any] = {
        "program": run.program.title,
        "run": str(run.target),
        **posterior.summary().to_dict(),
        "trusted": posterior.trusted,
        "draws": len(posterior.draws),
        "steps": record.steps,
        "seconds": record.seconds,
        "start": record.start,
        "stopped": record.stopped,
        "family": posterior.options,
        "dtype": run.dtype,
        "seed": run.fitting["seed"],
        "interrupted": extras.interrupted,
    }
    if extras.calibration is not None:
        result["calibration"] = extras.calibration.to_dict()
    if extras.nuts is not None:
        result["nuts"] = nuts_document(extras.nuts)
    if extras.predictive is not None:
        result["predictive"] = {
            name: {"mean": drawn.double().mean(0).tolist(), "sd": drawn.double().std(0).tolist()}
            for name, drawn in extras.predictive.items()
        }
    return result


def nuts_document(chains: Any) -> dict[str, Any]:
    """Mean, standard deviation, R-hat and effective draws of chains, by site."""
    sites = {}
    for name, drawn in chains.draws.items():
        flat = drawn.double()
        sites[name] = {
            "mean": flat.mean((0, 1)).tolist(),
            "sd": flat.flatten(0, 1).std(0).tolist(),
            "rhat": chains.r_hat[name].tolist(),
            "ess_bulk": chains.ess[name].tolist(),
        }
    return {"sites": sites, "divergences": int(chains.divergences), "seconds": float(chains.seconds)}


def write_posterior(
    folder: Path, run: InferenceRun, posterior: Posterior, extras: Extras, result: dict[str, Any]
) -> None:
    """Write the posterior, its draws, the numbers and the pictures into a new run folder.

    Raises:
        UserError: They cannot be written.
    """
    for name, content in posterior_files(posterior).items():
        (folder / name).write_bytes(content)
    sites = posterior.flow.layer.unpack(posterior.draws)
    arrays = {name: drawn.cpu().numpy() for name, drawn in sites.items()}
    np.savez(folder / "draws.npz", **arrays)  # type: ignore[arg-type]
    np.savez(
        folder / "weights.npz",
        log_weights=posterior.log_weights.cpu().numpy(),
        smoothed=posterior.smoothed.cpu().numpy(),
        log_joint=posterior.log_joint_values.cpu().numpy(),
    )
    if extras.predictive is not None:
        np.savez(folder / "predictive.npz", **{name: drawn.cpu().numpy() for name, drawn in extras.predictive.items()})
    write_json(folder / "summary.json", {"emfc": __version__, **result})
    draw_pictures(folder, run, posterior, extras)


def draw_pictures(folder: Path, run: InferenceRun, posterior: Posterior, extras: Extras) -> None:
    """Draw marginals, the pairs of the worst, the course of the fit, and what else there is."""
    from emfc.report.calibration import draw_ranks
    from emfc.report.inference import draw_elbo, draw_marginals, draw_pairs, draw_predictive

    summary = posterior.summary()
    names = [row.name for row in summary]
    draws = posterior.draws.double().cpu().numpy()
    weights = posterior.weights.double().cpu().numpy()
    told = f"{run.program.title}: k-hat {posterior.khat:.2f}"
    told += ", reweighted" if summary.reweighted else ", NOT TO BE TRUSTED"
    for path in (folder / "marginals.png", run.picture):
        if path is not None:
            draw_marginals(path, posterior.sites, draws, weights, title=told)
    if len(names) > 1:
        worst = sorted(range(len(names)), key=lambda place: -summary.rows[place].khat)[:4]
        held = sorted(worst)
        draw_pairs(
            folder / "pairs.png",
            [names[place] for place in held],
            draws[:, held],
            posterior.log_weights.cpu().numpy(),
            title=f"{told}: elements with the largest k-hat",
        )
    if posterior.record.history:
        draw_elbo(folder / "training.png", posterior.record.history, elbo=posterior.elbo)
    if extras.predictive is not None:
        draw_predictive(
            folder / "predictive.png",
            {name: value.double().cpu().numpy() for name, value in posterior.data.items()},
            {name: drawn.double().cpu().numpy() for name, drawn in extras.predictive.items()},
            title=f"{run.program.title}: data, and the model's predictions",
        )
    if extras.calibration is not None:
        draw_ranks(folder / "calibration.png", extras.calibration, title=run.program.title)


def print_posterior(run: InferenceRun, posterior: Posterior, extras: Extras) -> None:
    """Print the table, the evidence and the verdict."""
    summary = posterior.summary()
    columns = [("", "left"), *((heading, "right") for heading in ("mean", "sd", "5 %", "50 %", "95 %", "ESS", "k-hat"))]
    rows = [[row.name, *row.cells()] for row in summary.rows[:MOST_ROWS]]
    record = posterior.record
    title = f"{run.program.title}: {record.steps} steps in {record.seconds:.1f} s, {len(posterior.draws)} draws"
    print_table(columns, rows, title=title)
    left = len(summary) - len(rows)
    if left:
        print(f"and {left} more elements in {run.target / 'summary.json'}")
    for line in summary.figures():
        print(line)
    if extras.nuts is not None:
        _print_nuts(extras.nuts)
    if extras.calibration is not None:
        print(extras.calibration)


def _print_nuts(chains: Any) -> None:
    rows = []
    for name, drawn in chains.draws.items():
        flat = drawn.double().flatten(2) if drawn.ndim > 2 else drawn.double()[..., None]
        rhat, size = chains.r_hat[name].reshape(-1), chains.ess[name].reshape(-1)
        for place in range(flat.shape[-1])[:MOST_ROWS]:
            label = name if drawn.ndim == 2 else f"{name}[{','.join(map(str, _index(place, drawn.shape[2:])))}]"
            values = flat[..., place]
            cells = [f"{float(values.mean()):.4g}", f"{float(values.std()):.4g}"]
            rows.append([label, *cells, f"{float(rhat[place]):.3f}", f"{float(size[place]):.0f}"])
    columns = [("", "left"), *((heading, "right") for heading in ("mean", "sd", "R-hat", "bulk ESS"))]
    print_table(columns, rows, title=f"NUTS through the fit: {chains.divergences} divergences, {chains.seconds:.1f} s")


def _index(place: int, shape: Any) -> list[int]:
    return [int(axis) for axis in np.unravel_index(place, tuple(shape))]
