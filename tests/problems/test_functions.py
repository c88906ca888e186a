"""The functions in closed form: what DeepOBS published, and optima that are known."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from latephase import CG, Fixed, HessianFree
from latephase.curvature import linearize
from latephase.problems.functions import curvature_factors, quadratic_deep, rosenbrock


@pytest.fixture(scope="module")
def quadratic():
    eigenvalues, rotation = curvature_factors()
    return rotation.T @ np.diag(eigenvalues) @ rotation


def doubled(batch):
    inputs, targets = batch
    return inputs.double(), targets.double()


def exact_step(parameters):
    """A Hessian-free step that is a Newton step: no damping, and CG runs to the end."""
    return HessianFree(
        parameters,
        damping=Fixed(0.0),
        solver=CG(stopping="residual", tolerance=1e-13, max_iter=1000, candidates="last"),
    )


def test_spectrum_of_the_quadratic(quadratic):
    eigenvalues = np.linalg.eigvalsh(quadratic)
    assert np.count_nonzero((eigenvalues > 0) & (eigenvalues < 1)) == 90
    assert np.count_nonzero((eigenvalues > 30) & (eigenvalues < 60)) == 10
    drawn, rotation = curvature_factors()
    # The factors are exact to rounding, 2e-16 per operation over 100 reflections.
    np.testing.assert_allclose(eigenvalues, np.sort(drawn), rtol=0, atol=1e-11)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(100), rtol=0, atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize(("part", "published"), [("valid", 353.8127659388951), ("test", 353.44676426478793)])
def test_initial_loss_is_that_of_published_runs(part, published):
    # "Descending through a Crowded Valley", quadratic_deep, loss before the first epoch: the mean over the first seven
    # batches of 128 rows. It pins the order of all draws. Both were computed in float32, 1e-7 per operation.
    problem = quadratic_deep()
    rows = problem.batch(getattr(problem.load(), part), slice(7 * 128))
    assert float(problem.objective(problem.model(), rows).value()) == pytest.approx(published, rel=1e-6)


def test_splits_differ_and_stay():
    first, again = quadratic_deep().load(), quadratic_deep().load()
    assert first.train[0].shape == first.train[1].shape == (1000, 100)
    for part in ("train", "valid", "test"):
        rows = getattr(first, part)[0]
        assert torch.equal(rows, getattr(again, part)[0])
        # A standard deviation from 100,000 draws has a standard error of 0.6 / sqrt(200,000) = 0.0013.
        assert float(rows.std()) == pytest.approx(0.6, abs=0.006)
    assert not torch.equal(first.train[0], first.valid[0])
    assert not torch.equal(first.valid[0], first.test[0])


def test_quadratic_in_closed_form(quadratic):
    problem = quadratic_deep()
    model = problem.model().double()
    rows, zeros = doubled(problem.batch(problem.load().train, slice(128)))
    q = torch.from_numpy(quadratic)
    lin = linearize(problem.objective(model, (rows, zeros)))
    away = model.theta.detach() - rows
    loss = 0.5 * ((away @ q) * away).sum(1).mean()
    # The model's root of Q went through float32, whose rounding is 6e-8.
    torch.testing.assert_close(lin.loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(lin.gradient, q @ away.mean(0), rtol=1e-6, atol=1e-6 * float(lin.gradient.abs().max()))
    dense = torch.stack([lin.matvec(unit) for unit in torch.eye(100, dtype=torch.float64)])
    torch.testing.assert_close(dense, q, rtol=0, atol=1e-6 * 60)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("microbatch_size", [None, 300])
def test_one_exact_step_ends_at_the_mean_of_the_rows(curvature, microbatch_size):
    problem = quadratic_deep()
    model = problem.model().double()
    data = doubled(problem.load().train)
    optimizer = exact_step(model.parameters())
    optimizer.param_groups[0]["curvature"] = curvature
    optimizer.step(problem.objective(model, data, microbatch_size=microbatch_size))
    # The residual is 1e-13 of the right-hand side, whose norm is 152, and the smallest eigenvalue 5.5e-3: an error of
    # 2.8e-9 at the very worst, all of it in the flattest direction.
    assert float((model.theta.detach() - data[0].mean(0)).abs().max()) < 1e-8


def test_learning_rate_descends_to_the_noise():
    problem = quadratic_deep()
    model = problem.model()
    train = problem.load().train
    optimizer = problem.training.start(model.parameters())
    start = float(problem.objective(model, train).value())
    for rows in torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:896].split(128):
        optimizer.step(problem.objective(model, problem.batch(train, rows)))
    # Published runs: from 353 to 103 in the first epoch.
    assert float(problem.objective(model, train).value()) < 0.35 * start


@pytest.mark.parametrize(("a", "b"), [(1.0, 100.0), (2.0, 30.0)])
def test_rosenbrock_value_gradient_and_curvature(a, b):
    problem = rosenbrock(a=a, b=b)
    model = problem.model().double()
    x, y = 0.3, -0.7
    with torch.no_grad():
        model.point.copy_(torch.tensor([x, y]))
    lin = linearize(problem.objective(model, doubled(problem.load().train)))
    value = (a - x) ** 2 + b * (y - x * x) ** 2
    slope = [-2 * (a - x) - 4 * b * x * (y - x * x), 2 * b * (y - x * x)]
    gauss_newton = [[2 + 8 * b * x * x, -4 * b * x], [-4 * b * x, 2 * b]]
    hessian = [[2 + 12 * b * x * x - 4 * b * y, -4 * b * x], [-4 * b * x, 2 * b]]
    assert float(lin.loss) == pytest.approx(value, rel=1e-6)  # the point went through float32
    assert lin.gradient.tolist() == pytest.approx(slope, rel=1e-6)
    for curvature, expected in (("ggn", gauss_newton), ("hessian", hessian)):
        lin = linearize(problem.objective(model, doubled(problem.load().train)), curvature)
        for unit, column in zip(torch.eye(2, dtype=torch.float64), expected, strict=True):
            assert lin.matvec(unit).tolist() == pytest.approx(column, rel=1e-6)


def test_rosenbrock_start_and_minimum():
    problem = rosenbrock()
    model = problem.model().double()
    objective = problem.objective(model, doubled(problem.load().train))
    assert float(objective.value()) == 400.0
    optimizer = exact_step(model.parameters())
    for _ in range(60):
        optimizer.step(objective)
    # A sum of squares that vanishes: Gauss-Newton steps converge quadratically, so nothing but rounding is left.
    assert model.point.tolist() == pytest.approx([1.0, 1.0], abs=1e-10)
    assert float(objective.value()) < 1e-18


def test_gradient_descent_follows_the_valley():
    problem = rosenbrock()
    model = problem.model()
    objective = problem.objective(model, problem.load().train)
    optimizer = problem.training.start(model.parameters())
    losses = [float(optimizer.step(objective)) for _ in range(problem.training.epochs)]
    assert losses[0] == 400.0
    # The second step leaves the cliff; what is left is the slow way along the valley's floor.
    assert losses[-1] < 1.0
    assert all(after < before for before, after in itertools.pairwise(losses[10:]))


def test_problems_can_be_sent_to_a_worker():
    for problem in (rosenbrock(b=7.0), quadratic_deep()):
        copy = pickle.loads(pickle.dumps(problem))
        data = copy.load().train
        value = float(copy.objective(copy.model(), data).value())
        assert value == float(problem.objective(problem.model(), data).value())
