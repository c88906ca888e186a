"""What the problems of Moré, Garbow and Hillstrom take `SelfScaledBroyden`, `minimize_residuals` and SciPy.

    OMP_NUM_THREADS=1 python benchmarks/more_garbow_hillstrom.py

Counted are evaluations of F with its gradient, or of f, until F first agrees with a published minimum in all of its
digits; where that is 0, until F <= 1e-10. Prints the table of docs/self_scaled_broyden.md.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from more_garbow_hillstrom_problems import PROBLEMS, Problem
from scipy.optimize import least_squares, minimize
from torch import nn

from latephase import Objective, SelfScaledBroyden, minimize_residuals

STEPS = 5000
"""Limit of steps, and of evaluations of f."""


class Reached(Exception):
    """A published minimum is; says after how many evaluations."""


class Counted:
    """A problem whose evaluations are counted.

    Args:
        problem: which.
    """

    def __init__(self, problem: Problem):
        self.problem, self.count = problem, 0

    def look(self, value: float) -> None:
        """Count an evaluation.

        Raises:
            Reached: its value is a published minimum.
        """
        self.count += 1
        if self.problem.reached(value) is not None:
            raise Reached

    def with_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """F and its gradient [n]."""
        point = torch.tensor(x, requires_grad=True)
        value = self.problem.squares(point)
        self.look(float(value.detach()))
        return float(value.detach()), torch.autograd.grad(value, point)[0].numpy()

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """F's residuals [m]."""
        found = self.problem.residuals(torch.tensor(x)).numpy()
        self.look(float(np.sum(found**2)))
        return found

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """Their derivatives [m, n], which are not counted."""
        found: Any = torch.autograd.functional.jacobian(self.problem.residuals, torch.tensor(x))
        return found.numpy()


class Point(nn.Module):
    """The unknowns as a model, whatever the data.

    Args:
        start: of them.
    """

    def __init__(self, start: tuple[float, ...]):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """The unknowns [1, n]."""
        return self.x[None]


def _broyden(update: str) -> Callable[[Counted], Any]:
    def run(counted: Counted) -> None:
        model, nothing = Point(counted.problem.start), torch.zeros(1, 1)
        objective = Objective(model, lambda x, _: counted.problem.squares(x[0]), (nothing, nothing))
        optimizer = SelfScaledBroyden(model.parameters(), update=update)
        for _ in range(STEPS):
            optimizer.step(objective)
            report = optimizer.report
            assert report is not None
            assert report.new_loss is not None
            counted.count += report.gradients - 1
            counted.look(report.new_loss)
            if not report.accepted and not report.restarted:
                return

    return run


def _scipy_bfgs(counted: Counted) -> Any:
    options = {"gtol": 1e-14, "maxiter": STEPS}
    return minimize(counted.with_gradient, counted.problem.start, jac=True, method="BFGS", options=options)


def _ours(counted: Counted) -> Any:
    return minimize_residuals(counted.residuals, counted.problem.start, counted.jacobian, max_nfev=STEPS)


def _scipy_lm(counted: Counted) -> Any:
    jacobian: Any = counted.jacobian
    return least_squares(counted.residuals, counted.problem.start, jacobian, method="lm", max_nfev=STEPS)


METHODS: dict[str, Callable[[Counted], Any]] = {
    '"broyden"': _broyden("broyden"),
    '"bfgs"': _broyden("bfgs"),
    '"unscaled_bfgs"': _broyden("unscaled_bfgs"),
    "SciPy BFGS": _scipy_bfgs,
    "`minimize_residuals`": _ours,
    "SciPy lm": _scipy_lm,
}


def measure(problem: Problem, method: Callable[[Counted], Any]) -> int | None:
    """Evaluations until a published minimum is reached; None where it is not."""
    counted = Counted(problem)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            method(counted)
        except Reached:
            return counted.count
    return None


def main() -> None:
    """Measure and print."""
    print("| problem | " + " | ".join(METHODS) + " |\n|---|" + "---|" * len(METHODS))
    rows = []
    for name, problem in PROBLEMS.items():
        rows.append([measure(problem, method) for method in METHODS.values()])
        print(f"| {name} | " + " | ".join("-" if each is None else f"{each:,}" for each in rows[-1]) + " |", flush=True)
    solved = [sum(each is not None for each in column) for column in zip(*rows, strict=True)]
    print(f"| **reached of {len(rows)}** | " + " | ".join(map(str, solved)) + " |")
    common = [row for row in rows if None not in row]
    totals = [int(np.median(column)) for column in zip(*common, strict=True)]
    print(f"| median of the {len(common)} that all reach | " + " | ".join(map(str, totals)) + " |")


if __name__ == "__main__":
    main()
