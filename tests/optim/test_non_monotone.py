"""Damping that follows the change from the highest of the last losses: limit case, dense oracle, kinks, states."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from latephase import Direct, GaussNewton, HessianFree, LevenbergMarquardt, NonMonotone, Objective, StepStatus

PLAIN = Direct(acceleration=0.0, factorization="cholesky", side="primal")


def kinked(seed=0, rows=60, activation=nn.ReLU):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 8), activation(), nn.Linear(8, 1)).double()
    x = torch.rand(rows, 2).double()
    return model, Objective(model, nn.MSELoss(), (x, torch.sin(6 * x).prod(1, keepdim=True)))


def vector_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_memory_of_one_is_levenberg_and_marquardts_rule(activation):
    ends = []
    for rule in (NonMonotone(memory=1), LevenbergMarquardt(range=(1e-24, 1e12))):
        model, objective = kinked(activation=activation)
        optimizer = GaussNewton(model.parameters(), damping=rule)
        for _ in range(60):
            optimizer.step(objective)
        ends.append((vector_of(model), optimizer.damping, optimizer.report.new_loss))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


def test_the_steps_are_those_of_the_rule_in_dense_matrices():
    """Rows and losses by autograd, equations by NumPy, and the rule written out."""
    model, objective = kinked()
    optimizer = GaussNewton(model.parameters(), solver=PLAIN, damping=NonMonotone(0.1, memory=4))
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    (x, y), sizes = (objective.chunks[0].inputs, objective.chunks[0].targets), [shape.numel() for shape in shapes]

    def residuals(theta):
        parts = [part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        outputs = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), x)
        return (outputs - y).reshape(-1) * (2 / len(x)) ** 0.5

    theta, damping, losses, rose = vector_of(model), 0.1, [], 0
    for _ in range(40):
        j, r = torch.autograd.functional.jacobian(residuals, theta).numpy(), residuals(theta).detach().numpy()
        losses = [*losses, 0.5 * r @ r][-4:]
        for _ in range(8):
            p = np.linalg.solve(j.T @ j + damping * np.eye(len(theta)), -j.T @ r)
            new = residuals(theta + torch.from_numpy(p)).detach().numpy()
            ratio = (0.5 * new @ new - max(losses)) / (0.5 * np.sum((r + j @ p) ** 2) - losses[-1])
            if ratio > 0:
                break
            damping *= 3 / 2
        theta = theta + torch.from_numpy(p)
        damping *= 3 / 2 if ratio < 1 / 4 else 2 / 3 if ratio > 3 / 4 else 1
        optimizer.step(objective)
        rose += optimizer.report.new_loss > optimizer.report.loss
        torch.testing.assert_close(vector_of(model), theta, rtol=0, atol=1e-9)
        assert optimizer.damping == pytest.approx(damping, rel=1e-12)
    assert rose >= 3  # upwards, and accepted


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_passes_kinks_at_which_a_rule_that_goes_downhill_stops(seed):
    ends = []
    for rule in (NonMonotone(), LevenbergMarquardt(range=(1e-24, 1e12))):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 1)).double()
        x = 2 * torch.rand(100, 3).double() - 1
        objective = Objective(model, nn.MSELoss(), (x, torch.sin(3 * x).prod(1, keepdim=True) + x[:, :1]))
        optimizer = GaussNewton(model.parameters(), solver=Direct(acceleration=0.0), damping=rule)
        ends.append(min(float(optimizer.step(objective)) for _ in range(120)))
    assert ends[0] < 0.3 * ends[1]  # it is 0.07 to 0.13


def test_losses_of_other_data_do_not_count():
    rule = NonMonotone(memory=3)
    eps = torch.finfo(torch.float64).eps
    before = rule.kept(3.0, 2.0, [], eps)
    assert before == [3.0, 2.0]
    before = rule.kept(2.0, 2.5, before, eps)
    assert before == [3.0, 2.0, 2.5]
    assert rule.highest(2.5, before, eps) == 3.0
    before = rule.kept(2.5, 1.0, before, eps)
    assert before == [2.0, 2.5, 1.0]
    assert rule.highest(1.0, before, eps) == 2.5
    assert rule.highest(1.1, before, eps) == 1.1  # the objective is another
    assert rule.kept(1.1, 0.9, before, eps) == [1.1, 0.9]
    assert rule.highest(float("nan"), before, eps) != rule.highest(float("nan"), before, eps)


def test_steps_go_on_from_a_saved_state_as_if_it_had_not_been_saved():
    model, objective = kinked()
    optimizer = GaussNewton(model.parameters(), damping=NonMonotone(memory=5))
    for _ in range(25):
        optimizer.step(objective)
    other = copy.deepcopy(model)
    again = GaussNewton(other.parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    on_other = Objective(other, nn.MSELoss(), (objective.chunks[0].inputs, objective.chunks[0].targets))
    for _ in range(15):
        optimizer.step(objective)
        again.step(on_other)
    assert torch.equal(vector_of(model), vector_of(other))
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["state"][0]["losses"] = ["x"]
    with pytest.raises(ValueError, match="losses"):
        again.load_state_dict(damaged)


def test_options_are_checked():
    for options, message in (
        ({"memory": 0}, "memory"),
        ({"factors": (2.0, 3.0)}, "factors"),
        ({"initial": -1}, "init"),
    ):
        with pytest.raises(ValueError, match=f"NonMonotone.{message}"):
            NonMonotone(**options)
    with pytest.raises(ValueError, match="NonMonotone goes with Direct"):
        HessianFree(nn.Linear(2, 1).parameters(), damping=NonMonotone())
    table = {"kind": "non_monotone", "memory": 3}
    assert GaussNewton(nn.Linear(2, 1).parameters(), damping=table).param_groups[0]["damping"] == NonMonotone(memory=3)


def test_the_end_is_stationary():
    """At a minimum nothing is taken any more, whatever the losses before were."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    objective = Objective(model, nn.MSELoss(), (torch.randn(20, 3).double(), torch.randn(20, 1).double()))
    optimizer = GaussNewton(model.parameters(), damping=NonMonotone(1e-3))
    for _ in range(60):
        optimizer.step(objective)
    assert optimizer.report.status in (StepStatus.STATIONARY, StepStatus.TAKEN)
    x = torch.cat([objective.chunks[0].inputs, torch.ones(20, 1).double()], 1)
    exact = torch.linalg.lstsq(x, objective.chunks[0].targets).solution.reshape(-1)
    torch.testing.assert_close(vector_of(model), exact, rtol=0, atol=1e-8)
