"""``emfc bench paper``: it measures pairs, goes on where it stopped, and holds figures against goals."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emfc.cli.bench import paper_training
from emfc.cli.bench.inference_references import find_models
from emfc.cli.bench.keeping import check_keep, keep_cell, source_digest
from emfc.cli.bench.paper_cells import Cell, Request, code_digest, load_task_program, measure_cell
from emfc.cli.bench.paper_cost import StepCost, step_cost
from emfc.cli.bench.paper_goals import CLOSED, GOALS, reached, reached_when_wrong
from emfc.cli.bench.paper_keep import kept_cells
from emfc.cli.bench.paper_pictures import draw_pictures
from emfc.cli.bench.paper_plan import SIZES, Options, by_study, plan
from emfc.cli.bench.paper_rows import KINDS, FlowSize, Row, build_flow, read_row, row_title
from emfc.cli.bench.paper_run import OTHER_CODE, run_plan
from emfc.cli.bench.paper_summary import difference, estimate, summaries
from emfc.cli.bench.paper_table import Results, as_document, as_markdown, goal_rows, table_rows, tables
from emfc.cli.bench.paper_tasks import FEW_TASKS, TASKS, PaperTask
from emfc.cli.bench.paper_workers import _in_processes, run_cells
from emfc.errors import UserError
from emfc.report import draw_examples
from emfc.report.paper import draw_gates, draw_learning_curves

MODELS = find_models(None)
OU = TASKS["ornstein-uhlenbeck"]
SHORT = dataclasses.replace(OU, settings={"steps": 5}, dim=5)
SIZE = FlowSize((64, 64))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Epochs of few rows on one thread; what a test changes is put back by emfc itself."""
    monkeypatch.setattr(paper_training, "ROWS", 600)
    monkeypatch.setattr(paper_training, "VALIDATION_ROWS", 100)
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    assert torch.get_default_dtype() == before
    torch.set_num_threads(threads)


def request(kind="maf", program=None, task=OU, **values):
    first = next(iter(task.programs))
    held = {
        "seed": 0,
        "steps": 4,
        "minutes": None,
        "examples": None,
        "protocol": task.protocols[0] if task.protocols else None,
        "batch": 50,
        "hidden": (8, 8),
        "transforms": 2,
        "activation": None,
        "learning_rate": None,
        "test_rows": 100,
        "dtype": "float32",
        "source": "",
        "models": str(MODELS),
    }
    held["supports"] = program or first
    return Request(task=task.key, kind=kind, program=program, **{**held, **values})


def cell(kind="maf", program=None, nll=1.0, *, task=OU, seed=0, **values):
    """A made-up cell."""
    asked = {name: values.pop(name) for name in list(values) if name in Request.__dataclass_fields__}
    held = {
        "nll_se": 0.1,
        "parameters": 1000,
        "baseline_parameters": 1000,
        "hidden": (8, 8),
        "steps": 5000,
        "seconds": 10.0,
        "processor": 5.0,
        "build_seconds": 1.0,
        "stopped": "steps",
    }
    steps = asked.pop("steps", 5000)
    held |= {"steps": steps or 1}
    asking = request(kind, program, task, seed=seed, steps=steps, batch=asked.pop("batch", 100), **asked)
    return Cell(asking, nll, **{**held, **values})


def made_cell(**changed):
    """A line of a file of cells, with something changed in it."""
    line = dataclasses.asdict(cell())
    for name, value in changed.items():
        (line["request"] if name in line["request"] else line)[name] = value
    return json.dumps(line)


def options(**values):
    held = {
        "studies": ("main",),
        "tasks": None,
        "rows": None,
        "seeds": 2,
        "first_seed": 0,
        "steps": None,
        "minutes": None,
        "sizes": SIZES,
        "protocols": ("paper",),
        "batch": 100,
        "hidden": None,
        "transforms": None,
        "activation": None,
        "learning_rate": None,
        "test_rows": None,
        "dtype": "float32",
        "models": MODELS,
        "file": None,
    }
    return Options(**{**held, **values})


# ---------------------------------------------------------------------- tasks and rows


@pytest.mark.parametrize("key", [key for key, task in TASKS.items() if (MODELS / task.file).is_file()])
def test_tasks_have_their_programs(key):
    task = TASKS[key]
    for name in task.programs:
        program = load_task_program(task, name, MODELS)
        assert program.data is not None
    if not task.needs_file:
        graph = load_task_program(task, next(iter(task.programs)), MODELS).parse(seed=0)
        assert sum(math.prod(site.shape) for site in graph.sites.values()) == task.dim
    for row in task.rows:
        assert read_row(row, task) is not None


def test_floors_are_those_that_the_files_state():
    stated = {key: task for key, task in TASKS.items() if task.floor is not None}
    assert len(stated) == 7
    for task in stated.values():
        assert f"{task.floor:.3f}" in (MODELS / task.file).read_text()


def test_rows_name_kinds_and_programs():
    lorenz = TASKS["lorenz"]
    assert read_row("maf", lorenz) == Row("maf", None)
    assert read_row(" gemf-t ", lorenz) == Row("gemf-t", "c")
    assert read_row("nsf-gemf-m-element:s", lorenz) == Row("nsf-gemf-m-element", "s")
    assert read_row("gemf-t:s", TASKS["iris"]) is None
    assert row_title(Row("nsf-gemf-t-element", "s"), lorenz) == "NSF GEMF-T per element, smoothness"
    assert Row("gemf-t", "s").key == "gemf-t:s"
    assert {"maf", "maf-l", "nsf", "emf-t", "emf-m", "gemf-t", "gemf-m", "b-maf", "b-nsf", "bare"} <= set(KINDS)
    with pytest.raises(UserError, match="did you mean 'gemf-t'"):
        read_row("gemft", lorenz)
    with pytest.raises(UserError, match="has no program"):
        read_row("maf:c", lorenz)


