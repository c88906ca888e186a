"""State of every optimizer of the table: copies, files, pickles, hooks, states of an earlier release."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from optimizer_table import alike, batches_of, cross_entropy, every_optimizer, take_steps, those_with
from step_cases import model_of
from step_cases import take_steps as steps_of_case
from torch import nn

from latephase import SGDQLR, HessianFree

SAVED = torch.load(Path(__file__).parent / "fixtures" / "saved_states.pt", weights_only=True)


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copied(how, entry, model, optimizer):
    """The model and the optimizer once more, by one of the ways in which programs copy them."""
    if how == "deepcopy":
        return copy.deepcopy((model, optimizer))
    if how == "pickle":
        return pickle.loads(pickle.dumps((model, optimizer)))
    twin = copy.deepcopy(model)
    other = entry.begin(twin.parameters(), damping=7.0)
    state = optimizer.state_dict()
    other.load_state_dict(state if how == "state_dict" else through_a_file(state))
    return twin, other


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@every_optimizer
def test_a_copy_continues_bit_for_bit(entry, dtype, how, toy):
    model, batches = toy.network(dtype=dtype), batches_of(toy, dtype)
    optimizer = entry.begin(model.parameters(), damping=0.1)
    take_steps(model, optimizer, batches, range(5))
    twin, other = copied(how, entry, model, optimizer)
    assert other.damping == optimizer.damping != (0.1 if entry.damped else None)
    assert not {id(p) for p in model.parameters()} & {id(p) for group in other.param_groups for p in group["params"]}
    later = range(5, 9)
    assert alike(take_steps(model, optimizer, batches, later), take_steps(twin, other, batches, later))


@every_optimizer
def test_a_run_that_is_resumed_is_the_uninterrupted_one(entry, toy):
    """With its schedule, in a process that has only what was saved."""

    def begun():
        model = toy.network()
        optimizer = entry.make([{"params": [p]} for p in model.parameters()])
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def train(model, optimizer, schedule, steps):
        found = []
        for step in steps:
            found += take_steps(model, optimizer, batches_of(toy), range(step, step + 1))
            schedule.step()
        return found

    whole = train(*begun(), range(8))
    first = begun()
    train(*first, range(5))
    parts = through_a_file([each.state_dict() for each in first])
    second = begun()
    for each, saved in zip(second, parts, strict=True):
        each.load_state_dict(saved)
    assert alike(train(*second, range(5, 8)), whole[5:])


@pytest.mark.parametrize("entry", those_with(lambda entry: entry.saved is not None))
def test_a_state_of_an_earlier_release_continues(entry):
    """As it went on then; preconditioners and other settings: test_saved_states."""
    saved = SAVED[entry.saved]
    model = model_of(entry.saved)
    model.load_state_dict(saved["parameters"])
    optimizer = entry.make(model.parameters())
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.damping == saved["damping"]
    torch.manual_seed(1)
    found = torch.stack(steps_of_case(entry.saved, model, optimizer, range(3, 6)))
    # Within one make of processor to the last bit; six digits where another orders its sums otherwise.
    torch.testing.assert_close(found, saved["continued"], rtol=1e-6, atol=1e-9)


@every_optimizer
def test_its_own_state_changes_nothing(entry, toy, unchanged):
    model = toy.network()
    optimizer = entry.make(model.parameters())
    take_steps(model, optimizer, batches_of(toy), range(2))
    optimizer.load_state_dict(optimizer.state_dict())  # after which torch's own options are there as well
    with unchanged(model, optimizer, generator=True):
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.state_dict()
        copy.deepcopy(optimizer)
        repr(optimizer)


@every_optimizer
def test_a_state_of_another_form_is_refused_and_loads_nothing(entry, toy, unchanged):
    model = toy.network()
    optimizer = entry.make(model.parameters())
    take_steps(model, optimizer, batches_of(toy), range(2))
    half = entry.make(model[0].parameters())
    another = (SGDQLR if isinstance(optimizer, HessianFree) else HessianFree)(model.parameters())
    for saved, message in (
        (half.state_dict(), "has 2 parameters"),
        (another.state_dict(), "is that of"),
        (optimizer.state_dict() | {"version": 1000}, "has version 1000"),
        ({}, "has no 'state'"),
    ):
        with unchanged(model, optimizer), pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved)


@every_optimizer
def test_hooks_of_state_dicts(entry, toy):
    model, calls = toy.network(), []
    optimizer = entry.make(model.parameters())
    take_steps(model, optimizer, batches_of(toy), range(2))
    optimizer.register_state_dict_pre_hook(lambda optimizer: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda optimizer, saved: {**saved, "note": "kept"})
    saved = optimizer.state_dict()
    assert saved["note"] == "kept"
    other = entry.make(toy.network().parameters())

    def halved(optimizer, saved):
        calls.append("before loading")
        return {**saved, "param_groups": [{**group, "lr": 0.5 * group["lr"]} for group in saved["param_groups"]]}

    other.register_load_state_dict_pre_hook(halved)
    other.register_load_state_dict_post_hook(lambda optimizer: calls.append("after loading"))
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.5 * optimizer.param_groups[0]["lr"]
    assert calls == ["before saving", "before loading", "after loading"]


@every_optimizer
def test_reading_makes_no_state(entry, toy):
    optimizer = entry.make(toy.network().parameters())
    assert optimizer.damping >= 0
    assert optimizer.report is None
    optimizer.state_dict()
    assert not optimizer.state
    if not entry.damped:
        with pytest.raises(ValueError, match="has no damping"):
            optimizer.damping = 0.25
        return
    optimizer.damping = 0.25
    assert optimizer.damping == 0.25
    with pytest.raises(ValueError, match="damping must be a finite number"):
        optimizer.damping = -1.0
    assert optimizer.damping == 0.25


@pytest.mark.filterwarnings("ignore:the damping has arrived")  # at the lower bound: the six rows are separable
@every_optimizer
def test_a_long_run_does_not_grow_the_state(entry, toy):
    model, sizes = nn.Linear(3, 3).double(), []
    optimizer = entry.begin(model.parameters(), damping=0.1)
    objective = cross_entropy(model, toy.batch(6))
    for step in range(60):
        optimizer.step(objective)
        if step in (9, 59):
            sizes.append((len(pickle.dumps(optimizer)), len(optimizer.state)))
    assert sizes[1][0] <= sizes[0][0] + 64
    assert sizes[1][1] == sizes[0][1] <= 2
