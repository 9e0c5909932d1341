"""``emfc bench``: the hand-written programs are the programs, and the command writes what it found."""

from __future__ import annotations

import json

import pytest
import torch

import emfc
from emfc.cli.bench.figures import Figure, Settings, measure_programs
from emfc.cli.bench.goals import findings
from emfc.cli.bench.measure import kept_bytes, operations, ratio
from emfc.cli.bench.scaling import compile_alone
from emfc.cli.bench.subjects import SUBJECTS, pyro_density, pyro_draw, pyro_enumeration
from emfc.cli.bench.table import as_markdown

STEPS = 67  # more than one block of the blocked recurrences
SHORT = {"gated-recurrent": 20, "hidden-markov": 20}


def prepared(name):
    """A program, its layer with parameters moved, and what the hand-written version takes."""
    subject, steps = SUBJECTS[name], SHORT.get(name, STEPS)
    model = subject.program()
    layer = emfc.compile(model, steps).to(torch.get_default_dtype())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return subject, model, steps, layer, list(layer.unconstrained)


def close(one, other, tolerance=1e-8):
    """Equal to rounding: to `tolerance` in float64."""
    tolerance = tolerance if one.dtype == torch.float64 else 5e-3
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * (1 + float(other.detach().abs().max())))


def gradients(value, inputs):
    """Gradients of a weighted sum, zero where nothing is read."""
    weights = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)
    found = torch.autograd.grad((value * weights).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(held) if grad is None else grad for held, grad in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("name", SUBJECTS)
def test_hand_written_density_is_the_density(name):
    subject, _, _, layer, raw = prepared(name)
    x = layer()(torch.randn(5, layer.noise_dim)).detach().requires_grad_()
    ours, by_hand = layer().log_prob(x), subject.density(x, *raw)
    close(ours, by_hand)
    for one, other in zip(gradients(ours, [x, *raw]), gradients(by_hand, [x, *raw]), strict=True):
        close(one, other, 1e-7)


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if subject.draw])
def test_hand_written_draws_are_the_draws(name):
    subject, _, _, layer, raw = prepared(name)
    noise = torch.randn(5, layer.noise_dim, requires_grad=True)
    ours, by_hand = layer()(noise), subject.draw(noise, *raw)
    close(ours, by_hand)
    for one, other in zip(gradients(ours, [noise, *raw]), gradients(by_hand, [noise, *raw]), strict=True):
        close(one, other, 1e-6)


@pytest.mark.parametrize("name", SUBJECTS)
def test_pyro_runs_the_same_program(name):
    subject, steps = SUBJECTS[name], 6
    model = subject.program()
    layer = emfc.compile(model, steps)
    x = layer()(torch.randn(5, layer.noise_dim)).detach()
    evaluate = pyro_enumeration if subject.enumerated else pyro_density
    found = evaluate(model, steps, layer.unpack(x))
    close(found.detach(), layer().log_prob(x).sum())
    if subject.draw:
        assert pyro_draw(model, steps, 3).shape == (3, layer.dim)


def test_counts():
    weight = torch.randn(7, requires_grad=True)
    assert operations(lambda: weight * 2) == 1
    assert kept_bytes(lambda: weight.exp().exp(), [weight]) == 2 * 7 * weight.element_size()
    assert kept_bytes(lambda: weight.sin(), [weight]) == 0


def test_ratio_of_a_function_to_itself_is_near_one():
    x = torch.randn(100, 100)
    value, first, second = ratio(lambda: x @ x, lambda: x @ x, budget=0.05)
    assert 0.3 < value < 3
    assert min(first, second) > 0