@pytest.mark.parametrize("hidden", [(64, 64), (96, 48)])
def test_flows_have_the_baselines_size(hidden):
    graph = load_task_program(SHORT, "c", MODELS).parse(seed=0)
    size = FlowSize(hidden, activation="relu")
    for name, kind in KINDS.items():
        flow, target = build_flow(graph, kind, size, seed=3)
        found = flow.parameter_count
        assert flow.configuration.activation == "relu"
        assert flow.configuration.program == (kind.placement is not None)
        assert len(flow.layer.gate_values()) == (0 if kind.gate is None else 5)
        if kind.more or kind.backbone is None:
            continue
        assert abs(found - target) <= 0.02 * target, name
    assert target == build_flow(graph, KINDS["maf"], size, seed=0)[0].parameter_count


def test_flows_of_a_seed_start_alike():
    graph = load_task_program(SHORT, "c", MODELS).parse(seed=0)
    first, second = (build_flow(graph, KINDS["emf-t"], SIZE, seed=3)[0] for _ in range(2))
    other = build_flow(graph, KINDS["emf-t"], SIZE, seed=4)[0]
    weights = [next(p for p in flow.backbone_parameters() if p.ndim == 2) for flow in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# ---------------------------------------------------------------------- cells


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fills_its_cell(kind):
    made = KINDS[kind]
    program = None if made.placement is None else "s"
    found = measure_cell(request(kind, program), task=SHORT, samples=True)
    assert math.isfinite(found.nll)
    assert found.nll_se > 0
    assert found.nll > found.best_nll
    assert found.steps == 4
    assert found.seconds >= 0
    assert len(found.all_gates) == (0 if made.gate is None else 5)
    assert all(0.5 < gate < 1 for gate in found.all_gates)
    assert set(found.values) == ({"sigma"} if program else set())
    assert torch.tensor(found.samples).shape == (48, 5)


@pytest.mark.parametrize(
    ("key", "kind", "program"),
    [
        ("brownian", "maf", None),
        ("brownian", "bare", "right"),
        ("lorenz", "emf-m", "s"),
        ("lorenz", "bare", "right"),
        ("van-der-pol", "bare", "right"),
        ("eight-gaussians", "bare", "right"),
        ("checkerboard", "maf", None),
        pytest.param("two-spirals", "emf-m", "m", marks=pytest.mark.slow),
        pytest.param("checkerboard", "gemf-t", "m", marks=pytest.mark.slow),
        ("iris", "gemf-m", "h"),
        ("digits", "bare", "h"),
        pytest.param("digits", "gemf-t", "h", marks=pytest.mark.slow),
    ],
)
def test_every_task_fills_its_cell(key, kind, program):
    task = TASKS[key]
    found = measure_cell(request(kind, program, task), samples=True)
    assert math.isfinite(found.nll)
    assert (found.best_nll is not None) == (task.process is not None or task.density is not None)
    assert len(found.samples[0]) == task.dim
    if task.floor is not None:
        assert found.best_nll == pytest.approx(task.floor, abs=6 * math.sqrt(task.dim) / 10)


def test_the_right_program_alone_is_the_best_possible():
    found = measure_cell(request("bare", "right", test_rows=500, steps=300))
    assert found.nll - found.best_nll == pytest.approx(0, abs=0.05)
    assert found.values["decay"][0] == pytest.approx(0.8, abs=0.03)


def test_rows_of_a_seed_see_the_same_examples(monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    def fit(flow, data, **held):
        drawn = data(n=7, seed=held["seed"]) if callable(data) else data
        seen.append((drawn["x_1"], held["validation"]["x_0"], held["seed"], held["batch_size"]))
        raise Stop

    monkeypatch.setattr(paper_training, "fit", fit)
    for asked in (request(), request("nsf-gemf-t", "s"), request(seed=1), request(examples=90)):
        with pytest.raises(Stop):
            measure_cell(asked)
    first, second, other, few = seen
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2:] == second[2:]
    assert not torch.equal(first[1], other[1])
    assert (len(few[0]), len(few[1]), few[3]) == (81, 9, 10)


@pytest.mark.parametrize("protocol", ["paper", "held-out"])
def test_protocols_reach_the_data(protocol):
    found = measure_cell(request("gemf-t", "h", TASKS["iris"], protocol=protocol))
    assert math.isfinite(found.nll)


def test_images_come_from_a_file(tmp_path):
    mixture = dataclasses.replace(TASKS["pixels"].programs["m"], settings={"components": 3})
    small = dataclasses.replace(TASKS["pixels"], settings={"side": 3}, dim=9, image=(3, 3), programs={"m": mixture})
    levels = torch.randint(256, (1_400, 9), generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "images.npz", x=levels.numpy())
    held = {"task": small, "file": str(tmp_path / "images.npz")}
    asked = request("gemf-t-element", "m", **held)
    found = measure_cell(asked, task=small, samples=True)
    assert len(found.all_gates) == 9
    assert found.nll < measure_cell(request("maf", **held), task=small).nll
    np.savez(tmp_path / "images.npz", x=levels[:6].numpy())
    with pytest.raises(UserError, match=r"pixels.py: data\(\) cannot give 100 examples: .*too few images for a part"):
        measure_cell(asked, task=small)


def test_steps_that_fit_into_minutes():
    short = measure_cell(request(steps=None, minutes=0.01), task=SHORT)
    assert short.steps > 10
    assert short.processor < 1.5
    with pytest.raises(UserError, match=r"not a step of training fits into 0\.0001 minutes"):
        measure_cell(request(steps=None, minutes=0.0001), task=SHORT)


def test_double_precision_and_other_settings():
    one = measure_cell(request("emf-t", "right", dtype="float64"), task=SHORT)
    assert 0 < one.nll - one.best_nll < 2
    other = measure_cell(request(activation="relu", learning_rate=1e-4, transforms=3), task=SHORT)
    assert other.parameters > 1.4 * one.parameters


def test_cost_of_a_step():
    found = step_cost(request(batch=20), SHORT, budget=0.1)
    assert 0.3 < found.ratio < 5
    assert found.gated > 0


def test_ctrl_c_ends_timing_and_a_fault_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("emfc.training.fit", lambda flow, **held: SimpleNamespace(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        step_cost(request(batch=20), SHORT, budget=0.1)
    kept, shown = tmp_path / "cells.jsonl", []
    with pytest.raises(KeyboardInterrupt, match="interrupted; 1 of 1 cells are kept in"):
        run({"main": [request()]}, keep=kept, cost=True, show=shown.append)
    assert shown[0].left_out == ["interrupted; 1 of 1 cells are measured"]
    monkeypatch.setattr("emfc.training.fit", lambda flow, **held: 1 / 0)
    results = run({"main": [request()]}, cost=True)
    assert len(results.cells["main"]) == 1
    assert results.costs == []
    told = "Ornstein-Uhlenbeck process, the time of a training step: a fault of emfc itself: ZeroDivisionError"
    assert told in "".join(results.left_out)
    assert told in capsys.readouterr().err


# ---------------------------------------------------------------------- several cells


def made_up(asked, samples=False):
    """What a worker measures in tests: some cells fail, and some end their process."""
    if asked.seed == 1:
        raise UserError("this one fails")
    if asked.seed == 2:
        raise TypeError("a fault")
    if asked.seed == 3:
        os._exit(7)
    return cell(nll=float(asked.seed), seed=asked.seed)


def test_a_process_of_its_own_tells_how_it_ended():
    jobs = [(request(seed=seed), False) for seed in (4, 1, 2, 3)]
    first, *others = [result for _, result in _in_processes(jobs, 1, made_up)]
    assert first.nll == 4
    assert others == [
        "this one fails",
        "a fault of emfc itself: TypeError: a fault",
        "its process ended with status 7",
    ]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_cells_that_fail_leave_others_alone(processes):
    seeds = [0, 1, 2, 3, 4, 5] if processes > 1 else [0, 1, 2, 4]
    jobs = [(request(seed=seed), False) for seed in seeds]
    found = {asked.seed: result for asked, result in run_cells(jobs, processes=processes, measure=made_up)}
    assert sorted(found) == seeds
    assert found[0].nll == 0
    assert found[4].nll == 4
    assert found[1] == "this one fails"
    assert found[2] == "a fault of emfc itself: TypeError: a fault"
    if processes > 1:
        assert found[3] == "its process ended with status 7"


@pytest.mark.slow
def test_processes_give_the_same_numbers(monkeypatch):
    monkeypatch.undo()  # in other processes nothing is patched
    jobs = [(request(kind, program, seed=1), False) for kind, program in (("maf", None), ("gemf-t", "c"))]
    one = {asked.kind: result for asked, result in run_cells(jobs, processes=1)}
    two = {asked.kind: result for asked, result in run_cells(jobs, processes=2)}
    for kind in one:
        assert (one[kind].nll, one[kind].gates) == (two[kind].nll, two[kind].gates)


def run(planned, kept=(), **values):
    held = {"keep": None, "processes": 1, "samples": False, "cost": False, "show": lambda _: None, "measure": made_up}
    return run_plan(planned, [], kept, **{**held, **values})


def test_failures_are_told_and_not_kept(tmp_path, capsys):
    kept = tmp_path / "cells.jsonl"
    results = run({"main": [request(seed=seed) for seed in (0, 1, 2, 4)]}, keep=kept)
    assert [held.request.seed for held in kept_cells(kept)] == [0, 4]
    assert "seed 1: this one fails" in capsys.readouterr().err
    assert any("maf, seed 1: this one fails" in sentence for sentence in results.left_out)
    with pytest.raises(UserError, match=r"nothing could be measured: .*this one fails"):
        run({"main": [request(seed=1)]})


def test_cells_of_two_studies_are_measured_once():
    count = []

    def measure(asked, samples=False):
        count.append((asked.kind, samples))
        return cell(asked.kind, asked.program)

    shared = request()
    results = run({"main": [shared], "wrong": [shared, request("gemf-t", "c")]}, measure=measure, samples=True)
    assert count == [("maf", True), ("gemf-t", False)]
    assert {study: len(cells) for study, cells in results.cells.items()} == {"main": 1, "wrong": 2}


def test_cells_of_other_code_are_told(capsys):
    asked = request()
    mine, others = (dataclasses.replace(cell(code=code), request=asked) for code in (code_digest(), "other"))
    assert run({"main": [asked]}, [mine]).left_out == []
    assert run({"main": [asked]}, [others]).left_out == [OTHER_CODE]
    assert OTHER_CODE in capsys.readouterr().err


def test_a_full_disk_shows_what_is_done_and_keeps_whole_cells(tmp_path, monkeypatch):
    kept, shown = tmp_path / "cells.jsonl", []
    asked = [request(seed=seed) for seed in (0, 4, 5)]
    keep_cell(kept, dataclasses.replace(cell(), request=asked[0]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kept.stat().st_size + 100, before[1]))
    try:
        with pytest.raises(
            UserError, match=r"cannot write .*; 2 of 3 cells are shown, the last of them is kept nowhere"
        ):
            run({"main": asked}, kept_cells(kept), keep=kept, show=shown.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [held.request.seed for held in shown[0].cells["main"]] == [0, 4]
    assert [held.request.seed for held in kept_cells(kept)] == [0]
    assert kept.read_bytes().count(b"\n") == 1  # nothing of the second is left


def test_interruptions_show_and_keep_what_is_done(tmp_path):
    kept, shown = tmp_path / "cells.jsonl", []

    def measure(asked, samples=False):
        if asked.seed:
            raise KeyboardInterrupt
        return dataclasses.replace(cell(), request=asked)

    with pytest.raises(KeyboardInterrupt, match="interrupted; 1 of 2 cells are kept in"):
        run({"main": [request(), request(seed=1)]}, keep=kept, measure=measure, show=shown.append)
    assert len(kept_cells(kept)) == 1
    assert len(shown[0].cells["main"]) == 1
    with pytest.raises(KeyboardInterrupt, match="1 of 2 cells are shown but kept nowhere; give a file with --keep"):
        run({"main": [request(), request(seed=1)]}, measure=measure, show=shown.append)
    with pytest.raises(KeyboardInterrupt, match="interrupted before a cell was done; nothing was kept"):
        run({"main": [request(seed=1)]}, measure=measure, show=shown.append)
    assert len(shown) == 2


def test_lines_that_are_cut_off_are_told(tmp_path, capsys):
    path = tmp_path / "cells.jsonl"
    for seed in range(3):
        keep_cell(path, cell(seed=seed))
    first, second, third = path.read_text().splitlines()
    for number, text, left in ((2, f"{first}\n{second[:200]}\n{third}\n", [0, 2]), (3, f"{first}\n\n{{", [0])):
        path.write_text(text)
        assert [held.request.seed for held in kept_cells(path)] == left
        assert f"line {number} is cut off; its cell is left out" in capsys.readouterr().err


def test_a_file_that_cannot_be_added_to(tmp_path):
    check_keep(None)
    check_keep(tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere" / "cells.jsonl")
    with pytest.raises(UserError, match="is not a file that cells can be kept in"):
        check_keep(tmp_path / "link.jsonl")


def test_the_file_of_cells(tmp_path):
    path = tmp_path / "cells.jsonl"
    assert kept_cells(path) == []
    first = cell("gemf-t", "c", gates={"x_0": [0.25, 0.5]}, samples=[[1.0, 2.0]], best_nll=0.5)
    keep_cell(path, first)
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 2])  # as a run leaves it that is killed while it writes
    assert kept_cells(path) == [first]
    keep_cell(path, cell(seed=1))
    assert [held.request.seed for held in kept_cells(path)] == [0, 1]
    other = tmp_path / "notes.txt"
    other.write_text("a text without end of line")
    with pytest.raises(UserError, match="does not hold results of emfc bench paper"):
        kept_cells(other)
    assert other.read_text() == "a text without end of line"


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 5},
        {"minutes": 1.0},
        {"seed": 1},
        {"examples": 50},
        {"hidden": (8, 9)},
        {"batch": 51},
        {"learning_rate": 1e-3},
        {"activation": "relu"},
        {"dtype": "float64"},
        {"test_rows": 99},
        {"source": "other"},
        {"protocol": "held-out"},
        {"settings": '{"start": "start"}'},
    ],
)
def test_identity_tells_cells_apart(changed):
    assert request(**changed).identity != request().identity
    assert dataclasses.replace(request(), models="elsewhere").identity == request().identity


