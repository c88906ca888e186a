"""Self-scaled Broyden: independent computations, changing data, restarts, trouble."""

import copy

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from broyden_formula import by_formula
from latephase import Objective, QuasiNewtonStepReport, SelfScaledBroyden, StepStatus, Wolfe, WolfeStatus
from latephase.solve import UPDATES


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def gradient_of(f, x):
    t = torch.tensor(x, requires_grad=True)
    return torch.autograd.grad(f(t), t)[0].numpy()


def in_numpy(f, x, rates, update):
    """The points that the update's formula leads to with these step sizes, in dense matrices."""
    h, g, points = np.eye(len(x)), gradient_of(f, x), []
    for count, alpha in enumerate(rates):
        s = -alpha * h @ g
        x, old = x + s, g
        g = gradient_of(f, x)
        h = by_formula(h, s, g - old, -alpha * (s @ old) / (s @ (g - old)), update, count == 0)[0]
        points.append(x)
    return np.array(points)


@pytest.mark.parametrize("update", UPDATES)
def test_fifty_steps_are_those_of_the_formula(update, function):
    start = [-1.2, 1.0] * 5
    point, objective = function(lambda x: (rosenbrock(x), x), *start)
    optimizer, points, rates = SelfScaledBroyden(point.parameters(), update=update), [], []
    for _ in range(50):
        optimizer.step(objective)
        points.append(point.x.detach().numpy().copy())
        rates.append(optimizer.report.lr)
    np.testing.assert_allclose(points, in_numpy(rosenbrock, np.array(start), rates, update), rtol=0, atol=1e-8)
    assert optimizer.report.updates == 50


def test_bfgs_takes_the_steps_of_scipy(function):
    """Which has the same line search, first trials included; steps that grow a rounding, hence six digits."""
    start, iterates = np.array([-1.2, 1.0] * 3), []
    scipy.optimize.minimize(
        lambda x: float(rosenbrock(torch.tensor(x))),
        start,
        jac=lambda x: gradient_of(rosenbrock, x),
        method="BFGS",
        callback=lambda x: iterates.append(x.copy()),
        options={"maxiter": 50, "gtol": 1e-6},
    )
    point, objective = function(lambda x: (rosenbrock(x), x), *start)
    optimizer = SelfScaledBroyden(point.parameters(), update="unscaled_bfgs")
    assert len(iterates) > 30
    for expected in iterates:
        optimizer.step(objective)
        np.testing.assert_allclose(point.x.detach().numpy(), expected, rtol=0, atol=1e-6)


def regression(seed=0, rows=40, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)
    x = torch.linspace(-1, 1, rows, dtype=dtype)[:, None]
    return model, (x, torch.sin(3 * x))


def vector_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def gradient_at(objective):
    objective()
    return torch.cat([p.grad.reshape(-1) for p in objective.model.parameters()])


def test_every_step_satisfies_the_conditions_and_the_report_is_true():
    model, data = regression()
    objective = Objective(model, nn.MSELoss(), data, weight_decay=1e-4)
    optimizer = SelfScaledBroyden(model.parameters(), line_search={"c2": 0.5})
    assert optimizer.param_groups[0]["line_search"] == Wolfe(c2=0.5)
    for step in range(60):
        before, loss, g = vector_of(model), float(objective.value()), gradient_at(objective)
        returned = optimizer.step(objective)
        report, s = optimizer.report, vector_of(model) - before
        assert isinstance(report, QuasiNewtonStepReport)
        assert (report.status, report.line_search) == (StepStatus.TAKEN, WolfeStatus.WOLFE)
        assert report.loss == float(returned) == pytest.approx(loss, rel=1e-14)
        assert report.new_loss == pytest.approx(float(objective.value()), rel=1e-13)
        assert report.gradient_norm == pytest.approx(float(g.norm()), rel=1e-10)
        assert report.step_norm == pytest.approx(float(s.norm()), rel=1e-12)
        slope, after = float(g @ s), float(gradient_at(objective) @ s)
        assert report.new_loss <= loss + 1e-4 * slope + 1e-15
        assert abs(after) <= 0.5 * abs(slope) * (1 + 1e-9)
        assert report.predicted_change == pytest.approx(slope * (1 - report.lr / 2), rel=1e-6)
        assert (report.damping, report.reduction_ratio, report.updates) == (0.0, None, step + 1)
    assert report.loss < 1e-2


