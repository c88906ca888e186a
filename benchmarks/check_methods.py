"""What `latephase.check` says that steps take, beside what they take: python benchmarks/check_methods.py.

For each physics-informed problem at its size for a CPU, in float64 on one thread, seconds of a step as foretold and as
measured (median of ten after three), and their ratio. Give names of problems to look at those alone.
"""

import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from latephase import CG, GaussNewton, HessianFree, SelfScaledBroyden, check
from latephase.diagnosis.methods import ITERATIONS
from latephase.problems import get

PROBLEMS: dict[str, dict[str, Any]] = {
    **{f"pinn_{name}": {} for name in ("poisson2d", "poisson5d", "poisson10d", "helmholtz", "heat1d", "heat4d")},
    **{f"pinn_{name}": {} for name in ("burgers", "allen_cahn", "kdv")},
    **{f"pinn_{name}": {"width": 32, "points": 2000} for name in ("convection", "reaction", "wave")},
}
MAKES: dict[str, Callable[[Any], Any]] = {
    "GaussNewton": GaussNewton,
    "HessianFree": functools.partial(HessianFree, solver=CG(max_iter=ITERATIONS, tolerance=0.0)),
    "SelfScaledBroyden": SelfScaledBroyden,
}


def main() -> None:
    """Print a line for each problem and method."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    names = sys.argv[1:] or list(PROBLEMS)
    for name in names:
        torch.manual_seed(0)
        problem = get(name, **PROBLEMS[name])
        model = problem.model()
        objective = problem.objective(model, problem.batch(problem.load().train))
        finding = check(objective).finding("methods")
        foretold = {} if finding is None else {method: (seconds, fits) for method, seconds, _, fits in finding.value}
        for method, make in MAKES.items():
            seconds = measured(make(list(model.parameters())), objective)
            told, fits = foretold[method]
            print(f"{name:18} {method:18} {1e3 * told:8.1f} ms {1e3 * seconds:8.1f} ms {told / seconds:6.2f} {fits}")


def measured(optimizer: Any, objective: Any) -> float:
    """Median seconds of a step."""
    found = []
    for turn in range(13):
        started = time.process_time()
        optimizer.step(objective)
        if turn >= 3:
            found.append(time.process_time() - started)
    return statistics.median(found)


if __name__ == "__main__":
    main()
