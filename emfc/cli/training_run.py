"""The work of ``emfc train``: data in, flows trained, a run folder out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfc import __version__
from emfc.cli.console import print_json, say
from emfc.cli.contenders import (
    Contender,
    Trained,
    baseline_flow,
    copula_flow,
    equal_spline,
    measure,
    set_start,
)
from emfc.cli.examples import (
    ExampleTable,
    check_support,
    from_file,
    from_program,
    model_input,
    read_context,
    require_size,
)
from emfc.cli.fingerprint import digest_of_program, digest_of_values
from emfc.cli.graph import graph_nodes
from emfc.cli.run_folder import METRICS, holds_finished, new_run, write_json
from emfc.cli.training_folder import MANIFEST, TrainingFolder, training_folder
from emfc.cli.training_result import PARTS, draw_test, print_result, result_document, write_result
from emfc.data import Recipe, split_rows
from emfc.errors import UserError
from emfc.report import draw_graph, image_shape

if TYPE_CHECKING:
    from emfc.cli.loader import UserProgram
    from emfc.data import Step
    from emfc.flows import EmbeddedModelFlow

__all__ = ["TrainingRun", "run_training"]

INTERRUPTED = 130


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
        fresh: Whether the training rows are drawn anew in every epoch.
        baseline: Whether to train the same flow without the program.
        rivals: Further flows to train.
        overwrite: Whether a run, and what unfinished trainings left, may be replaced.
        resume: Whether to go on from an unfinished training.
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
    fresh: bool
    baseline: bool
    rivals: tuple[str, ...]
    overwrite: bool
    resume: bool
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
    with contextlib.redirect_stdout(sys.stderr):
        trained, result, target = _train(run)
    if run.as_json:
        print_json(result)
    else:
        print_result(run, trained, result)
    if not result["interrupted"]:
        say(f"wrote the run folder {run.target}")
        return 0
    told, flags = "", "--resume"
    if target != run.target:
        told, flags = f"{run.target} is as it was; ", "--resume --overwrite"
    say(f"interrupted: the best weights so far are kept in {target}; {told}emfc train with {flags} goes on")
    return INTERRUPTED


def _train(run: TrainingRun) -> tuple[list[Trained], dict[str, Any], Path]:
    """Train and write the run folder; what the program prints is not our result and does not mix with it.

    Returns:
        The trained flows, the result and the folder that holds them.
    """
    from emfc.compiler import compile as compile_program
    from emfc.flows import save

    graph = run.program.parse(seed=run.seed)
    layer = compile_program(graph, gate=run.gate)
    sites = dict(layer.example_sites)
    image = image_shape(sites, run.image)
    if run.data is not None:
        table = from_file(run.data, sites)
    else:
        table = from_program(run.program, graph, sites, seed=run.seed)
    context = read_context(run.context, table.rows)
    split = split_rows(table.rows, seed=run.seed)
    require_size(table, run.fitting["dtype"])
    training = table.take(split.train)
    preprocess = _preprocess(run, graph, training)
    torch.manual_seed(run.seed)
    flow = _embedded(run, layer, preprocess, 0 if context is None else context.shape[1])
    check_support(table, flow)
    contenders = _contenders(run, graph, flow, training)
    parts: dict[str, Any] = {
        name: model_input(table.take(rows), run.fitting["dtype"]) for name, rows in zip(PARTS, split, strict=True)
    }
    if run.fresh:
        parts["train"] = _drawn(run, graph, sites)
    place = {"device": run.fitting["device"], "dtype": run.fitting["dtype"]}
    contexts = {
        name: None if context is None else context[rows].to(**place) for name, rows in zip(PARTS, split, strict=True)
    }
    configuration = _configuration(run, layer, table, context)
    shape = None if image is None else f"{image[0]}x{image[1]}"
    with training_folder(run.target, configuration, resume=run.resume, overwrite=run.overwrite) as work:
        if not (work.path / MANIFEST).is_file():
            save(flow, work.path)
            write_json(work.path / METRICS, {"emfc": __version__, "image": shape})
        trained, failed, interrupted = _train_all(contenders, parts, contexts, run, work)
        untouched = interrupted and holds_finished(run.target)
        target = work.path if untouched else run.target
        result = result_document(
            run, trained, split, levels=layer.levels if preprocess is None else None, target=target
        )
        result |= {"interrupted": interrupted} | ({"failed": failed} if failed else {})
        work.keep = interrupted
        if not untouched:
            with new_run(run.target, inside=work.path) as folder:
                write_result(folder, run, trained, result, shape)
                draw_graph(folder / "graph.png", graph_nodes(graph), title=run.program.title)
                test = table.take(split.test)
                draw_test(folder, trained[0], test.flat, split.test, contexts["test"], image, title=run.program.title)
    return trained, result, target


def _configuration(run: TrainingRun, layer: Any, table: ExampleTable, context: Tensor | None) -> dict[str, Any]:
    """What must be the same to go on from an unfinished training; where it is computed may change."""
    options = {key: value for key, value in run.fitting.items() if key != "device"}
    return {
        "program": run.program.title,
        **{f"--set {key}": value for key, value in run.program.settings.items()},
        **{key: value if isinstance(value, (int, float)) else str(value) for key, value in options.items()},
        **run.architecture,
        **({"fresh": True} if run.fresh else {}),
        "gate": run.gate,
        "preprocess": run.recipe.text if run.recipe else None,
        "program_digest": digest_of_program(layer.program),
        "data": digest_of_values(table.values),
        "context": None if context is None else digest_of_values({"context": context}),
    }


def _drawn(run: TrainingRun, graph: Any, sites: Mapping[str, tuple[int, ...]]) -> Callable[..., dict[str, Tensor]]:
    """The file's ``data()`` as the function that ``fit`` draws rows with."""

    def draw(n: int, seed: int) -> dict[str, Tensor]:
        table = from_program(run.program, graph, sites, seed=seed, rows=n)
        require_size(table, run.fitting["dtype"])
        return model_input(table, run.fitting["dtype"])

    draw(1, run.seed)
    return draw


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
    contenders: Sequence[Contender],
    parts: dict[str, Any],
    contexts: dict[str, Tensor | None],
    run: TrainingRun,
    work: TrainingFolder,
) -> tuple[list[Trained], dict[str, str], bool]:
    """Train one after the other; neither Ctrl-C nor a rival that diverges costs what is trained so far.

    Returns:
        The trained flows, why others could not be trained, and whether Ctrl-C ended it.
    """
    from emfc.training import DivergenceError

    trained: list[Trained] = []
    failed: dict[str, str] = {}
    try:
        for contender in contenders:
            try:
                trained.append(measure(contender, parts, contexts, run.fitting, work))
            except DivergenceError as error:
                if not trained:
                    raise
                failed[contender.key] = str(error)
                say(f"the {contender.title} could not be trained: {error}")
                continue
            if trained[-1].result.interrupted:
                return trained, failed, True
    except KeyboardInterrupt:
        if not trained:
            raise
        return trained, failed, True
    return trained, failed, False
