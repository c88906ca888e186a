"""Modules that a loss holds in training mode, a discriminator say, move once per accepted step, and else never."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flat_parts import parts
from latephase import KFAC, SGDQLR, AdamQLR, HessianFree, Objective, check

RANDOM = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 3, generator=RANDOM), torch.randn(16, 3, generator=RANDOM)


def discriminator():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def realism(judge, outputs, targets):
    return F.softplus(-judge(outputs)).mean() + F.mse_loss(outputs, targets)


class Module(nn.Module):
    def __init__(self, judge):
        super().__init__()
        self.judge = judge

    def forward(self, outputs, targets):
        return realism(self.judge, outputs, targets)


class Holder:
    def __init__(self, judge):
        self.kept = {"judge": [judge]}

    def loss(self, outputs, targets):
        return realism(self.kept["judge"][0], outputs, targets)


GLOBAL = discriminator()


def by_global(outputs, targets):
    return realism(GLOBAL, outputs, targets)


WAYS = {
    "module": Module,
    "closure": lambda judge: lambda outputs, targets: realism(judge, outputs, targets),
    "partial": lambda judge: functools.partial(realism, judge),
    "method": lambda judge: Holder(judge).loss,
}


def built(way):
    judge = discriminator()
    if way == "global":
        GLOBAL.load_state_dict(judge.state_dict())
        return GLOBAL, by_global
    return judge, WAYS[way](judge)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}], ids=["plain", "bfloat16"])
@pytest.mark.parametrize("way", [*WAYS, "global"])
def test_statistics_move_as_in_one_forward_pass(way, options):
    judge, loss = built(way)
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    optimizer = HessianFree(model.parameters(), **parts(**options))
    for _ in range(4):
        alone = copy.deepcopy(judge)
        alone(model(X))
        before = copy.deepcopy(judge.state_dict())
        objective = Objective(model, loss, (X, Y))
        objective.value()
        assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())
        optimizer.step(objective)
        expected = alone.state_dict() if optimizer.report.accepted else before
        for name, value in judge.state_dict().items():
            torch.testing.assert_close(value, expected[name])
    assert optimizer.report.accepted


@pytest.mark.parametrize("make", [HessianFree, AdamQLR, SGDQLR])
def test_a_step_that_is_rejected_moves_nothing(make):
    judge = discriminator()
    model, broken = nn.Linear(3, 3), torch.full_like(Y, 1e38)
    before = copy.deepcopy(judge.state_dict())
    optimizer = make(model.parameters())
    optimizer.step(Objective(model, lambda o, t: judge(o).mean() + (o - t).square().mean(), (X, broken)))
    assert not optimizer.report.accepted
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())


@pytest.mark.parametrize("make", [AdamQLR, SGDQLR])
def test_each_optimizer_moves_them_once(make):
    judge, loss = built("closure")
    model = nn.Linear(3, 3)
    optimizer = make(model.parameters())
    for _ in range(3):
        count = int(judge[1].num_batches_tracked)
        optimizer.step(Objective(model, loss, (X, Y)))
        assert int(judge[1].num_batches_tracked) - count == int(optimizer.report.accepted)


def test_kfac_moves_them_once():
    judge = discriminator()
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(model, inputs):
        judge(inputs)
        return model(inputs)

    optimizer = KFAC(model.parameters())
    for _ in range(3):
        count = int(judge[1].num_batches_tracked)
        optimizer.step(Objective(model, nn.MSELoss(), (X, Y), forward=forward))
        assert int(judge[1].num_batches_tracked) - count == int(optimizer.report.accepted)


def test_an_ordinary_closure_moves_them_as_torch_does_and_a_check_not_at_all():
    judge, loss = built("closure")
    model = nn.Linear(3, 3)
    check(model, loss, (X, Y))
    assert int(judge[1].num_batches_tracked) == 0
    torch.optim.SGD(model.parameters(), lr=0.1).step(Objective(model, loss, (X, Y)))
    assert int(judge[1].num_batches_tracked) == 1


def test_a_judge_in_eval_mode_and_the_model_itself_are_left_alone():
    judge, loss = built("closure")
    judge.eval()
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    objective = Objective(model, lambda o, t: loss(o, t) + 1e-3 * model[0].weight.square().sum(), (X, Y))
    assert set(objective.buffers()) == {name for name, _ in model.named_buffers()}
    HessianFree(model.parameters()).step(objective)
    assert int(judge[1].num_batches_tracked) == 0
    assert int(model[1].num_batches_tracked) == 1