def test_goals_name_the_worst_figure():
    good = Figure("brownian", "density", 300, 100, 1.0, over_hand=1.1, operations=50, kept=10, kept_by_hand=8)
    bad = Figure("lorenz", "density", 3000, 100, 1.0, over_hand=1.7, operations=60)
    longer = Figure("brownian", "density", 3000, 100, 1.0, over_hand=1.2, operations=50)
    draws = Figure("lorenz", "draws", 300, 100, 1.0, over_hand=1.0, pyro_over=4.0)
    found = {finding.what: finding for finding in findings([good, bad, longer, draws])}
    over = found["density, forward and backward, over hand-written, T >= 300"]
    assert (over.value, over.where, over.met) == (1.7, "lorenz, T = 3000, B = 100", False)
    assert found["operations of a density, longest T over shortest"].met
    assert found["draws, T = 300, Pyro over ours"].met
    assert found["memory kept for the backward pass, over hand-written"].value == pytest.approx(1.25)
    assert "density, forward and backward, over hand-written, T = 30" not in found
    page = as_markdown([good, bad])
    assert "| Lorenz | density | 3000 | 100 | 1,000 | 1.70 |" in page
    assert "missed" in page


def test_growth_is_measured_between_lengths():
    figures = [Figure("chain", "compile", sites, 0, sites / 1e4, peak=2**29) for sites in (10_000, 100_000)]
    found = {finding.what: finding for finding in findings(figures)}
    assert found["parse and compile, 100,000 sites over 10,000"].value == pytest.approx(10)
    assert found["100,000 sites, GiB at the highest"].value == pytest.approx(0.5)
    assert found["100,000 sites, seconds"].met


def test_figures_hold_every_measure():
    settings = Settings(steps=(5,), batches=(4,), measures=("density", "draws", "compile"), budget=0.01)
    compiled, density, draws = measure_programs(["brownian"], settings)
    assert (compiled.measure, density.measure, draws.measure) == ("compile", "density", "draws")
    assert min(density.over_hand, density.pyro_over, density.plain_over, draws.over_hand, draws.pyro_over) > 0
    assert min(density.operations, density.operations_by_hand, density.kept, density.kept_by_hand) > 0


def test_compiling_in_a_process_of_its_own():
    figure = compile_alone("tree", 20)
    assert figure.seconds > 0
    assert figure.peak is None or figure.peak > 2**20


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    from tests.cli.conftest import run_command

    folder = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    result = run_command(
        *("bench", "--quick", "--programs", "brownian", "--steps", "4,8", "--batch", "3"),
        *("-o", folder / "cost.md", "-o", folder / "cost.json", "--picture", folder / "cost.png", "--json"),
    )
    assert torch.get_num_threads() == threads
    return folder, result


def test_command_prints_and_writes_the_same(written):
    folder, result = written
    document = json.loads((folder / "cost.json").read_text())
    assert json.loads(result.stdout) == document
    assert {figure["steps"] for figure in document["figures"]} == {4, 8}
    assert {figure["program"] for figure in document["figures"]} == {"brownian"}
    assert all({"what", "limit", "value", "where", "met"} <= set(goal) for goal in document["goals"])
    assert "| Brownian motion | density | 8 | 3 |" in (folder / "cost.md").read_text()
    assert (folder / "cost.png").stat().st_size > 5000


def test_table_on_the_terminal(command):
    result = command("bench", "--quick", "--programs", "brownian", "--measures", "density", "--steps", "4")
    assert "over hand-written" in result.stdout
    assert "Brownian motion" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--programs", "brownain"), "did you mean 'brownian'"),
        (("--measures", "speed"), "the measure 'speed' is unknown"),
        (("--steps", "ten"), "--steps needs whole numbers"),
        (("--steps", "1"), "at least 3"),
        (("--batch", "0"), "at least 1"),
        (("--quick", "--programs", "chain", "--measures", "density"), "none of these programs has any of these"),
        (("-o", "cost.txt"), "must be .md or .json"),
        (("--picture", "cost.txt"), "ending must be one of"),
        (("-o", "nowhere/cost.md"), "does not exist"),
    ],
)
def test_bad_options(command, words, message):
    assert message in command("bench", *words, status=2).stderr