def test_digest_is_of_the_program_and_not_of_its_words(tmp_path):
    one, two, three = (tmp_path / f"{name}.py" for name in "abc")
    one.write_text('"""A."""\n\ndef f(x):\n    """B."""\n    return x  # C\n')
    two.write_text("def f(x):\n    return x\n")
    three.write_text("def f(x):\n    return -x\n")
    assert source_digest(one) == source_digest(two) != source_digest(three)
    assert source_digest(one, three) != source_digest(one)
    with pytest.raises(UserError, match="cannot read"):
        source_digest(tmp_path / "none.py")


# ---------------------------------------------------------------------- plans


def test_plans_of_the_studies():
    planned, missing = plan(options(studies=("main", "wrong", "few"), tasks=("brownian", "eight-gaussians")))
    assert missing == ["eight Gaussians: it has no wrong programs"]
    main = [asked for asked in planned["main"] if asked.task == "brownian" and asked.seed == 0]
    assert [asked.row for asked in main][:4] == ["maf", "maf-l", "nsf", "emf-t:c"]
    assert {asked.steps for asked in main} == {5000}
    assert [asked.seed for asked in planned["main"]] == sorted(asked.seed for asked in planned["main"])
    wrong = {asked.row: asked for asked in planned["wrong"]}
    assert wrong["maf"].supports == "wrong-dynamics"  # positive, as those of the wrong programs
    assert "gemf-t-element:wrong-scale" in wrong
    few = [asked for asked in planned["few"] if asked.seed == 1 and asked.task == "brownian"]
    assert {asked.examples for asked in few} == set(SIZES)
    assert {asked.row for asked in few} == {"maf", "gemf-t:c", "gemf-t:right"}
    assert all(task in TASKS for task in FEW_TASKS)
    assert len(FEW_TASKS) >= 4