def test_differences_of_gradients_are_of_the_same_data():
    """H y = s with both gradients of the second batch; H is kept when the batch changes."""
    model, data = regression()
    optimizer = SelfScaledBroyden(model.parameters())
    first, second = (
        Objective(model, nn.MSELoss(), (data[0][rows], data[1][rows])) for rows in (slice(0, 25), slice(15, 40))
    )
    for count, objective in enumerate([first, first, second, first, second], 1):
        before, g = vector_of(model), gradient_at(objective)
        optimizer.step(objective)
        s, y = vector_of(model) - before, gradient_at(objective) - g
        h = optimizer.state[model[0].weight]["inverse_hessian"]
        torch.testing.assert_close(h @ y, s, rtol=1e-8, atol=1e-9 * float(s.norm()))
        assert (optimizer.report.updates, optimizer.report.restarted) == (count, False)


def passes_of(model):
    count = [0]
    model.register_forward_pre_hook(lambda *arguments: count.__setitem__(0, count[0] + 1))
    return count


def test_a_gradient_is_computed_once_where_nothing_changed_and_no_number_differs():
    runs = []
    for anew in (False, True):
        model, data = regression()
        count, objective = passes_of(model), Objective(model, nn.MSELoss(), data)
        optimizer, gradients = SelfScaledBroyden(model.parameters()), []
        for _ in range(20):
            optimizer.step(Objective(model, nn.MSELoss(), data) if anew else objective)
            gradients.append(optimizer.report.gradients)
        assert sum(gradients) == count[0]
        runs.append((vector_of(model), sum(gradients)))
    assert torch.equal(runs[0][0], runs[1][0])
    # All but the first step, and those that compare: uses 1, 2, 4, 8 and 16.
    assert runs[0][1] == runs[1][1] - (19 - 5)


@pytest.mark.parametrize("change", ["data", "parameters", "frozen", "buffer", "group"])
def test_what_was_written_since_is_seen(change):
    model, data = regression()
    model[2].bias.requires_grad_(False)
    model.register_buffer("unused", torch.zeros(1))
    objective = Objective(model, nn.MSELoss(), data)
    optimizer = SelfScaledBroyden(model.parameters())
    for _ in range(6):
        optimizer.step(objective)
    with torch.no_grad():
        if change == "data":
            data[1].mul_(1.1)
        elif change == "parameters":
            model[0].weight.mul_(1.1)
        elif change == "frozen":
            model[2].bias.add_(0.1)
        elif change == "buffer":
            model.unused.add_(1)
        else:
            model[2].bias.requires_grad_(True)
    expected = float(objective.value())
    loss = float(optimizer.step(objective))
    assert loss == pytest.approx(expected, rel=1e-14)
    assert optimizer.report.gradients >= 2
    assert optimizer.report.restarted == (change == "group")
    assert optimizer.report.updates == (1 if change == "group" else 7)


def test_a_function_that_drifts_is_noticed():
    """What it reads cannot be seen: the first use of a kept gradient compares the loss, and ends it."""
    model, data = regression()
    scale = [1.0]
    objective = Objective(model, lambda outputs, targets: scale[0] * nn.functional.mse_loss(outputs, targets), data)
    optimizer = SelfScaledBroyden(model.parameters())
    for _ in range(12):
        expected = float(objective.value())
        assert float(optimizer.step(objective)) == pytest.approx(expected, rel=1e-14)
        scale[0] *= 1.1
    assert optimizer.report.gradients >= 2


def test_dropout_draws_anew_in_every_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()
    objective = Objective(model, nn.MSELoss(), (torch.randn(20, 3).double(), torch.randn(20, 3).double()))
    optimizer = SelfScaledBroyden(model.parameters(), lr=1e-9, line_search=False)
    losses = set()
    for _ in range(5):
        optimizer.step(objective)
        assert optimizer.report.new_loss == pytest.approx(optimizer.report.loss, abs=1e-5)
        assert optimizer.report.gradients == 2
        losses.add(round(optimizer.report.loss, 6))
    assert len(losses) == 5


