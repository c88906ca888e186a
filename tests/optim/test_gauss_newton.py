"""Gauss-Newton steps beside dense float64 solves, conjugate gradients run to their end, and SPRING's formulas."""

import copy
import itertools
import math

import pytest
import torch
from dense_models import dense_model, flat, function_of_theta, without_cross_blocks
from torch import Tensor, nn

from latephase import (
    CG,
    GGN,
    Armijo,
    Blocks,
    Direct,
    Fixed,
    GaussNewton,
    Hessian,
    HessianFree,
    LevenbergMarquardt,
    Objective,
    StepStatus,
    TargetRatio,
    layerwise,
)
from latephase.curvature.rows.loss_root import root_of_pass

LAMBDA = 0.03
PLAIN = Direct(acceleration=0.0)
LOSSES = {"mse": nn.MSELoss(), "cross_entropy": nn.CrossEntropyLoss(), "bce": nn.BCEWithLogitsLoss(reduction="sum")}


def network(width: int = 5, outputs: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def data_for(loss: str, rows: int = 7, outputs: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    targets = {"mse": y, "cross_entropy": y.argmax(1), "bce": (y > 0).double()}
    return x, targets[loss]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def step_of(optimizer: torch.optim.Optimizer, model: nn.Module, objective: Objective, **options) -> Tensor:
    before = flat(model)
    optimizer.step(objective, **options)
    return flat(model) - before


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("side", ["auto", "primal", "dual"])
@pytest.mark.parametrize("factorization", ["auto", "eigh", "svd"])
def test_a_step_is_the_dense_one(loss, side, factorization):
    """Fewer rows than parameters and more, an L2 term and chunks; conditions below 1e5 leave eleven digits."""
    for rows, width, decay, cuts in ((7, 5, 0.0, None), (7, 5, 0.1, None), (40, 3, 0.0, (3, 20)), (40, 3, 0.01, (1,))):
        model, data = network(width), data_for(loss, rows)
        dense = dense_model(model, LOSSES[loss], data, weight_decay=decay)
        size = len(dense.gradient)
        expected = -torch.linalg.solve(dense.matrix + LAMBDA * torch.eye(size, dtype=torch.float64), dense.gradient)
        objective = Objective(model, LOSSES[loss], data, weight_decay=decay)
        if cuts is not None:
            edges = [0, *cuts, rows]
            pieces = [tuple(x[i:j] for x in data) for i, j in itertools.pairwise(edges)]
            objective = objective.on(pieces)
        solver = Direct(side=side, factorization=factorization, acceleration=0.0)
        optimizer = GaussNewton(model.parameters(), solver=solver, damping=Fixed(LAMBDA))
        assert relative(step_of(optimizer, model, objective), expected) < 1e-10
        report = optimizer.report
        assert report is not None
        assert report.predicted_change == pytest.approx(dense.change(expected), rel=1e-9)
        assert report.damping == LAMBDA


@pytest.mark.parametrize("loss", LOSSES)
def test_groups_scales_blocks_and_frozen_parameters(loss):
    for blocks in (False, True):
        model, data = network(6), data_for(loss, 9)
        model[2].weight.requires_grad_(False)
        dense = dense_model(model, LOSSES[loss], data, weight_decay=0.02)
        moving = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in model.parameters()])
        matrix, gradient = dense.matrix[moving][:, moving], dense.gradient[moving]
        sizes = [24, 6, 3]
        scale = torch.cat(
            [torch.full((n,), s, dtype=torch.float64) for n, s in zip(sizes, (1.0, 4.0, 0.5), strict=True)]
        )
        if blocks:
            matrix = without_cross_blocks(matrix, sizes)
        expected = -torch.linalg.solve(matrix + LAMBDA * torch.diag(scale), gradient)
        groups = [
            {"params": [model[0].weight]},
            {"params": [model[0].bias], "damping_scale": 4.0},
            {"params": [model[2].weight, model[2].bias], "damping_scale": 0.5},
        ]
        optimizer = GaussNewton(groups, solver=PLAIN, damping=Fixed(LAMBDA), blocks=blocks)
        found = step_of(optimizer, model, Objective(model, LOSSES[loss], data, weight_decay=0.02))
        assert not found[~moving].any()
        assert relative(found[moving], expected) < 1e-10