def test_plans_tell_settings_apart(monkeypatch):
    def identities(row="gemf-t"):
        planned, _ = plan(options(tasks=("lorenz",), rows=(row,), seeds=1))
        return {asked.identity for asked in planned["main"]}

    before, reverse = identities(), identities("gemf-t:backwards")
    assert not before & reverse
    lorenz = TASKS["lorenz"]
    monkeypatch.setitem(TASKS, "lorenz", dataclasses.replace(lorenz, settings={"steps": 5}))
    assert not identities() & before
    program = dataclasses.replace(lorenz.programs["c"], start="start")
    monkeypatch.setitem(TASKS, "lorenz", dataclasses.replace(lorenz, programs={**lorenz.programs, "c": program}))
    assert not identities() & before


def test_cells_find_their_studies():
    cells = [
        cell("maf"),
        cell("gemf-t", "c"),
        cell("gemf-t", "c", source="newer", nll=2.0),
        cell("maf", learning_rate=1e-2),
        cell("gemf-t", "wrong-order", learning_rate=1e-2),
        cell("maf", seed=3, examples=50),
        cell("maf", task=TASKS["brownian"], supports="wrong-dynamics"),
        cell("gemf-t", "backwards", task=TASKS["brownian"]),
    ]
    found = by_study(cells)
    assert found["main"] == [cells[0], cells[2]]
    assert found["wrong"] == [cells[3], cells[4], cells[6], cells[7]]
    assert found["few"] == [cells[5]]
    assert by_study(cells[3:4]) == {"main": cells[3:4]}


def test_plans_of_rows_and_protocols():
    planned, _ = plan(options(tasks=("iris",), rows=("maf", "gemf-t"), protocols=("paper", "held-out"), seeds=1))
    assert [(asked.protocol, asked.row) for asked in planned["main"]] == [
        ("paper", "maf"),
        ("paper", "gemf-t:h"),
        ("held-out", "maf"),
        ("held-out", "gemf-t:h"),
    ]
    planned, missing = plan(options(tasks=("lorenz", "pixels"), rows=("gemf-t:s",)))
    assert {asked.task for asked in planned["main"]} == {"lorenz"}
    assert "give their file with --images" in missing[0]
    planned, _ = plan(
        options(studies=("wrong",), tasks=("lorenz",), rows=("maf", "gemf-t", "emf-t:backwards"), seeds=1)
    )
    assert [asked.row for asked in planned["wrong"]] == [
        "maf",
        "gemf-t:wrong-dynamics",
        "gemf-t:wrong-order",
        "gemf-t:backwards",
        "gemf-t:wrong-scale",
        "emf-t:backwards",
    ]