class Backwards(torch.autograd.Function):
    """The identity with the wrong sign of the gradient, so that no direction is one of descent."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return -slope


def test_a_line_search_that_fails_drops_h_and_moves_nothing(unchanged):
    model, data = regression()
    wrong = [False]

    def loss(outputs, targets):
        return nn.functional.mse_loss(Backwards.apply(outputs) if wrong[0] else outputs, targets)

    optimizer = SelfScaledBroyden(model.parameters())
    for _ in range(5):
        optimizer.step(Objective(model, loss, data))
    wrong[0] = True
    with unchanged(model):
        optimizer.step(Objective(model, loss, data))
    report = optimizer.report
    assert (report.status, report.line_search) == (StepStatus.LINE_SEARCH_FAILED, WolfeStatus.FAILED)
    assert (report.restarted, report.accepted, report.updates, report.step_norm) == (True, False, 0, 0.0)
    assert report.new_loss == report.loss
    assert not optimizer.state[model[0].weight]
    with unchanged(model):  # along the gradient, which is as wrong: there is no H to drop
        optimizer.step(Objective(model, loss, data))
    assert (optimizer.report.status, optimizer.report.restarted) == (StepStatus.LINE_SEARCH_FAILED, False)
    wrong[0] = False
    before, g = vector_of(model), gradient_at(Objective(model, loss, data))
    optimizer.step(Objective(model, loss, data))
    s = vector_of(model) - before
    assert float(s @ g) == pytest.approx(-float(s.norm() * g.norm()))
    assert (optimizer.report.accepted, optimizer.report.updates) == (True, 1)


def test_an_h_that_gives_no_descent_is_dropped_within_the_step():
    model, data = regression()
    optimizer = SelfScaledBroyden(model.parameters())
    objective = Objective(model, nn.MSELoss(), data)
    for _ in range(3):
        optimizer.step(objective)
    optimizer.state[model[0].weight]["inverse_hessian"].neg_()
    optimizer.step(objective)
    report = optimizer.report
    assert (report.status, report.restarted, report.updates) == (StepStatus.TAKEN, True, 1)
    assert report.new_loss < report.loss


def test_groups_with_rates_of_their_own_update_by_bfgs():
    model, data = regression()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}]
    optimizer, objective = SelfScaledBroyden(groups), Objective(model, nn.MSELoss(), data)
    losses = []
    for _ in range(30):
        losses.append(float(optimizer.step(objective)))
        assert (optimizer.report.tau, optimizer.report.theta, optimizer.report.predicted_change) == (1.0, 0.0, None)
    assert losses[-1] < 0.05 * losses[0]


def test_rates_of_zero_and_a_gradient_of_zero_are_stationary(function, unchanged):
    point, objective = function(lambda x: (rosenbrock(x), x), 1.0, 1.0)
    optimizer = SelfScaledBroyden(point.parameters())
    optimizer.step(objective)
    assert (optimizer.report.status, optimizer.report.gradients) == (StepStatus.STATIONARY, 1)
    point, objective = function(lambda x: (rosenbrock(x), x), -1.2, 1.0)
    optimizer = SelfScaledBroyden(point.parameters(), lr=0.0)
    with unchanged(point):
        optimizer.step(objective)
    assert optimizer.report.status is StepStatus.STATIONARY


def test_a_loss_that_is_not_finite_ends_the_step(function, unchanged):
    point, objective = function(lambda x: (x.log().sum(), x), -1.0, 2.0)
    optimizer = SelfScaledBroyden(point.parameters())
    with unchanged(point, optimizer):
        loss = optimizer.step(objective)
        optimizer.report = None
    assert not loss.isfinite()
    point, objective = function(
        lambda x: (-x.log().sum() + x.square().sum(), x), 1e-3, 2.0
    )  # infinite at 0, nan beyond
    optimizer = SelfScaledBroyden(point.parameters())
    for _ in range(40):
        optimizer.step(objective)
    torch.testing.assert_close(point.x.detach(), torch.full((2,), 0.5**0.5).double(), rtol=1e-7, atol=1e-7)
    point, objective = function(lambda x: (-x.log().sum(), x), 0.1, 2.0)
    optimizer = SelfScaledBroyden(point.parameters(), lr=-0.0, line_search=False)
    optimizer.param_groups[0]["lr"] = 1e200
    with unchanged(point):
        optimizer.step(Objective.from_forward(point, lambda: ((point.x**2).sum(), point.x)))
    assert optimizer.report.status is StepStatus.NONFINITE


def test_without_a_line_search_a_step_is_the_rate_times_the_direction():
    model, data = regression()
    objective = Objective(model, nn.MSELoss(), data)
    optimizer = SelfScaledBroyden(model.parameters(), lr=0.1, line_search=False)
    before, g = vector_of(model), gradient_at(objective)
    optimizer.step(objective)
    torch.testing.assert_close(vector_of(model), before - 0.1 * g, rtol=1e-13, atol=1e-15)
    assert (optimizer.report.lr, optimizer.report.line_search, optimizer.report.gradients) == (0.1, None, 2)
    for _ in range(200):
        h = optimizer.state[model[0].weight]["inverse_hessian"].clone()
        before, g = vector_of(model), gradient_at(objective)
        optimizer.step(objective)
        torch.testing.assert_close(vector_of(model), before - 0.1 * h @ g, rtol=1e-10, atol=1e-12)
    assert optimizer.report.loss < 1e-3


def test_float32_is_advised_against_once(recwarn):
    model, data = regression(dtype=torch.float32)
    optimizer, objective = SelfScaledBroyden(model.parameters()), Objective(model, nn.MSELoss(), data)
    with pytest.warns(UserWarning, match=r"SelfScaledBroyden on parameters in torch.float32: .*model.double\(\)"):
        losses = [float(optimizer.step(objective)) for _ in range(30)]
    assert losses[-1] < 0.2 * losses[0]
    assert not recwarn.list
    assert optimizer.state[model[0].weight]["inverse_hessian"].dtype == torch.float32


def test_an_inverse_hessian_without_room_is_refused_before_anything_moves(unchanged):
    model = nn.Linear(2_000_000, 1).double()
    optimizer = SelfScaledBroyden(model.parameters())
    objective = Objective(model, nn.MSELoss(), (torch.ones(1, 2_000_000).double(), torch.ones(1, 1).double()))
    with unchanged(model, optimizer), pytest.raises(MemoryError, match=r"2,000,001 parameters is 32,000\.0 GB.*LBFGS"):
        optimizer.step(objective)


def test_damaged_states_are_named():
    model, data = regression()
    optimizer = SelfScaledBroyden(model.parameters())
    optimizer.step(Objective(model, nn.MSELoss(), data))
    saved = optimizer.state_dict()
    assert saved["version"] == 3
    h = saved["state"][0]["inverse_hessian"]
    for key, value, message in (
        ("inverse_hessian", h[:3], r"must have shape \[19, 19\]"),
        ("inverse_hessian", h * float("nan"), "not finite"),
        ("inverse_hessian", 3, "must be a tensor"),
        ("places", [1.5], "whole number"),
        ("updates", -1, "whole number"),
        ("decrease", "x", "finite number"),
        ("unheard", 1, "is unknown"),
    ):
        damaged = copy.deepcopy(saved)
        damaged["state"][0][key] = value
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(damaged)
    del (damaged := copy.deepcopy(saved))["state"][0]["places"]
    with pytest.raises(ValueError, match="no 'places'"):
        optimizer.load_state_dict(damaged)


@pytest.mark.parametrize(("options", "message"), [
    ({"update": "dfp"}, "update must be one of broyden, bfgs, unscaled_bfgs"), ({"lr": -1.0}, "lr must be"),
    ({"line_search": None}, "line_search must be True or False"), ({"line_search": {"c3": 1}}, "Wolfe has no 'c3'"),
    ({"line_search": {"c1": 0.0}}, "Wolfe.c1 must be"), ({"line_search": {"c2": 1.0}}, "Wolfe.c2 must be"),
    ({"line_search": {"max_trials": 0}}, "Wolfe.max_trials must be"),
])  # fmt: skip
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SelfScaledBroyden(nn.Linear(2, 1).parameters(), **options)


def test_a_residual_objective_in_chunks_is_one_function():
    """Derivatives inside, terms, and chunks: the same steps as with whole terms."""
    ends = []
    for size in (None, 7):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        points = torch.linspace(0, 1, 30).double()[:, None]

        def slope(model, points):
            x = points.requires_grad_()
            (found,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            return found + model(x)

        terms = {"equation": (slope, points), "start": (lambda model, x: model(x) - 1, torch.zeros(1, 1).double())}
        objective = Objective.from_residuals(model, terms, microbatch_size=size)
        optimizer = SelfScaledBroyden(model.parameters())
        for _ in range(60):
            optimizer.step(objective)
        ends.append(vector_of(model))
        x = torch.linspace(0, 1, 50).double()[:, None]
        assert float((model(x) - torch.exp(-x)).detach().abs().max()) < 1e-3
        assert optimizer.report.gradients <= 3
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
