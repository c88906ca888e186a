"""Every optimizer of the table in a program of torch: schedules, groups, hooks, gradients, buffers."""

import copy
import json

import pytest
import torch
from optimizer_table import alike, batches_of, cross_entropy, every_optimizer, take_steps
from torch import nn
from torch.optim import lr_scheduler

from latephase import JSONLinesWriter

SCHEDULES = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 2 else 0.1),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 4),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=5, cycle_momentum=False
    ),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)],
        milestones=[2],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@every_optimizer
def test_a_schedule_scales_the_updates(entry, name, toy, flat):
    """An update at some `lr` is that at the first one, from the same state, times the schedule's factor."""
    model, data = toy.network(), toy.batch()
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
    optimizer = entry.make(groups, **entry.proportional)
    first, factors = optimizer.param_groups[0]["lr"], set()
    schedule = SCHEDULES[name](optimizer)
    for epoch in range(4):
        twin, other = copy.deepcopy((model, optimizer))
        for group in other.param_groups:
            group["lr"] = first
        factor, before = optimizer.param_groups[0]["lr"] / first, flat(model)
        for each, its in ((model, optimizer), (twin, other)):
            torch.manual_seed(epoch)
            its.step(cross_entropy(each, data))
        torch.testing.assert_close(flat(model) - before, factor * (flat(twin) - before), rtol=1e-9, atol=1e-12)
        assert optimizer.report.lr == pytest.approx(factor * other.report.lr)
        factors.add(round(factor, 12))
        schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    assert len(factors) > 1


@every_optimizer
def test_groups_have_rates_of_their_own(entry, toy, flat):
    model, data = toy.network(), toy.batch()
    twin = copy.deepcopy(model)
    size = sum(p.numel() for p in model[0].parameters())
    steps = []
    for each, factor in ((model, 1.0), (twin, 0.0)):
        groups = [{"params": list(each[0].parameters())}, {"params": list(each[2].parameters())}]
        optimizer = entry.make(groups, **entry.proportional)
        optimizer.param_groups[1]["lr"] *= factor
        before = flat(each)
        torch.manual_seed(0)
        optimizer.step(cross_entropy(each, data))
        steps.append(flat(each) - before)
    torch.testing.assert_close(steps[1][:size], steps[0][:size], rtol=1e-9, atol=1e-12)
    assert not steps[1][size:].any()
    assert steps[0][size:].any()


@every_optimizer
def test_a_schedule_that_cycles_the_momentum(entry, toy):
    model, data = toy.network(), toy.batch()
    optimizer = entry.make(model.parameters())

    def schedule():
        return lr_scheduler.OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=4)

    if entry.momentum == "none":
        with pytest.raises(ValueError, match="must support momentum"):
            schedule()
        return
    cycle = schedule()
    if entry.momentum == "refused":
        with pytest.raises(ValueError, match="cycle_momentum=False"):
            optimizer.step(cross_entropy(model, data))
        return
    seen = []
    for _ in range(4):
        optimizer.step(cross_entropy(model, data))
        assert optimizer.report.accepted
        group = optimizer.param_groups[0]
        seen.append(group["momentum"] if "momentum" in group else group["betas"][0])
        cycle.step()
    assert len(set(seen)) > 1


@every_optimizer
def test_a_group_may_be_added_midway(entry, toy):
    model, data = toy.network(), toy.batch()
    optimizer = entry.begin(model[0].parameters(), damping=0.1)
    torch.manual_seed(0)
    losses = [float(optimizer.step(cross_entropy(model, data))) for _ in range(3)]
    head = copy.deepcopy(model[2].state_dict())
    optimizer.add_param_group({"params": list(model[2].parameters())})
    first, second = (
        {name: kept for name, kept in group.items() if name != "params"} for group in optimizer.param_groups
    )
    assert first == second
    losses += [float(optimizer.step(cross_entropy(model, data))) for _ in range(10)]
    assert losses[-1] < losses[3] < losses[0]
    assert all(not torch.equal(head[name], p) for name, p in model[2].named_parameters())
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": list(model[2].parameters())})
    optimizer.step(cross_entropy(model, data))
    assert len(optimizer.param_groups) == 2