# ---------------------------------------------------------------------- tables and goals


def pairs(kind, program, losses, **values):
    return [cell(kind, program, loss, seed=seed, **values) for seed, loss in enumerate(losses)]


def test_differences_are_paired():
    cells = [*pairs("maf", None, [10.0, 20.0, 30.0]), *pairs("gemf-t", "c", [9.0, 18.0, 29.5])]
    baseline, gated = summaries(cells)
    assert baseline.difference is None
    assert gated.difference.mean == pytest.approx(-3.5 / 3)
    assert gated.difference.error == pytest.approx(torch.tensor([-1.0, -2.0, -0.5]).std().item() / math.sqrt(3))
    assert gated.nll.mean == pytest.approx(56.5 / 3)
    assert gated.above.mean == pytest.approx(56.5 / 3 - 24.076)
    (partly,) = [held for held in summaries([cells[0], *cells[4:]]) if held.row.kind == "gemf-t"]
    assert partly.difference is None
    assert difference(cells[3:5], cells[1:3]).count == 1
    assert math.isnan(estimate([1.0]).error)
    assert math.isnan(estimate([1.0, math.nan]).mean)


def test_cells_of_other_data_are_not_compared():
    cells = [*pairs("maf", None, [3.0, 4.0]), *pairs("gemf-t", "c", [2.0, 3.0])]
    cells[3] = dataclasses.replace(cells[3], request=dataclasses.replace(cells[3].request, source="other"))
    found = summaries(cells)
    assert (found[1].difference.mean, found[1].difference.count) == (-1.0, 1)
    assert table_rows(found)[1][2] == "-1.000 (1 seed)"
    told = "Ornstein-Uhlenbeck process: its programs or data were changed between cells"
    assert told in Results({"main": cells}).left_out[0]
    assert Results({"main": cells[:3]}).left_out == []


def test_rows_stand_in_one_order():
    cells = [
        *pairs("bare", "right", [1.0]),
        *pairs("gemf-t", "s", [1.0]),
        *pairs("gemf-t", "c", [1.0]),
        *pairs("maf", None, [1.0]),
    ]
    assert [held.row.key for held in summaries(cells)] == ["maf", "gemf-t:c", "gemf-t:s", "bare:right"]


def test_above_is_of_the_same_examples():
    (held,) = summaries(pairs("maf", None, [10.0, 20.0], best_nll=9.0))
    assert held.above.mean == 6.0
    (held,) = summaries(pairs("maf", None, [10.0], task=TASKS["iris"]))
    assert held.above is None


def test_rows_of_tables():
    cells = [*pairs("maf", None, [24.5, 24.7]), *pairs("gemf-t", "c", [24.1, 24.2], gates={"a": [0.1], "b": [0.9]})]
    ((group, found),) = tables(cells).items()
    assert group[:3] == ("ornstein-uhlenbeck", None, None)
    baseline, gated = table_rows(found)
    assert baseline[:3] == ["MAF", "24.600 ± 0.100", ""]
    assert gated[0] == "GEMF-T, continuity"
    assert gated[2] == "-0.450 ± 0.050"
    assert gated[4] == "0.10 / 0.50 / 0.90"
    assert gated[5:7] == ["1,000", "5,000"]
    broken = summaries(pairs("maf", None, [math.nan]))
    assert table_rows(broken)[0][1] == "not finite"


def test_goals_hold_the_best_row():
    cells = [
        *pairs("maf", None, [24.5, 24.7]),
        *pairs("emf-t", "c", [24.2, 24.2]),
        *pairs("gemf-m", "c", [24.08, 24.1]),
        *pairs("nsf-emf-t", "c", [23.0, 23.0]),
        *pairs("bare", "right", [24.07, 24.07]),
    ]
    found = {goal.what: goal for goal in reached(summaries(cells))}
    first, second = found.values()
    assert (first.value, first.where, first.met) == (pytest.approx(24.09), "GEMF-M, continuity", True)
    assert second.met
    assert "right" in second.where
    (paired,) = reached(summaries(pairs("emf-t", "c", [23.0, 25.0], best_nll=22.99)))
    assert paired.value == pytest.approx(24.076 + 1.01)
    assert reached(summaries(pairs("emf-t", "c", [24.0], steps=100))) == []
    assert reached(summaries(pairs("emf-t", "c", [24.0], batch=50))) == []
    assert len(reached(summaries(pairs("emf-t", "c", [24.0], steps=9000)))) == 1


def test_goals_of_minutes_and_differences():
    lorenz = TASKS["lorenz"]
    cells = [
        *pairs("maf", None, [-100.0, -120.0], task=lorenz),
        *pairs("gemf-t", "s", [-165.0, -171.0], task=lorenz),
        *pairs("gemf-m", "c", [-90.0, -91.0], task=lorenz),
    ]
    found = [(goal.what, goal.met) for goal in reached(summaries(cells))]
    assert [met for _, met in found] == [True, False, True, True]
    assert "difference to MAF, 5,000 steps" in found[2][0]
    assert "in the middle" in found[3][0]
    lost = reached(summaries(cells), [request("emf-m", "c", lorenz)])
    assert [goal.value for goal in lost if "middle" in goal.what] == [1.0]
    slow = {"task": lorenz, "learning_rate": 1e-3}
    cells += [*pairs("maf", None, [-80.0, -80.0], **slow), *pairs("gemf-t", "c", [-140.0, -140.0], **slow)]
    both = {goal.what: goal for goal in reached(summaries(cells)) if "difference" in goal.what}
    best, strongest = both.values()
    assert (best.value, best.met) == (-60.0, True)
    assert (strongest.value, strongest.met) == (-58.0, True)
    assert next(reversed(both)).endswith("where MAF is best")
    kept = reached(summaries([*pairs("maf", None, [1.0, 1.0], task=lorenz), *pairs("emf-m", "c", [1.0], task=lorenz)]))
    assert [(goal.value, goal.met) for goal in kept if "without a finite loss, of 2" in goal.what] == [(1.0, False)]
    long = pairs("gemf-t", "c", [-205.0], task=lorenz, steps=None, minutes=10.0)
    (goal,) = reached(summaries(long))
    assert not goal.met
    assert "10 minutes" in goal.what


