"""Quadratic learning rates over every base: copies, schedules by group, dropout; the rest: test_contract_*."""

import copy
import io
import pickle

import pytest
import torch
from quadratic_lr_bases import BASES, cross_entropy, steps
from torch import nn

from latephase import AdamQLR, Fixed, QuadraticLearningRate


def through_a_file(optimizer, model, make):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = make(model)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy", "pickle"])
@pytest.mark.parametrize("base", BASES)
def test_a_copy_continues_bit_for_bit(how, base, toy, flat):
    def make(model, damping=7.0):
        groups = [{"params": [p]} for p in model.parameters()]
        return QuadraticLearningRate(BASES[base](groups), damping=damping, lr_clip=1.0)

    # Loading, torch casts NAdam's product of momenta, which is float32, to the parameters' dtype.
    dtype = torch.float32 if base == "NAdam" else torch.float64
    model, data = toy.network(dtype=dtype), toy.batch(dtype=dtype)
    optimizer = make(model, damping=0.1)
    steps(optimizer, cross_entropy(model, data), 4)
    if how == "deepcopy":
        twin, other = copy.deepcopy((model, optimizer))
    elif how == "pickle":
        twin, other = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        twin = copy.deepcopy(model)
        other = through_a_file(optimizer, twin, make) if how == "file" else make(twin)
        other.load_state_dict(optimizer.state_dict())
    assert other.damping == optimizer.damping not in (7.0, 0.1)
    assert other.base.state is other.state
    assert other.base.param_groups is other.param_groups
    assert not {id(p) for p in model.parameters()} & {id(p) for group in other.param_groups for p in group["params"]}
    assert steps(other, cross_entropy(twin, data), 4) == steps(optimizer, cross_entropy(model, data), 4)
    assert torch.equal(flat(twin), flat(model))


def test_the_moments_of_plain_adam_are_taken_over(toy, flat):
    model, data = toy.network(), toy.batch()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    objective = cross_entropy(model, data)
    for _ in range(3):
        adam.step(objective)
    twin = copy.deepcopy(model)
    loaded = AdamQLR(twin.parameters(), lr_clip=1e-3, damping=Fixed(1e-3))
    loaded.load_state_dict(adam.state_dict())
    assert loaded.damping == 1e-3
    wrapped = QuadraticLearningRate(adam, lr_clip=1e-3, damping=Fixed(1e-3))
    assert steps(loaded, cross_entropy(twin, data), 3) == steps(wrapped, objective, 3)
    assert torch.equal(flat(twin), flat(model))
    assert all(float(wrapped.state[p]["step"]) == 6 for p in model.parameters())


def test_a_scheduler_scales_the_updates(toy, flat):
    model, data = toy.network(), toy.batch()
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": 0.5}]
    optimizer = QuadraticLearningRate(torch.optim.Adam(groups, lr=0.1), damping=Fixed(1e-3), lr_clip=0.1)
    factors = [lambda epoch: 0.5**epoch, lambda epoch: 1.0 if epoch < 2 else 0.0]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    size = sum(p.numel() for p in model[0].parameters())
    for epoch in range(4):
        twin, other = copy.deepcopy((model, optimizer))
        for group in other.param_groups:
            group["lr"] = group["unit_lr"]
        before = flat(model)
        optimizer.step(cross_entropy(model, data))
        other.step(cross_entropy(twin, data))
        moved, full = flat(model) - before, flat(twin) - before
        torch.testing.assert_close(moved[:size], 0.5**epoch * full[:size], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(moved[size:], full[size:] * (epoch < 2), rtol=1e-9, atol=1e-12)
        assert optimizer.report.lr == pytest.approx(0.5**epoch * other.report.lr)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * 0.5**epoch, 0.5 * (epoch < 2)]
        scheduler.step()


def test_dropout_is_the_same_in_every_pass_of_a_step(toy):
    model, data = toy.network(), toy.batch()
    model.insert(2, nn.Dropout(0.5))
    optimizer = AdamQLR(model.parameters(), damping=1e6, lr_clip=1e-9)  # stays where it is, so that losses must agree
    losses = []
    for _ in range(3):
        optimizer.step(cross_entropy(model, data))
        assert optimizer.report.new_loss == pytest.approx(optimizer.report.loss, rel=1e-6)
        losses.append(optimizer.report.loss)
    assert len({round(loss, 6) for loss in losses}) == 3
