"""The work of ``emfc train``: data in, flows trained, a run folder out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfc import __version__
from emfc.cli.console import print_json, print_table, say
from emfc.cli.contenders import (
    Contender,
    Trained,
    baseline_flow,
    copula_flow,
    equal_spline,
    measure,
    set_start,
)
from emfc.cli.examples import ExampleTable, check_support, from_file, from_program, model_input, read_context
from emfc.cli.graph import graph_nodes
from emfc.cli.pictures import draw_ranks, draw_samples, draw_training
from emfc.cli.run_folder import METRICS, new_run, write_json
from emfc.data import Recipe, split_rows
from emfc.errors import UserError
from emfc.report import draw_graph, image_shape

if TYPE_CHECKING:
    from emfc.cli.loader import UserProgram
    from emfc.data import Split, Step
    from emfc.flows import EmbeddedModelFlow

__all__ = ["TrainingRun", "run_training"]

INTERRUPTED = 130
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class TrainingRun:
    """Everything that the user asked for, read and checked.

    Attributes:
        program: The loaded program.
        target: The run folder.
        data: File with the examples, or None for the program's ``data()``.
        context: File with their contexts.
        recipe: Preprocessing steps.
        image: What the user said of images.
        gate: ``"site"``, ``"element"`` or None.
        architecture: Options of the learned layers.
        fitting: Options of ``fit``.
        baseline: Whether to train the same flow without the program.
        rivals: Further flows to train.
        as_json: Whether to print JSON.
    """

    program: UserProgram
    target: Path
    data: Path | None
    context: Path | None
    recipe: Recipe | None
    image: str | None
    gate: str | None
    architecture: dict[str, Any]
    fitting: dict[str, Any]
    baseline: bool
    rivals: tuple[str, ...]
    as_json: bool

    @property
    def seed(self) -> int:
        return int(self.fitting["seed"])


def run_training(run: TrainingRun) -> int:
    """Train, print the result and write the run folder.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.

    Raises:
        UserError: The data or the options do not fit the program.
        CompileError: The program is refused.
    """
    from emfc.compiler import compile as compile_program
    from emfc.compiler import parse

    graph = parse(run.program.model, **run.program.arguments(seed=run.seed))
    layer = compile_program(graph, gate=run.gate)
    sites = dict(layer.example_sites)
    image = image_shape(sites, run.image)
    if run.data is not None:
        table = from_file(run.data, sites)
    else:
        table = from_program(run.program, graph, sites, seed=run.seed)
    context = read_context(run.context, table.rows)
    split = split_rows(table.rows, seed=run.seed)
    training = table.take(split.train)
    preprocess = _preprocess(run, graph, training)
    torch.manual_seed(run.seed)
    flow = _embedded(run, layer, preprocess, 0 if context is None else context.shape[1])
    check_support(table, flow)
    contenders = _contenders(run, graph, flow, training)
    parts = {
        name: model_input(table.take(rows), preprocess, dtype=run.fitting["dtype"], seed=run.seed + part)
        for part, (name, rows) in enumerate(zip(PARTS, split, strict=True))
    }
    place = {"device": run.fitting["device"], "dtype": run.fitting["dtype"]}
    contexts = {
        name: None if context is None else context[rows].to(**place) for name, rows in zip(PARTS, split, strict=True)
    }
    trained, interrupted = _train_all(contenders, parts, contexts, run)
    result = _result(run, trained, split, layer.levels if preprocess is None else None, interrupted)
    with new_run(run.target) as folder:
        _write(folder, run, trained, result, image)
        draw_graph(folder / "graph.png", graph_nodes(graph), title=run.program.title)
        test = table.take(split.test).flat
        first = trained[0].contender.flow
        draw_samples(
            folder / "samples.png", first, test, context=contexts["test"], image=image, title=run.program.title
        )
        if image is not None:
            draw_ranks(folder / "ranked.png", test, trained[0].log_prob, rows=split.test.tolist(), image=image)
    if run.as_json:
        print_json(result)
    else:
        _print(run, trained, result)
    if interrupted:
        say(f"interrupted: the best weights so far are kept in {run.target}")
        return INTERRUPTED
    say(f"wrote the run folder {run.target}")
    return 0


def _preprocess(run: TrainingRun, graph: Any, training: ExampleTable) -> Step | None:
    if run.recipe is None:
        return None
    counted = [site for site in training.values if graph.sites[site].discrete]
    if counted:
        raise UserError(
            f"--preprocess does not go with the site {counted[0]!r}, which counts: the program dequantises it itself"
        )
    return run.recipe.build(training.flat.to(run.fitting["dtype"]))


def _embedded(run: TrainingRun, layer: Any, preprocess: Step | None, context: int) -> EmbeddedModelFlow:
    from emfc.flows import EmbeddedModelFlow

    try:
        return EmbeddedModelFlow.from_layer(layer, **run.architecture, context_features=context, preprocess=preprocess)
    except ValueError as error:
        if isinstance(error, UserError) or type(error) is not ValueError:
            raise
        raise UserError(str(error)) from error


def _contenders(run: TrainingRun, graph: Any, flow: EmbeddedModelFlow, training: ExampleTable) -> list[Contender]:
    """Build every flow before any is trained, so that what cannot be built is told at once."""
    chosen = [Contender("embedded", "embedded-model flow", flow)]
    if run.baseline:
        chosen.append(Contender("baseline", "same flow without the program", baseline_flow(flow, seed=run.seed)))
    for rival in run.rivals:
        if rival == "spline":
            chosen.append(Contender(rival, "spline flow without the program", equal_spline(flow, seed=run.seed)))
        else:
            chosen.append(
                Contender(rival, "Gaussian copula under the program", copula_flow(graph, flow, seed=run.seed))
            )
    values = run.program.call_start({site: values.to(run.fitting["dtype"]) for site, values in training.values.items()})
    for contender in chosen:
        if contender.key in ("embedded", "copula"):
            set_start(contender.flow, values)
    return chosen


def _train_all(
    contenders: Sequence[Contender], parts: dict[str, Any], contexts: dict[str, Tensor | None], run: TrainingRun
) -> tuple[list[Trained], bool]:
    """Train one after the other; Ctrl-C keeps what is trained so far."""
    trained: list[Trained] = []
    try:
        for contender in contenders:
            trained.append(measure(contender, parts, contexts, run.fitting))
            if trained[-1].result.interrupted:
                return trained, True
    except KeyboardInterrupt:
        if not trained:
            raise
        return trained, True
    return trained, False


def _result(
    run: TrainingRun, trained: Sequence[Trained], split: Split, levels: list[int] | None, interrupted: bool
) -> dict[str, Any]:
    first, *others = (row.metrics(first=trained[0], levels=levels) for row in trained)
    result = {
        "program": run.program.title,
        "run": str(run.target),
        **first,
        "rows": {name: len(rows) for name, rows in zip(PARTS, split, strict=True)},
        "interrupted": interrupted,
    }
    for row, metrics in zip(trained[1:], others, strict=True):
        result[row.contender.key] = {**metrics, "run": str(run.target / row.contender.key)}
    return result


def _write(folder: Path, run: TrainingRun, trained: Sequence[Trained], result: dict[str, Any], image: Any) -> None:
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
    shape = None if image is None else f"{image[0]}x{image[1]}"
    write_json(folder / METRICS, {"emfc": __version__, **result, "options": settings, "image": shape})
    draw_training(folder / "training.png", {row.contender.title: row.result.history for row in trained})


def _print(run: TrainingRun, trained: Sequence[Trained], result: dict[str, Any]) -> None:
    unit = "test_nll_unit" in result
    columns = [("flow", "left"), ("test NLL (nats)", "right")]
    columns += [("in [0,1]^D (nats)", "right"), ("bits/dim", "right")] if unit else []
    columns += [("worse by (nats)", "right")] if len(trained) > 1 else []
    columns += [("parameters", "right"), ("epochs", "right"), ("seconds", "right")]
    rows = []
    for index, row in enumerate(trained):
        found = result if index == 0 else result[row.contender.key]
        cells = [row.contender.title, _plus_minus(found["test_nll"], found["test_nll_se"])]
        if unit:
            cells += [_plus_minus(found["test_nll_unit"], found["test_nll_unit_se"]), f"{found['bits_per_dim']:.3f}"]
        if len(trained) > 1:
            cells.append(_plus_minus(found["difference"], found["difference_se"]) if index else "-")
        rows.append([*cells, f"{found['parameters']:,}", str(found["epochs"]), f"{found['seconds']:.1f}"])
    count = result["rows"]
    told = f"{count['train']} training, {count['validation']} validation and {count['test']} test rows"
    print_table(columns, rows, title=f"{run.program.title}: {told}")


def _plus_minus(value: float, error: float) -> str:
    return f"{value:.2f} ± {error:.2f}"