def test_trainings_that_were_short_count_as_within_minutes():
    lorenz = TASKS["lorenz"]
    for processor, met in ((300.0, True), (900.0, None)):
        found = reached(summaries(pairs("gemf-t", "c", [-215.0], task=lorenz, processor=processor)))
        assert [goal.met for goal in found if "within 10 minutes" in goal.what] == ([] if met is None else [met])


def test_goals_of_two_standard_errors():
    digits = TASKS["digits"]
    held = {"task": digits, "protocol": "held-out"}
    cells = [
        *pairs("maf", None, [10.0, 12.0, 11.0], **held),
        *pairs("maf-l", None, [9.0, 11.0, 10.0], **held),
        *pairs("gemf-t", "h", [8.9, 10.0, 10.1], **held),
    ]
    paper, paper_more, over, more = reached(summaries(cells))
    assert (paper.value, paper_more.value) == (over.value, more.value)  # the paper's program is a hierarchical one
    assert over.met
    assert not more.met
    assert more.value > 0
    one = reached(summaries([held for held in cells if held.request.seed == 0]))
    assert not any(goal.met for goal in one)  # one seed has no standard error


def test_goals_of_wrong_programs_hold_the_worst_row():
    cells = [
        *pairs("maf", None, [24.5, 24.7]),
        *pairs("gemf-t", "wrong-dynamics", [24.6, 24.7], gates={"a": [0.01, 0.02]}),
        *pairs("gemf-m", "wrong-dynamics", [24.9, 25.2], gates={"a": [0.9, 0.8]}),
        *pairs("gemf-t", "wrong-scale", [24.4, 24.8], gates={"a": [0.0]}),
        *pairs("emf-t", "wrong-scale", [99.0, 99.0]),
    ]
    found = reached_when_wrong(summaries(cells))
    assert [goal.met for goal in found] == [False, False, True, True]
    assert found[0].where == "GEMF-M, wrong dynamics"
    assert found[1].value == pytest.approx(0.85)
    assert found[1].limit == CLOSED
    held = {"task": TASKS["iris"], "gates": {"a": [0.1]}}
    told = [pairs("gemf-t", "wrong-scale", [1.0], protocol=protocol, **held) for protocol in ("paper", "held-out")]
    whats = [goal.what for goal in reached_when_wrong(summaries([*told[0], *told[1]]))]
    assert whats == [f"mis-scaled prior, {protocol} protocol, mean gate" for protocol in ("paper", "held-out")]


def test_goals_are_of_tasks_that_are_there():
    for goal in GOALS:
        assert set(goal.programs) <= set(TASKS[goal.task].programs)
        assert goal.protocol is None or goal.protocol in TASKS[goal.task].protocols
    assert goal_rows(reached(summaries(pairs("emf-t", "c", [24.0]))))[0][-1] == "yes"


def test_page_and_document():
    few = [*pairs("maf", None, [25.0], examples=50), *pairs("maf", None, [24.5], examples=200)]
    results = Results(
        {"main": pairs("gemf-t", "c", [24.1, 24.2], samples=[[1.0]]), "few": few},
        [(request("maf", seed=3), "why"), (request("maf", seed=4), "why")],
        ["a sentence"],
        [StepCost("lorenz", 2.0, 2.2, 1.1)],
        {"main": {"Samples": "images/a.png"}},
    )
    page = as_markdown(results)
    assert "whose number of\nparameters is nearest to MAF's; here all have the same number. Times" in page
    wide = Results({"main": pairs("gemf-t", "c", [24.1], parameters=1035)})
    assert "the largest difference is 3.5 % (Ornstein-Uhlenbeck process, gemf-t:c). Times" in as_markdown(wide)
    assert "MAF's. Times" in as_markdown(Results({"main": pairs("bare", "right", [24.1])}))
    for part in (
        "### Ornstein-Uhlenbeck process\n\nD = 30; 2 layers; 8 × 8 units; default activation; 5,000 steps; batch 100; "
        "learning rate 0.005; 100 test examples; float32; best possible 24.076.",
        "| GEMF-T, continuity | 24.150 ± 0.050 |",
        "![Samples](images/a.png)",
        "| task | flow | 50 | 200 |",
        "| Ornstein-Uhlenbeck process | MAF | 0.924 | 0.424 |",
        "| Lorenz system | 2.00 | 2.20 | 1.100 |",
        "- a sentence\n- Ornstein-Uhlenbeck process, maf, seeds 3, 4: why\n",
        "a training step of the gated flow, times that of MAF | 1.15 | 1.100 | GEMF-T | yes |",
    ):
        assert part in page
    document = as_document(results)
    assert "samples" not in document["cells"]["main"][0]
    assert document["rows"]["main"][0]["nll"]["count"] == 2
    assert len(document["rows"]["few"]) == 2
    assert [goal["met"] for goal in document["goals"]] == [False, True]
    json.dumps(document)


# ---------------------------------------------------------------------- pictures


def test_pictures_of_every_kind(tmp_path):
    iris, digits = TASKS["iris"], TASKS["digits"]
    plane = TASKS["checkerboard"]
    series = [
        *pairs("maf", None, [25.0], samples=torch.full((48, 30), 1e9).tolist()),
        *pairs("gemf-t", "c", [24.0, 24.1], samples=torch.randn(48, 30).tolist(), gates={"a": [0.1] * 30}),
    ]
    main = [
        *series,
        *pairs("maf", None, [3.5], task=plane, samples=torch.randn(500, 2).tolist()),
        *pairs("maf", None, [3.5], task=iris, samples=torch.randn(48, 40).tolist()),
        *pairs(
            "gemf-t-element", "h", [3.5], task=digits, samples=torch.randn(8, 1280).tolist(), gates={"a": [0.5] * 1280}
        ),
    ]
    few = [*pairs("maf", None, [25.0], examples=50), *pairs("gemf-t", "c", [24.5], examples=200)]
    wrong = pairs("gemf-t", "wrong-order", [24.0], gates={"a": [0.0] * 30})
    drawn, faults = draw_pictures({"main": main, "few": few, "wrong": wrong}, tmp_path)
    assert faults == []
    assert {study: len(paths) for study, paths in drawn.items()} == {"main": 6, "few": 1, "wrong": 1}
    names = {path.name for paths in drawn.values() for path in paths.values()}
    assert {"paper-digits-paper-samples.png", "paper-learning-curves.png"} <= names
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)


