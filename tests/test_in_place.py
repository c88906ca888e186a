"""Work in place on inputs or targets: every pass of a step sees the data as they were given."""

import copy

import pytest
import torch
from torch import nn

from latephase import CG, KFAC, SGDQLR, AdamQLR, HessianFree, Objective, check
from latephase.curvature import linearize

X, Y = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.ones(8, 1)


def on_inputs():
    return nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Linear(2, 1)), nn.MSELoss()


def on_targets():
    return nn.Linear(2, 1), lambda outputs, targets: (outputs - targets.mul_(0.5)).square().mean()


def through_data():
    return nn.Linear(2, 1), lambda outputs, targets: (outputs - targets.data.mul_(0.5)).square().mean()


@pytest.mark.parametrize("build", [on_inputs, on_targets, through_data])
def test_passes_see_the_data_as_given(build):
    torch.manual_seed(0)
    model, loss = build()
    x, y = X.clone(), Y.clone()
    expected = loss(model(x.clone()), y.clone()).detach()
    objective = Objective(model, loss, (x, y))
    for _ in range(3):
        torch.testing.assert_close(objective.value(), expected)
        torch.testing.assert_close(objective().detach(), expected)
        torch.testing.assert_close(linearize(objective).loss, expected)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize(
    ("make", "build"),
    [(make, build) for make in (HessianFree, AdamQLR, SGDQLR) for build in (on_inputs, on_targets)]
    + [(KFAC, on_inputs)],
)
def test_a_step_lowers_the_loss_of_the_data_as_given(make, build):
    torch.manual_seed(0)
    model, loss = build()
    optimizer, x, y = make(model.parameters()), X.clone(), Y.clone()
    for _ in range(4):
        before = float(loss(model(X.clone()), Y.clone()).detach())
        optimizer.step(Objective(model, loss, (x, y)))
        assert optimizer.report.loss == pytest.approx(before, rel=1e-5)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_check_leaves_the_data():
    torch.manual_seed(0)
    model, loss = on_inputs()
    x, y = X.clone(), Y.clone()
    before = copy.deepcopy(model.state_dict())
    found = check(Objective(model, loss, (x, y)))
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "clock" not in str(found)


def working_loss(outputs, targets):
    targets.mul_(2)
    return outputs.sub(targets).square().mean()


working_loss.reduction = "mean"


@pytest.mark.parametrize("optimizer", ["kfac", "ggn_diagonal", "chunks"])
def test_what_looks_at_the_loss_alone_leaves_the_targets_alone(optimizer):
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(3, 2), torch.randn(8, 3), torch.randn(8, 2)
    given = targets.clone()
    if optimizer == "chunks":
        whole = Objective(model, working_loss, (inputs, targets)).value()
        in_chunks = Objective(model, working_loss, (inputs, targets), microbatch_size=3)
        torch.testing.assert_close(in_chunks.value(), whole)
    elif optimizer == "kfac":
        KFAC(model.parameters()).step(Objective(model, working_loss, (inputs, targets)))
    else:
        HessianFree(model.parameters(), solver=CG(preconditioner=optimizer)).step(
            Objective(model, working_loss, (inputs, targets))
        )
    assert torch.equal(targets, given)