def test_tied_and_unused_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)
            self.second.weight = self.first.weight
            self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    torch.manual_seed(1)
    model, data = Tied(), data_for("mse", 30, 4)
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()], strict=True)
    theta = flat(model)

    def outputs(theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(model, named, (data[0],)).reshape(-1)

    jacobian = torch.autograd.functional.jacobian(outputs, theta)
    residual = outputs(theta).detach() - data[1].reshape(-1)
    count = len(residual)
    matrix = 2 / count * jacobian.T @ jacobian + LAMBDA * torch.eye(len(theta), dtype=torch.float64)
    expected = -torch.linalg.solve(matrix, 2 / count * jacobian.T @ residual)
    optimizer = GaussNewton(model.parameters(), solver=PLAIN, damping=Fixed(LAMBDA))
    assert relative(step_of(optimizer, model, Objective(model, nn.MSELoss(), data)), expected) < 1e-10


@pytest.mark.parametrize("loss", LOSSES)
def test_conjugate_gradients_run_to_their_end_agree(loss):
    model = network(5)
    other, data = copy.deepcopy(model), data_for(loss, 12)
    direct = GaussNewton(model.parameters(), solver=PLAIN, damping=Fixed(LAMBDA))
    solver = CG(max_iter=2000, stopping="residual", tolerance=1e-13, candidates="last", warm_start=0.0)
    truncated = HessianFree(other.parameters(), solver=solver, damping=Fixed(LAMBDA), line_search=False)
    for _ in range(3):
        found = step_of(direct, model, Objective(model, LOSSES[loss], data))
        assert relative(found, step_of(truncated, other, Objective(other, LOSSES[loss], data))) < 1e-8


@pytest.mark.parametrize("rows", [7, 40])
def test_the_loss_is_looked_at_once_for_each_chunk_of_a_step(rows, monkeypatch):
    seen = []

    def counted(*arguments):
        seen.append(1)
        return root_of_pass(*arguments)

    monkeypatch.setattr("latephase.curvature.rows.chunk_rows.root_of_pass", counted)
    model, data = network(), data_for("cross_entropy", rows)
    objective = Objective(model, LOSSES["cross_entropy"], data, microbatch_size=5)
    GaussNewton(model.parameters(), solver=PLAIN, damping=Fixed(LAMBDA)).step(objective)
    assert len(seen) == len(objective.chunks) > 1


def test_hessian_free_takes_it_as_its_solver():
    model, data = network(), data_for("cross_entropy")
    dense = dense_model(model, LOSSES["cross_entropy"], data)
    optimizer = HessianFree(model.parameters(), solver=PLAIN, damping=Fixed(1.0), line_search=False)
    found = step_of(optimizer, model, Objective(model, LOSSES["cross_entropy"], data))
    size = len(dense.gradient)
    assert (
        relative(found, -torch.linalg.solve(dense.matrix + torch.eye(size, dtype=torch.float64), dense.gradient))
        < 1e-10
    )


def test_curvature_of_other_data():
    model, data, part = network(), data_for("cross_entropy", 20), data_for("cross_entropy", 5)
    gradient = dense_model(model, LOSSES["cross_entropy"], data).gradient
    matrix = dense_model(model, LOSSES["cross_entropy"], part).matrix
    expected = -torch.linalg.solve(matrix + LAMBDA * torch.eye(len(gradient), dtype=torch.float64), gradient)
    optimizer = GaussNewton(model.parameters(), solver=PLAIN, damping=Fixed(LAMBDA))
    objective = Objective(model, LOSSES["cross_entropy"], data)
    assert relative(step_of(optimizer, model, objective, curvature_objective=objective.on(part)), expected) < 1e-10


def test_acceleration_is_half_the_second_derivative_of_the_residuals_along_the_step():
    """By nested products; a difference over the whole step leaves an error of the third derivative."""
    model, (x, y) = network(6), data_for("mse", 30)
    theta, forward = flat(model), function_of_theta(model, x)

    def residual(theta: Tensor) -> Tensor:
        return (forward(theta) - y).reshape(-1) * math.sqrt(2 / y.numel())

    damping = 3000.0  # so large that the step is short, and the third derivative small beside the second
    jacobian = torch.autograd.functional.jacobian(residual, theta)
    matrix = jacobian.T @ jacobian + damping * torch.eye(len(theta), dtype=torch.float64)
    p = -torch.linalg.solve(matrix, jacobian.T @ residual(theta))

    def slope(t: Tensor) -> Tensor:
        return torch.autograd.functional.jvp(residual, t, p, create_graph=True)[1]

    curved = torch.autograd.functional.jvp(slope, theta, p)[1]
    correction = -0.5 * torch.linalg.solve(matrix, jacobian.T @ curved)
    optimizer = GaussNewton(model.parameters(), damping=Fixed(damping))
    found = step_of(optimizer, model, Objective(model, nn.MSELoss(), (x, y)))
    assert relative(found - p, correction) < 1e-3
    assert optimizer.report.predicted_change == pytest.approx(
        float(0.5 * (residual(theta) + jacobian @ p).square().sum() - 0.5 * residual(theta).square().sum()), rel=1e-9
    )


def test_a_correction_that_is_too_long_is_left_out():
    model, data = network(6), data_for("mse", 30)
    other = copy.deepcopy(model)
    tiny = GaussNewton(model.parameters(), solver=Direct(acceleration=1e-9), damping=Fixed(LAMBDA))
    none = GaussNewton(other.parameters(), solver=PLAIN, damping=Fixed(LAMBDA))
    found = step_of(tiny, model, Objective(model, nn.MSELoss(), data))
    assert torch.equal(found, step_of(none, other, Objective(other, nn.MSELoss(), data)))


@pytest.mark.parametrize("limit", [None, 0.05])
def test_momentum_is_springs(limit):
    """Fifty steps on fresh rows, beside the formulas: zeta = -(r + mu J phi), phi <- mu phi + J'(JJ' + lambda)^-1 zeta.

    f = |r|^2 / n has the rows sqrt(2/n) J, so that its lambda is twice theirs of |r|^2 / (2 n).
    """
    mu, lr = 0.9, 0.3
    model = network(8, 1)
    theta, phi = flat(model), torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    solver = Direct(acceleration=0.0, max_step_norm=limit)
    optimizer = GaussNewton(model.parameters(), lr=lr, solver=solver, damping=Fixed(2 * LAMBDA), momentum=mu)
    generator = torch.Generator().manual_seed(5)
    whole, worst = Objective(model, nn.MSELoss(), (torch.zeros(6, 4).double(), torch.zeros(6, 1).double())), 0.0
    for step in range(50):
        x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
        y = torch.sin(x.sum(1, keepdim=True))
        forward = function_of_theta(model, x)
        jacobian = torch.autograd.functional.jacobian(lambda t: forward(t).reshape(-1), theta) / math.sqrt(6)  # noqa: B023
        residual = (forward(theta) - y).reshape(-1) / math.sqrt(6)
        kernel = jacobian @ jacobian.T + LAMBDA * torch.eye(6, dtype=torch.float64)
        phi = mu * phi + jacobian.T @ torch.linalg.solve(kernel, -residual - mu * jacobian @ phi)
        rate = lr / math.sqrt(1 - mu ** (2 * (step + 1))) if limit is None else min(lr, limit / float(phi.norm()))
        theta = theta + rate * phi
        optimizer.step(whole.on((x, y)))
        worst = max(worst, relative(flat(model), theta))
    assert worst < 1e-8


def test_a_regression_is_fitted_to_rounding():
    """Targets that a network of the same form has made: the residual goes to zero."""
    teacher, model = network(3, 1, seed=7), network(3, 1, seed=7)
    start = {name: p + 0.3 * torch.randn_like(p) for name, p in teacher.state_dict().items()}
    x = data_for("mse", 60)[0]
    y = teacher(x).detach()
    objective = Objective(model, nn.MSELoss(), (x, y))
    for damping in (LevenbergMarquardt(1e-2), TargetRatio()):
        model.load_state_dict(start)
        optimizer = GaussNewton(model.parameters(), damping=damping)
        losses = [float(optimizer.step(objective)) for _ in range(40)]
        assert losses[-1] < 1e-30
        assert all(b <= a for a, b in itertools.pairwise(losses))
        assert optimizer.report.status == StepStatus.STATIONARY
        assert 0 < optimizer.damping < 1e3  # the damping does not run away where nothing is left to gain


def test_a_step_that_no_damping_helps_leaves_everything_and_raises_the_damping():
    model, data = network(), data_for("mse")
    objective = Objective(model, nn.MSELoss(), data)
    wrong = objective.on((data[0], data[1] - 2 * (data[1] - model(data[0]).detach())))  # falls where the other rises
    optimizer = GaussNewton(model.parameters(), damping=LevenbergMarquardt(1e-4))
    before = flat(model)
    optimizer.step(objective, evaluation=wrong)
    assert torch.equal(flat(model), before)
    assert optimizer.report.status == StepStatus.LINE_SEARCH_FAILED
    assert optimizer.damping > 1e-4 * 1.5**7


def test_the_state_goes_on_where_it_was():
    model, data = network(), data_for("mse", 20)
    objective = Objective(model, nn.MSELoss(), data)
    for options in ({"momentum": 0.5, "damping": Fixed(0.1)}, {"damping": TargetRatio(0.1)}, {}):
        first = GaussNewton(model.parameters(), **options)
        for _ in range(3):
            first.step(objective)
        saved, weights = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())
        first.step(objective)
        expected = flat(model)
        model.load_state_dict(weights)
        second = GaussNewton(model.parameters(), **options)
        second.load_state_dict(saved)
        second.step(objective)
        assert torch.equal(flat(model), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "hessian"}, "Hessian has no rows"),
        ({"curvature": Hessian()}, "Hessian has no rows"),
        ({"curvature": GGN(compile=True)}, "GGN.compile"),
        ({"curvature": GGN(dtype=torch.float32)}, "GGN.dtype"),
        ({"solver": CG()}, "solver of GaussNewton must be Direct"),
        ({"blocks": Blocks(samples=3)}, "Blocks.samples"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": math.nan}, "momentum"),
        ({"damping": "lm"}, "TargetRatio"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GaussNewton(network().parameters(), **options)


def test_conjugate_gradients_have_no_target_ratio():
    with pytest.raises(ValueError, match="TargetRatio goes with Direct"):
        HessianFree(network().parameters(), damping=TargetRatio())
    with pytest.raises(ValueError, match="debias"):
        HessianFree(network().parameters(), solver=Direct(), debias=True)
    with pytest.raises(ValueError, match="tolerance"):
        GaussNewton([{"params": layerwise(network())[0]["params"], "tolerance": 0.1}], blocks=True)


def test_a_line_search_from_the_step_downwards():
    model, data = network(), data_for("mse", 20)
    optimizer = GaussNewton(model.parameters(), lr=8.0, solver=PLAIN, damping=Fixed(1e-3), line_search=Armijo())
    losses = [float(optimizer.step(Objective(model, nn.MSELoss(), data))) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert optimizer.report.lr <= 8.0