@every_optimizer
def test_hooks_and_writers_see_every_step(entry, toy, tmp_path):
    model, calls = toy.network(), []
    optimizer = entry.make(model.parameters())
    removed = optimizer.register_step_pre_hook(lambda *arguments: calls.append("removed"))
    removed.remove()
    optimizer.register_step_pre_hook(lambda its, args, kwargs: calls.append(("before", its is optimizer, len(args))))
    optimizer.register_step_post_hook(lambda its, args, kwargs: calls.append(("after", its.report is not None)))
    with JSONLinesWriter(tmp_path / "steps.jsonl") as writer:
        optimizer.register_step_post_hook(writer)
        take_steps(model, optimizer, batches_of(toy), range(2))
    assert calls == [("before", True, 2), ("after", True)] * 2
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["accepted"] for row in rows] == [True, True]


@every_optimizer
def test_grad_is_the_users(entry, toy):
    """A step neither reads nor writes it, and `zero_grad` empties it as torch's does."""
    model, data = toy.network(), toy.batch()
    optimizer = entry.make(model.parameters())
    cross_entropy(model, data)()
    grads = [p.grad for p in model.parameters()]
    copies = [grad.clone() for grad in grads if grad is not None]
    versions = [p._version for p in model.parameters()]
    optimizer.step(cross_entropy(model, data))
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), copies, strict=True))
    assert [p._version > version for p, version in zip(model.parameters(), versions, strict=True)] == [True] * 4
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step(cross_entropy(model, data))
    assert all(p.grad is None for p in model.parameters())


@every_optimizer
def test_the_loss_before_the_step_is_returned(entry, toy):
    model = toy.network()
    optimizer = entry.make(model.parameters())
    for seed in range(3):
        objective = cross_entropy(model, toy.batch(seed=seed))
        expected = objective.value()
        loss = optimizer.step(objective)
        torch.testing.assert_close(loss, expected)
        assert (loss.shape, loss.requires_grad) == ((), False)
        assert optimizer.report.loss == float(loss)


@every_optimizer
def test_frozen_parameters_and_those_of_others_do_not_move(entry, toy):
    model, data = toy.network(), toy.batch()
    model[2].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = entry.make([{"params": []}, {"params": [model[0].weight, model[2].bias]}])

    def moved():
        return {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}

    optimizer.step(cross_entropy(model, data))
    assert optimizer.report.accepted
    assert moved() == {"0.weight"}
    assert model[2].bias not in optimizer.state
    model[2].bias.requires_grad_(True)
    optimizer.step(cross_entropy(model, data))
    assert moved() == {"0.weight", "2.bias"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        optimizer.step(cross_entropy(model, data))


@every_optimizer
def test_batch_norm_moves_once_as_in_one_forward_pass(entry, toy):
    model, data = toy.network(), toy.batch()
    model.append(nn.BatchNorm1d(3).double())
    optimizer = entry.make(model.parameters())
    if entry.rows:
        with pytest.raises(ValueError, match="batch norm '3'"):
            optimizer.step(cross_entropy(model, data))
        return
    for _ in range(2):
        twin = copy.deepcopy(model)
        twin(data[0])
        optimizer.step(cross_entropy(model, data))
        assert optimizer.report.accepted
        for buffer, expected in zip(model.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-12)


@every_optimizer
def test_named_parameters_are_parameters(entry, toy):
    runs = []
    for named in (False, True):
        model = toy.network()
        optimizer = entry.make(model.named_parameters() if named else model.parameters())
        runs.append(take_steps(model, optimizer, batches_of(toy), range(3)))
    assert alike(*runs)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    optimizer.load_state_dict(optimizer.state_dict())


@every_optimizer
def test_the_ways_to_step_over_tensors_are_no_option_or_make_no_difference(entry, toy):
    """`foreach`, where a base has it, changes the order of nothing; elsewhere it is refused as any unknown option."""
    model = toy.network()
    optimizer = entry.make(model.parameters())
    if "foreach" not in optimizer.param_groups[0]:
        with pytest.raises(TypeError, match="foreach"):
            entry.make(model.parameters(), foreach=True)
        return
    runs = []
    for foreach in (None, False, True):
        model = toy.network()
        optimizer = entry.make(model.parameters())
        optimizer.param_groups[0]["foreach"] = foreach
        runs.append(take_steps(model, optimizer, batches_of(toy), range(3)))
    for run in runs[1:]:
        for (_, found, _), (_, expected, _) in zip(run, runs[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
