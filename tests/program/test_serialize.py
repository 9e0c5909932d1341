"""Stored programs: the same numbers back, and nothing that was tampered with."""

from __future__ import annotations

import copy
import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import emfc
from emfc import UserError
from emfc.layers import StructuredLayer
from emfc.program.constraint import constraint_from_data, constraint_to_data
from emfc.program.serialize import program_from_document, program_to_document


def _model():
    scale = pyro.param("scale", torch.tensor([0.5, 2.0]), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    pyro.sample("b", dist.Normal(torch.stack([a[0], a[1].exp()])[z].clamp(max=float("inf")), scale[0]))
    pyro.sample("c", dist.Laplace(a.sum(-1), scale[1]))


@pytest.fixture
def stored():
    layer = emfc.compile(_model)
    document, tensors = program_to_document(layer.program)
    return layer, json.loads(json.dumps(document)), tensors


def test_a_stored_program_computes_the_same(stored):
    layer, document, tensors = stored
    again = StructuredLayer(program_from_document(document, tensors))
    noise = torch.randn(5, layer.dim)
    assert torch.equal(layer()(noise), again()(noise))
    assert list(again.values()) == ["scale"]


def _set(path, value):
    def change(document, tensors):
        target = document
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


def _tensor(name, value):
    def change(document, tensors):
        tensors[name] = value(tensors[name])

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(("version",), 99), "newer version"),
        (_set(("instructions", 0, "operation"), "set_.source_Tensor"), "not allowed"),
        (_set(("instructions", 0, "operation"), "system.default"), "not allowed"),
        (_set(("sites", 0, "specification", "family"), "__class__"), "does not know"),
        (_set(("sites", 0, "start"), 3), "out of place"),
        (_set(("instructions", 0, "outputs", 0, "start"), 0), "out of place"),
        (_set(("instructions", 0, "operands", 0, "offset"), 10**9), "outside"),
        (_set(("parameters", 0, "constraint"), {"name": "eval"}), "unknown constraint"),
        (_set(("dtype",), "complex64"), "unknown dtype"),
        (_set(("unheard",), 1), "damaged"),
        (_set(("sites",), "none"), "damaged"),
        (_tensor("addresses", lambda held: held + 10**6), "does not exist yet"),
        (_tensor("constants", lambda held: held.float()), "wrong type"),
        (_tensor("prototype", lambda held: held[:1]), "wrong size"),
        (_tensor("initial.scale", lambda held: held[:1]), "starting value"),
    ],
)
def test_a_changed_program_is_refused(stored, change, words):
    _, document, tensors = stored
    document, tensors = copy.deepcopy(document), dict(tensors)
    change(document, tensors)
    with pytest.raises(UserError, match=words):
        program_from_document(document, tensors)


@pytest.mark.parametrize(
    "constraint",
    [
        constraints.real,
        constraints.positive,
        constraints.unit_interval,
        constraints.simplex,
        constraints.lower_cholesky,
        constraints.interval(-1.0, 2.0),
        constraints.greater_than(3.0),
        constraints.independent(constraints.positive, 1),
        constraints.real_vector,
    ],
    ids=str,
)
def test_constraints_survive(constraint):
    data = json.loads(json.dumps(constraint_to_data(constraint, "p")))
    value = torch.tensor([[0.5, 0.5], [3.5, 0.5]])
    found, expected = constraint_from_data(data), constraint
    assert torch.equal(found.check(value), expected.check(value))


def test_a_constraint_with_tensor_bounds_is_refused():
    with pytest.raises(emfc.CompileError, match="not single numbers"):
        constraint_to_data(constraints.greater_than(torch.zeros(2)), "p")


def test_programs_stored_before_noise_had_a_shape_of_its_own(stored):
    layer, document, tensors = stored
    for site in document["sites"]:
        del site["noise_shape"]
    again = StructuredLayer(program_from_document(document, tensors))
    noise = torch.randn(5, layer.noise_dim)
    assert torch.equal(layer()(noise), again()(noise))


@pytest.mark.parametrize("shape", [[3], [], [-2], [2, 1]], ids=str)
def test_a_changed_noise_shape_is_refused(stored, shape):
    _, document, tensors = stored
    document["sites"][0]["noise_shape"] = shape
    with pytest.raises(emfc.CompileError, match="noise of another shape"):
        StructuredLayer(program_from_document(document, tensors))


@pytest.mark.parametrize("arguments", [{"unknown": 1}, {"validate_args": True}, {"loc": 3.0}], ids=str)
def test_changed_arguments_of_a_family_are_refused(stored, arguments):
    _, document, tensors = stored
    document["sites"][0]["specification"]["options"]["arguments"] = arguments
    with pytest.raises(UserError, match="arguments"):
        program_from_document(document, tensors)
