"""The front end on the corpus: what it reads, and its agreement with the reference front end."""

from __future__ import annotations

import pyro
import pytest
import torch

import emfc
from emfc.program.trace import trace
from tests.programs.accepted import PROGRAMS
from tests.programs.interpret import canonical, site_elements, sliced_parameters
from tests.programs.oracle import element_sparsity, jacobian_parents, oracle_parameters, oracle_parents
from tests.programs.refused import REFUSED
from tests.programs.watch import draw, program_parameters, run

TRACEABLE = [name for name, case in PROGRAMS.items() if case.make_fx]


def test_corpus_is_large_and_varied():
    assert len(PROGRAMS) >= 25
    assert len(REFUSED) >= 12


@pytest.fixture(autouse=True)
def _float64(_clean_state):
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("name", PROGRAMS)
def test_declared_parents_are_the_true_ones(name):
    case = PROGRAMS[name]
    assert jacobian_parents(*case.build()) == {site: set(parents) for site, parents in case.parents.items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_graph(name):
    case = PROGRAMS[name]
    model, args, kwargs = case.build()
    graph = emfc.parse(model, *args, **kwargs)
    sites = run(model, args, kwargs).sites
    assert list(graph.sites) == list(sites)
    for site, record in sites.items():
        held = graph.sites[site]
        assert held.name == site
        assert tuple(held.shape) == tuple(record.value.shape)
        assert held.observed == record.observed
        assert held.event_dim == record.fn.event_dim
        assert held.latent_discrete == (site in case.summed)
        assert set(held.parents) == case.parents[site]
        assert list(held.parents) == [other for other in sites if other in case.parents[site]]
    assert graph.dim == sum(sites[site].value.numel() for site in case.example_sites)
    parameters = program_parameters(model, args, kwargs)
    assert {key: tuple(held.shape) for key, held in graph.parameters.items()} == {
        key: tuple(value.shape) for key, value in parameters.items()
    }
    networkx = graph.to_networkx()
    assert set(networkx.nodes) == set(sites)
    assert set(networkx.edges) == {(parent, site) for site, parents in case.parents.items() for parent in parents}


@pytest.mark.parametrize("name", TRACEABLE)
def test_edges_are_among_those_of_the_oracle(name):
    model, args, kwargs = PROGRAMS[name].build()
    oracle = oracle_parents(model, args, kwargs)
    for site, held in emfc.parse(model, *args, **kwargs).sites.items():
        assert set(held.parents) <= oracle[site]


@pytest.mark.parametrize("name", PROGRAMS)
def test_edges_are_exact_per_element(name):
    model, args, kwargs = PROGRAMS[name].build()
    found = site_elements(trace(model, args, kwargs))
    for site, blocks in element_sparsity(model, args, kwargs).items():
        for parent, block in blocks.items():
            if parent in found[site]:
                expected = set(block.any(0).nonzero().reshape(-1).tolist())
                assert found[site][parent] == expected, (site, parent)


@pytest.mark.parametrize("name", TRACEABLE)
def test_parameters_are_those_of_the_oracle(name):
    case = PROGRAMS[name]
    model, args, kwargs = case.build()
    program = trace(model, args, kwargs)
    parameters = program_parameters(model, args, kwargs)
    drawn = draw(model, args, kwargs, number=2, seed=21)
    for row in range(2):
        values = {site: rows[row] for site, rows in drawn.items()}
        _agree(oracle_parameters(model, args, kwargs, values), sliced_parameters(program, values, parameters))


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in TRACEABLE])
def test_parameters_are_those_of_a_run(name):
    model, args, kwargs = PROGRAMS[name].build()
    program = trace(model, args, kwargs)
    parameters = program_parameters(model, args, kwargs)
    drawn = draw(model, args, kwargs, number=2, seed=22)
    for row in range(2):
        values = {site: rows[row] for site, rows in drawn.items()}
        reference = {site: record.parameters for site, record in run(model, args, kwargs, values).sites.items()}
        _agree(reference, sliced_parameters(program, values, parameters))


def _agree(reference, sliced):
    assert reference.keys() == sliced.keys()
    for site, held in sliced.items():
        for path, actual in held.items():
            expected = canonical(path, reference[site]).detach().to(actual.dtype)
            actual, expected = torch.broadcast_tensors(actual.detach(), expected)
            if path.endswith("logits") and f"{path[: -len('logits')]}logits" not in reference[site]:
                actual, expected = _probabilities(actual, expected)
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda m: f"{site}.{path}: {m}")  # noqa: B023


def _probabilities(logits, log_probs):
    """Logits of a site that was given probabilities: categorical ones up to a constant, binary ones as log odds."""
    softmax = logits.softmax(-1) if logits.dim() else logits
    if logits.dim() and torch.allclose(softmax, log_probs.softmax(-1)):
        return softmax, log_probs.softmax(-1)
    return logits.sigmoid(), log_probs.exp()


@pytest.mark.parametrize("name", PROGRAMS)
def test_parsing_leaves_nothing_behind(name):
    model, args, kwargs = PROGRAMS[name].build()
    pyro.param("mine", torch.tensor(1.0))
    state = torch.get_rng_state()
    weights = {key: value.clone() for key, value in model.state_dict().items()} if _is_module(model) else {}
    first = emfc.parse(model, *args, **kwargs).to_json()
    second = emfc.parse(model, *args, **kwargs).to_json()
    assert first == second
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in weights.items():
        assert torch.equal(model.state_dict()[key], value)


def _is_module(model):
    return isinstance(model, torch.nn.Module)
