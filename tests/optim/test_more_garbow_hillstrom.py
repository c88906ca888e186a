"""The problems of Moré, Garbow and Hillstrom (1981) from their standard starts: a published minimum is reached.

Beside it, where the minimum is not zero, stands one to all digits that SciPy finds from a point near the end.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch

from latephase import SelfScaledBroyden, StepStatus, minimize_residuals
from latephase.solve import UPDATES

SOURCE = Path(__file__).parents[2] / "benchmarks" / "more_garbow_hillstrom_problems.py"
specification = importlib.util.spec_from_file_location("more_garbow_hillstrom_problems", SOURCE)
mgh = importlib.util.module_from_spec(specification)
sys.modules["more_garbow_hillstrom_problems"] = mgh  # dataclasses look their module up
specification.loader.exec_module(mgh)
PROBLEMS = mgh.PROBLEMS

LONG = (
    *("Meyer", "Brown and Dennis", "Biggs EXP6", "Osborne 2", "Watson 9", "Watson 12", "Rosenbrock 100"),
    *("Powell, singular 100", "penalty I 4", "penalty I 10", "penalty II 4", "penalty II 10"),
)
"""Of hundreds of steps."""
UNPRINTED = {"trigonometric 10": 2.79506e-5}
"""A minimum that is not the published one, 0; `test_a_minimum_that_is_not_printed` shows that it is one."""
STARTS = {
    "Rosenbrock": 4.91934955, "Freudenstein and Roth": 20.0124961, "helical valley": 50.0, "Bard": 6.45613630,
    "Meyer": 41153.4665, "Box": 32.1115837, "Powell, singular": 14.6628783, "Kowalik and Osborne": 0.0728915103,
    "Jennrich and Sampson": 64.5856498, "Brown and Dennis": 2815.43840, "Osborne 1": 0.937564021,
    "Osborne 2": 1.44686541, "Watson 6": 5.47722558, "Brown, almost linear": 16.5302162,
}  # fmt: skip
"""Norms of f at the standard start, as MINPACK's test programs print them."""


def squares(problem, x):
    return float(problem.squares(torch.tensor(x, dtype=torch.float64)))


def jacobian(problem, x):
    return torch.autograd.functional.jacobian(problem.residuals, torch.tensor(x)).numpy()


def residuals(problem, x):
    return problem.residuals(torch.tensor(x)).numpy()


def exact_near(problem, x):
    """The minimum near a point [n], by SciPy from a hundred-thousandth beside it, where no other is near.

    Where that leads to another one, by SciPy's BFGS from the standard start: what Biggs' function is known for is a
    minimum among points that are symmetric in two of the exponentials, as that start is, and this one.
    """
    found = scipy.optimize.least_squares(
        lambda x: residuals(problem, x),
        x * (1 + 1e-5),
        lambda x: jacobian(problem, x),
        method="lm",
        x_scale="jac",
        max_nfev=20_000,
        **dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15),
    )
    if problem.reached(2 * found.cost) == problem.reached(squares(problem, x)):
        return 2 * found.cost
    return by_bfgs(problem).fun


def by_bfgs(problem):
    """SciPy's minimum from the standard start."""
    return scipy.optimize.minimize(
        lambda x: squares(problem, x),
        problem.start,
        jac=lambda x: 2 * jacobian(problem, x).T @ residuals(problem, x),
        method="BFGS",
        tol=1e-10,
    )


def check(name, value, x):
    """A published minimum in all of its digits, and one to ten digits."""
    problem = PROBLEMS[name]
    if name in UNPRINTED:
        assert value == pytest.approx(UNPRINTED[name], rel=1e-5)
    else:
        assert problem.reached(value) is not None
    if value < 1e-10 and "0" in problem.minima:
        assert value <= 1e-20
    else:
        assert value == pytest.approx(exact_near(problem, x), rel=1e-10)


@pytest.mark.parametrize("name", STARTS)
def test_the_problems_are_those_of_minpack(name):
    problem = PROBLEMS[name]
    assert squares(problem, problem.start) ** 0.5 == pytest.approx(STARTS[name], rel=5e-9)


def minimised(problem, function, update="broyden"):
    """The optimizer and the point where it ends: at a minimum, or where it can go on no more."""
    point, objective = function(lambda x: (problem.squares(x), x), *problem.start)
    optimizer = SelfScaledBroyden(point.parameters(), update=update)
    for _ in range(3000):
        optimizer.step(objective)
        report = optimizer.report
        assert report.new_loss <= report.loss * (1 + 1e-12)
        nowhere = report.status is StepStatus.LINE_SEARCH_FAILED and not report.restarted
        if report.new_loss <= 1e-22 or report.status is StepStatus.STATIONARY or nowhere:
            break
    return optimizer, point.x.detach()


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in PROBLEMS]
)
def test_published_minima(name, update, function):
    optimizer, x = minimised(PROBLEMS[name], function, update)
    check(name, optimizer.report.new_loss, x.numpy())


@pytest.mark.parametrize("name", ["Osborne 1", "Watson 6", "Bard", "Chebyquad 8"])
def test_the_end_is_said_to_be_stationary(name, function):
    """Of sums of residuals with more rounding than the sum itself, too: the line's curvature tells what is left."""
    problem = PROBLEMS[name]
    optimizer, x = minimised(problem, function)
    assert optimizer.report.status is StepStatus.STATIONARY
    hessian = torch.autograd.functional.hessian(problem.squares, x)
    gradient = torch.autograd.functional.jacobian(problem.squares, x)
    assert float(gradient @ torch.linalg.solve(hessian, gradient)) <= 1e-10 * optimizer.report.loss


def test_a_minimum_that_is_not_printed():
    """Of the trigonometric function: the gradient vanishes, the Hessian is positive, and SciPy's BFGS ends there."""
    problem = PROBLEMS["trigonometric 10"]
    found = by_bfgs(problem)
    assert found.fun == pytest.approx(UNPRINTED["trigonometric 10"], rel=1e-5)
    hessian = torch.autograd.functional.hessian(problem.squares, torch.tensor(found.x))
    assert float(torch.linalg.eigvalsh(hessian)[0]) > 1e-3
    assert np.abs(found.jac).max() < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_damped_gauss_newton_reaches_published_minima(name):
    """To half of the digits of the residuals, as its default tolerances go."""
    problem = PROBLEMS[name]
    found = minimize_residuals(
        lambda x: residuals(problem, x), problem.start, lambda x: jacobian(problem, x), max_nfev=700
    )
    reached = problem.reached(2 * found.cost)
    if name == "Brown and Dennis":  # the residuals stay as large as 100: 8,000 evaluations, of quasi-Newton steps 19
        assert reached is None
        assert not found.success
    elif name in UNPRINTED:
        assert 2 * found.cost == pytest.approx(UNPRINTED[name], rel=1e-5)
    else:
        assert reached is not None
