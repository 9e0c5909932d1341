"""What ``emfc train`` makes of trained flows: JSON, files, pictures and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from emfc import __version__
from emfc.cli.console import plus_minus, print_table
from emfc.cli.contenders import Trained
from emfc.cli.pictures import draw_ranks, draw_samples, draw_training
from emfc.cli.run_folder import METRICS, write_json
from emfc.training import DRAWN_ROWS

if TYPE_CHECKING:
    from emfc.cli.training_run import TrainingRun
    from emfc.data import Split

__all__ = ["PARTS", "draw_test", "print_result", "result_document", "write_result"]

PARTS = ("train", "validation", "test")


def result_document(
    run: TrainingRun, trained: Sequence[Trained], split: Split, *, levels: list[int] | None, target: Path
) -> dict[str, Any]:
    """Give the result as the JSON output has it.

    Args:
        run: What the user asked for.
        trained: The embedded-model flow, then those it is compared with.
        split: The rows of each part.
        levels: Number of levels of each element, where all elements have finitely many.
        target: The folder that holds the flows.
    """
    first, *others = (row.metrics(first=trained[0], levels=levels) for row in trained)
    result = {
        "program": run.program.title,
        "run": str(target),
        **first,
        "rows": {name: len(rows) for name, rows in zip(PARTS, split, strict=True)},
    }
    if run.fresh:
        result["rows"] |= {"train": DRAWN_ROWS}
    for row, metrics in zip(trained[1:], others, strict=True):
        result[row.contender.key] = {**metrics, "run": str(target / row.contender.key)}
    return result


def write_result(
    folder: Path, run: TrainingRun, trained: Sequence[Trained], result: dict[str, Any], image: str | None
) -> None:
    """Write the flows, the numbers and the training curves into a new run folder.

    Raises:
        UserError: They cannot be written.
    """
    from emfc.flows import save

    save(trained[0].contender.flow, folder)
    for row in trained[1:]:
        save(row.contender.flow, folder / row.contender.key)
    histories = {row.contender.key: [asdict(epoch) for epoch in row.result.history] for row in trained}
    write_json(folder / "history.json", histories)
    settings = {
        "settings": dict(run.program.settings),
        "preprocess": run.recipe.text if run.recipe else None,
        "gate": run.gate,
        **run.architecture,
        **{
            key: value if isinstance(value, (int, float, type(None))) else str(value)
            for key, value in run.fitting.items()
        },
    }
    write_json(folder / METRICS, {"emfc": __version__, **result, "options": settings, "image": image})
    draw_training(folder / "training.png", {row.contender.title: row.result.history for row in trained})


def draw_test(
    folder: Path,
    first: Trained,
    test: Tensor,
    rows: Tensor,
    context: Tensor | None,
    image: tuple[int, int] | None,
    *,
    title: str,
) -> None:
    """Draw samples beside test examples and, where they are images, the most and least probable of these.

    Args:
        folder: Where the pictures go.
        first: The flow.
        test: Raw test examples, shape ``[rows, D]``.
        rows: Their row numbers in the data.
        context: Their contexts, if the flow is conditional.
        image: Size of an image, where examples are images.
        title: Over the picture.
    """
    draw_samples(folder / "samples.png", first.contender.flow, test, context=context, image=image, title=title)
    if image is not None:
        draw_ranks(folder / "ranked.png", test, first.log_prob, rows=rows.tolist(), image=image)


def print_result(run: TrainingRun, trained: Sequence[Trained], result: dict[str, Any]) -> None:
    """Print the table that compares the flows on the test rows."""
    unit = "test_nll_unit" in result
    columns = [("flow", "left"), ("test NLL (nats)", "right")]
    columns += [("in [0,1]^D (nats)", "right"), ("bits/dim", "right")] if unit else []
    columns += [("worse by (nats)", "right")] if len(trained) > 1 else []
    columns += [("parameters", "right"), ("epochs", "right"), ("seconds", "right")]
    rows = []
    for index, row in enumerate(trained):
        found = result if index == 0 else result[row.contender.key]
        cells = [row.contender.title, plus_minus(found["test_nll"], found["test_nll_se"])]
        if unit:
            cells += [plus_minus(found["test_nll_unit"], found["test_nll_unit_se"]), f"{found['bits_per_dim']:.3f}"]
        if len(trained) > 1:
            cells.append(plus_minus(found["difference"], found["difference_se"]) if index else "-")
        rows.append([*cells, f"{found['parameters']:,}", str(found["epochs"]), f"{found['seconds']:.1f}"])
    count = result["rows"]
    drawn = " (drawn anew in every epoch)" if run.fresh else ""
    told = f"{count['train']:,} training{drawn}, {count['validation']:,} validation and {count['test']:,} test rows"
    print_table(columns, rows, title=f"{run.program.title}: {told}", turn=True)
