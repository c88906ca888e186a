"""What every optimizer of the table is given: objectives, closures, parameters, options; and what it refuses."""

import copy
import functools
import math

import pytest
import torch
from optimizer_table import alike, batches_of, cross_entropy, every_optimizer, take_steps
from torch import nn


@every_optimizer
def test_an_objective_may_be_handed_over_as_the_closure(entry, toy, flat):
    """By name, as torch's wrappers do, and inside the function that a wrapper makes of it."""

    def wrapper(trainer, closure):
        raise AssertionError("the step evaluates the objective itself")

    ends = []
    for call in (
        lambda optimizer, objective: optimizer.step(objective),
        lambda optimizer, objective: optimizer.step(closure=objective),
        lambda optimizer, objective: optimizer.step(objective, closure=objective),
        lambda optimizer, objective: optimizer.step(closure=functools.partial(wrapper, object(), objective)),
    ):
        model = toy.network()
        torch.manual_seed(0)
        call(entry.make(model.parameters()), cross_entropy(model, toy.batch()))
        ends.append(flat(model))
    assert all(torch.equal(end, ends[0]) for end in ends[1:])


def spoiled(data):
    inputs, targets = data
    inputs = inputs.clone()
    inputs[3, 1] = math.nan
    return inputs, targets


REFUSED = {
    "nothing": (lambda model, toy: {}, TypeError, "step needs an Objective, got none"),
    "None": (lambda model, toy: {"objective": None}, TypeError, "step needs an Objective, got none"),
    "a closure": (lambda model, toy: {"objective": lambda: model(toy.batch()[0]).sum()}, TypeError, "got function"),
    "a closure by name": (lambda model, toy: {"closure": lambda: 1.0}, TypeError, "step needs an Objective, got func"),
    "a partial without": (
        lambda model, toy: {"closure": functools.partial(print, lambda: 1.0)}, TypeError, "needs an Objective"),
    "a loss": (lambda model, toy: {"objective": model(toy.batch()[0]).sum()}, TypeError, "got Tensor"),
    "two": (
        lambda model, toy: {"objective": cross_entropy(model, toy.batch()), "closure": lambda: 1.0}, TypeError,
        "an objective and a closure"),
    "another model's": (
        lambda model, toy: {"objective": cross_entropy(toy.network(), toy.batch())}, ValueError,
        r"parameter 0 \(shape \(4, 3\)\).* not a parameter"),
    "not a number": (
        lambda model, toy: {"objective": cross_entropy(model, spoiled(toy.batch()))}, ValueError, "clean the data"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("begun", [False, True], ids=["first", "later"])
@every_optimizer
def test_what_is_refused_changes_nothing(entry, begun, case, toy, unchanged):
    model = toy.network()
    optimizer = entry.make(model.parameters())
    if begun:
        take_steps(model, optimizer, batches_of(toy), range(2))
    arguments, error, message = REFUSED[case]
    given, report = arguments(model, toy), optimizer.report
    with unchanged(model, optimizer), pytest.raises(error, match=message):
        optimizer.step(**given)
    assert optimizer.report is report
    optimizer.step(cross_entropy(model, toy.batch()))
    assert optimizer.report.accepted


@every_optimizer
def test_inference_mode_is_told(entry, toy, unchanged):
    model = toy.network()
    optimizer = entry.make(model.parameters())
    objective = cross_entropy(model, toy.batch())
    with unchanged(model, optimizer), torch.inference_mode(), pytest.raises(RuntimeError, match="inference mode"):
        optimizer.step(objective)
    with torch.no_grad():
        optimizer.step(objective)
    assert optimizer.report.accepted


@every_optimizer
def test_parameters_are_those_that_torch_takes(entry, toy):
    model = toy.network()
    with pytest.raises(ValueError, match="empty parameter list"):
        entry.make([])
    with pytest.raises(TypeError, match=r"iterable of Tensors|should be an iterable"):
        entry.make(model[0].weight)
    with pytest.raises(ValueError, match="non-leaf"):
        entry.make([model[0].weight * 2])
    with pytest.raises(ValueError, match="more than one parameter group"):
        entry.make([{"params": [model[0].weight]}, {"params": [model[0].weight]}])
    with pytest.raises(TypeError, match="dampening_of_all"):
        entry.make(model.parameters(), dampening_of_all=1.0)


@every_optimizer
def test_empty_groups_do_no_harm(entry, toy):
    model = toy.network()
    optimizer = entry.make([{"params": []}, {"params": list(model.parameters())}, {"params": []}])
    plain = copy.deepcopy(model)
    other = entry.make(plain.parameters())
    found, expected = (take_steps(m, o, batches_of(toy), range(3)) for m, o in ((model, optimizer), (plain, other)))
    assert alike(found, expected)
    assert (optimizer.damping, optimizer.report.accepted) == (other.damping, True)


@every_optimizer
def test_a_foreign_parameter_is_named(entry, toy, unchanged):
    model, other = toy.network(), nn.Linear(5, 2).double()
    optimizer = entry.make([*model.parameters(), other.weight])
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"parameter 4 \(shape \(2, 5\)\).* not a param"):
        optimizer.step(cross_entropy(model, toy.batch()))


@every_optimizer
def test_options_are_checked_when_they_are_given_and_when_they_are_set(entry, toy, unchanged):
    model, data = toy.network(), toy.batch()
    name, other, message = entry.option
    for wrong in (-1.0, math.nan, math.inf, "1", None):
        with pytest.raises(ValueError, match=message):
            entry.make(model.parameters(), **{name: wrong})
    with pytest.raises(ValueError, match=f"{name} must be the same in all param groups"):
        entry.make([{"params": [model[0].weight], name: other}, {"params": [model[0].bias]}])
    optimizer = entry.make(model.parameters())
    good = optimizer.param_groups[0][name]
    optimizer.param_groups[0][name] = -1.0
    with unchanged(model, optimizer), pytest.raises(ValueError, match=message):
        optimizer.step(cross_entropy(model, data))
    optimizer.param_groups[0][name] = good
    optimizer.step(cross_entropy(model, data))
    assert optimizer.report.accepted


@every_optimizer
def test_its_text_names_it_and_its_options(entry, toy):
    model = toy.network()
    optimizer = entry.make(model.parameters())
    before = repr(optimizer)
    assert before.startswith(type(optimizer).__name__ + " (")
    for name in optimizer.param_groups[0].keys() - {"params"}:
        assert f"    {name}: " in before
    take_steps(model, optimizer, batches_of(toy), range(2))
    assert repr(optimizer).count("Parameter Group") == 1


@every_optimizer
def test_a_model_in_place_of_its_parameters_is_named(entry, toy):
    with pytest.raises(TypeError, match=r"takes parameters, got \w+: model.parameters\(\)|can only optimize Tensors"):
        entry.make(toy.network())