def test_pictures_of_gates_and_curves(tmp_path):
    draw_gates(tmp_path / "g.svg", {"a": [[0.5] * 16, [0.6] * 16], "b": [[1.0]]}, title="t", image=(4, 4))
    points = {"MAF": [(50, 1.0, 0.1), (500, math.nan, math.nan)], "other": [(50, -1.0, math.nan)]}
    draw_learning_curves(tmp_path / "l.svg", {"task": points}, what={"task": "nats"}, title="t")
    assert (tmp_path / "l.svg").read_text().startswith("<?xml")
    with pytest.raises(UserError, match="ending"):
        draw_gates(tmp_path / "g.txt", {}, title="t")


def test_pictures_keep_values_and_limit_axes(tmp_path, monkeypatch):
    figures = []
    for room in ("curves", "paper"):
        monkeypatch.setattr(f"emfc.report.{room}.save_figure", lambda figure, path: figures.append(figure))
    data, far = torch.rand(20, 4), torch.full((20, 4), 1e30)
    draw_examples(tmp_path / "s.png", {"data": data, "flow": far}, {f"x_{step}": () for step in range(4)}, frame=data)
    draw_examples(tmp_path / "p.png", {"data": data[:, :2], "flow": far[:, :2]}, {"x": (2,)}, frame=data[:, :2])
    for figure in figures:
        axes = figure.axes[1]
        assert axes.lines[0].get_ydata()[0] == np.float32(1e30)
        assert -0.5 < axes.get_ylim()[0] < axes.get_ylim()[1] < 1.5
    draw_gates(tmp_path / "g.png", {"a": [[0.5], [0.6]]}, title="t")
    axes = figures[-1].axes[0]
    shown = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert shown == [0]


# ---------------------------------------------------------------------- the command

QUICK = ("bench", "paper", "--task", "ornstein-uhlenbeck", "--seeds", "1", "--hidden", "8,8", "--test-rows", "50")
STEPS = ("--steps", "3")


def test_measures_and_writes(command, tmp_path):
    words = (*QUICK, *STEPS, "--rows", "maf,gemf-t", "--keep", tmp_path / "cells.jsonl", "--study", "main,few")
    words = (*words, "--sizes", "40,60", "--pictures", tmp_path / "pictures", "-o", tmp_path / "p.md")
    result = command(*words, "-o", tmp_path / "p.json", "--json")
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "p.json").read_text())
    assert [held["request"]["kind"] for held in document["cells"]["main"]] == ["maf", "gemf-t"]
    assert len(document["cells"]["few"]) == 4
    page = (tmp_path / "p.md").read_text()
    assert "(pictures/paper-ornstein-uhlenbeck-samples.png)" in page
    assert (tmp_path / "pictures" / "paper-learning-curves.png").exists()
    kept = (tmp_path / "cells.jsonl").read_text()
    again = command(*words)
    assert (tmp_path / "cells.jsonl").read_text() == kept
    assert "GEMF-T, continuity" in again.stdout
    assert (tmp_path / "p.md").read_text() == page
    more = command(*words[:4], *(word if word != "1" else "2" for word in words[4:]))
    assert len(more.stderr.splitlines()) >= 6
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 12


def test_report_gathers_runs_of_different_options(command, tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    command(*QUICK, *STEPS, "--rows", "maf,gemf-t", "--keep", first, "--pictures", tmp_path)
    command(*QUICK, *STEPS, "--rows", "maf,bare:right", "--learning-rate", "1e-3", "--keep", second)
    words = ("bench", "paper-report", first, second, "-o", tmp_path / "p.md", "--pictures", tmp_path / "drawn")
    document = json.loads(command(*words, "--json").stdout)
    rows = [(held["row"], held["recipe"]["learning_rate"]) for held in document["rows"]["main"]]
    assert rows == [("maf", None), ("gemf-t:c", None), ("maf", 1e-3), ("bare:right", 1e-3)]
    page = (tmp_path / "p.md").read_text()
    for rate in ("0.005", "0.001"):
        assert f"### Ornstein-Uhlenbeck process, learning rate {rate}\n" in page
    assert "(drawn/paper-ornstein-uhlenbeck-learning-rate-0.005-samples.png)" in page
    assert not any("without a finite loss" in goal["what"] for goal in document["goals"])
    assert document["missing"] == []
    lines = [json.loads(line) for line in second.read_text().splitlines()]
    second.write_text("".join(json.dumps(line | {"code": "other"}) + "\n" for line in lines))
    assert "different versions of the code" in command("bench", "paper-report", first, second, "--json").stdout
    changed = lines[0] | {"request": lines[0]["request"] | {"settings": "other"}}
    second.write_text("".join(json.dumps(line) + "\n" for line in [*lines, changed]))
    document = json.loads(command("bench", "paper-report", second, "--json").stdout)
    assert [held["nll"]["count"] for held in document["rows"]["main"]] == [1, 1]


def test_report_keeps_recipes_of_learning_curves_apart(command, tmp_path):
    words = (*QUICK, "--study", "few", "--rows", "maf", "--sizes", "50")
    for steps in ("2", "3"):
        command(*words, "--steps", steps, "--keep", tmp_path / "cells.jsonl")
    command("bench", "paper-report", tmp_path / "cells.jsonl", "-o", tmp_path / "p.md", "--pictures", tmp_path)
    page = (tmp_path / "p.md").read_text()
    assert page.count("| Ornstein-Uhlenbeck process | MAF |") == 2
    assert (tmp_path / "paper-learning-curves-2.png").exists()


def test_pages_are_written_where_a_picture_fails(command, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise UserError("no room for the picture")

    monkeypatch.setattr("emfc.cli.bench.paper_pictures.draw_gates", broken)
    words = (*QUICK, *STEPS, "--rows", "gemf-t", "--pictures", tmp_path / "drawn", "-o", tmp_path / "p.md")
    assert "no room for the picture" in command(*words, status=2).stderr
    page = (tmp_path / "p.md").read_text()
    assert "GEMF-T, continuity" in page
    assert "(drawn/paper-ornstein-uhlenbeck-samples.png)" in page  # the other picture


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a file; give files that"),
        ("", "hold no cells that are done"),
        ("\n[]", "does not hold results of emfc bench paper; see line 2"),
        ("3", "see line 1"),
        ("null", "see line 1"),
        ("[" * 100_000, "see line 1"),
        (made_cell(nll="many"), "see line 1"),
        (made_cell(gates=[1]), "see line 1"),
        (made_cell(task="nope"), "a cell of the task 'nope' and the row 'maf' is not of this version"),
        (made_cell(kind="best"), "the row 'best' is not of this version"),
        (made_cell(program="p"), "the row 'maf:p' is not of this version"),
        (made_cell(steps=None), "see line 1"),
        (made_cell(minutes=1.0), "see line 1"),
        (made_cell(protocol="other"), "see line 1"),
        (made_cell(dtype="zz"), "see line 1"),
        (made_cell(hidden=()), "see line 1"),
        (made_cell(transforms=-1), "see line 1"),
        (made_cell(baseline_parameters=0), "see line 1"),
        (made_cell(samples=[[1.0, 2.0], [1.0]]), "see line 1"),
    ],
)
def test_files_that_cannot_be_reported(command, tmp_path, text, message):
    path = tmp_path / "cells.jsonl"
    if text is not None:
        path.write_text(text)
    assert message in command("bench", "paper-report", path, status=2).stderr


def test_ctrl_c_outside_of_cells_tells_what_is_kept(command, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("emfc.cli.bench.paper_output._draw", interrupted)
    words = (*QUICK, *STEPS, "--rows", "bare", "--json", "--pictures", tmp_path)
    result = command(*words, "--keep", tmp_path / "cells.jsonl", status=130)
    assert f"interrupted before all was written; the cells that are done are kept in {tmp_path}" in result.stderr
    assert json.loads(result.stdout)["rows"]
    assert "no cell is kept; give a file with --keep" in command(*words, status=130).stderr
    monkeypatch.setattr("emfc.cli.bench.paper_run.time_steps", interrupted)
    document = json.loads(command(*words, "--cost", status=130).stdout)
    assert document["missing"] == ["interrupted; 1 of 1 cells are measured"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "lorentz"), "did you mean 'lorenz'"),
        (("--task", "nope"), "the task 'nope' is unknown; it takes brownian, ornstein-uhlenbeck, lorenz"),
        (("--task", ","), "the task is empty in ','"),
        (("--rows", "maf,"), "the row is empty in 'maf,'"),
        (("--rows", "maf,gemf-t:zzz"), "has the program 'zzz' of the row 'gemf-t:zzz'; known here are c, s, right"),
        (("--rows", "gemft"), "did you mean 'gemf-t'"),
        (("--rows", "maf:c"), "has no program"),
        (("--task", "lorenz", "--rows", "gemf-t:h"), "no task that was asked for has the program"),
        (("--study", "most"), "the study 'most' is unknown"),
        (("--protocol", "none"), "the protocol 'none' is unknown"),
        (("--steps", "5", "--minutes", "1"), "give one of them"),
        (("--steps", "0"), "at least 1"),
        (("--minutes", "-1"), "--minutes needs a positive number"),
        (("--learning-rate", "0"), "--learning-rate needs a positive number"),
        (("--study", "few", "--sizes", "5"), "at least 20 examples"),
        (("--study", "few", "--sizes", "many"), "--sizes needs whole numbers"),
        (("--hidden", "a"), "--hidden needs whole numbers"),
        (("--activation", "cube"), "the activation 'cube' is unknown"),
        (("--images", "nowhere.npz"), "nowhere.npz is not there or not a file"),
        (("--images", "tests"), "tests is not there or not a file"),
        (("--images", "pyproject.toml", "--task", "lorenz"), "--images counts for the task pixels alone"),
        (("--sizes", "50"), "--sizes counts for the study few alone"),
        (("--protocol", "held-out", "--task", "lorenz"), "--protocol counts for the tasks iris and digits alone"),
        (("--hidden", "100000000"), "--hidden takes widths of at most 16,384"),
        (("--keep", "/dev/full"), "/dev/full is not a file that cells can be kept in"),
        (("--keep", "tests"), "it is a folder"),
        (("--keep", "cells.json", "-o", "./cells.json"), "it is the file that cells are kept in"),
        (("--task", "pixels"), "give their file with --images"),
        (("--models", "nowhere"), "the folder nowhere does not exist; --models takes"),
        (("--seeds", "0"), "at least 1"),
        (("--processes", "0"), "at least 1"),
        (("--seed", "1000000"), "--seed must be below"),
        (("-o", "table.txt"), "must be .md or .json"),
        (("-o", "nowhere/table.md"), "does not exist"),
        (("--keep", "nowhere/cells.jsonl"), "does not exist"),
        (("--keep", "pyproject.toml"), "does not hold results"),
        (("--pictures", "pyproject.toml"), "cannot make the folder pyproject.toml"),
    ],
)
def test_bad_options(command, words, message):
    assert message in command("bench", "paper", *words, status=2).stderr


def test_ctrl_c_ends_all_processes_and_keeps_what_is_done(tmp_path):
    kept = tmp_path / "cells.jsonl"
    words = ("bench", "paper", "--task", "iris", "--rows", "bare,maf", "--seeds", "2", "--steps", "1000000")
    words = (
        *words,
        "--test-rows",
        "50",
        "--hidden",
        "8,8",
        "--processes",
        "2",
        "--keep",
        str(kept),
        "-o",
        str(tmp_path / "p.md"),
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "from emfc.cli.app import main; main()", *words],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        for _ in range(600):
            if kept.exists():
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"cells are kept in {kept}" in err
    assert "program alone, hierarchical" in out
    assert len(kept_cells(kept)) >= 1
    assert not (tmp_path / "p.md").exists()
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:  # nobody is left of its session
            return
        time.sleep(0.05)
    raise AssertionError("a process is left")


def test_the_task_type_is_data():
    assert isinstance(OU, PaperTask)
    assert {task.picture for task in TASKS.values()} == {"series", "plane", "blocks", "images"}
