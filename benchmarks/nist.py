"""`minimize_residuals` and SciPy's `least_squares` on NIST's certified nonlinear regressions, from both starts.

    OMP_NUM_THREADS=1 LATEPHASE_DATA=FOLDER python benchmarks/nist.py --out benchmarks/results

The folder holds nist_strd/*.dat. Everybody has its default options, but for the number of evaluations, which is that of
`minimize_residuals` for all. Counted are the digits of the residual sum of squares that agree with the certified ones.
`nist.json` has all numbers; the table of docs/least_squares.md is printed.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from nist_problems import BEYOND_FLOAT64, EXTENDED, MODELS, Regression, read
from scipy.optimize import least_squares

import latephase
from latephase import minimize_residuals

ENOUGH = 6
"""Digits that count as solved."""
PER_UNKNOWN = 1000
"""Evaluations per unknown, for all."""
Method = Callable[[Regression, np.ndarray], Any]


def _residuals(problem: Regression) -> Callable[[np.ndarray], np.ndarray]:
    beyond = problem.name in BEYOND_FLOAT64 and EXTENDED
    return problem.extended_residuals if beyond else problem.residuals


def _ours(problem: Regression, start: np.ndarray) -> Any:
    if problem.name in BEYOND_FLOAT64 and EXTENDED:
        return minimize_residuals(problem.extended_residuals, start, jac=problem.jacobian)
    return minimize_residuals(problem.tensor_residuals(), torch.tensor(start))


def _ours_differences(problem: Regression, start: np.ndarray) -> Any:
    return minimize_residuals(_residuals(problem), start)


def _scipy(method: str, exact: bool) -> Method:
    def run(problem: Regression, start: np.ndarray) -> Any:
        options: dict[str, Any] = {"jac": problem.jacobian} if exact else {}
        limit = PER_UNKNOWN * len(start)
        return least_squares(_residuals(problem), start, method=method, max_nfev=limit, **options)

    return run


METHODS: dict[str, Method] = {
    "latephase, exact": _ours,
    "latephase, differences": _ours_differences,
    "SciPy lm, exact": _scipy("lm", True),
    "SciPy lm": _scipy("lm", False),
    "SciPy trf, exact": _scipy("trf", True),
    "SciPy trf": _scipy("trf", False),
}


def measure(problem: Regression, start: int, name: str) -> dict[str, Any]:
    """One method from one start."""
    record: dict[str, Any] = {"problem": problem.name, "start": start + 1, "method": name}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = METHODS[name](problem, problem.starts[start])
        except ValueError as error:  # SciPy: residuals or a Jacobian that are not finite
            return {**record, "digits": 0.0, "error": str(error)}
    squares = 2 * float(found.cost)
    numbers = {"squares": squares, "digits": round(problem.digits(squares), 2), "status": int(found.status)}
    return {**record, **numbers, "nfev": int(found.nfev), "njev": None if found.njev is None else int(found.njev)}


def table(records: list[dict[str, Any]]) -> str:
    """Digits from the first and the second start, by problem and method, as Markdown."""
    found = {(r["problem"], r["start"], r["method"]): r for r in records}
    lines = ["| problem | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]

    def cell(problem: str, method: str) -> str:
        digits = [found[problem, start, method]["digits"] for start in (1, 2)]
        return ", ".join(f"{d:.1f}" if d >= ENOUGH else f"**{d:.1f}**" for d in digits)

    lines += [f"| {name} | " + " | ".join(cell(name, method) for method in METHODS) + " |" for name in MODELS]
    counts = [", ".join(str(solved(records, method, start)) for start in (1, 2)) for method in METHODS]
    return "\n".join([*lines, "| **solved of 27** | " + " | ".join(counts) + " |"])


def solved(records: list[dict[str, Any]], method: str, start: int) -> int:
    """How many problems a method has solved from a start."""
    return sum(r["digits"] >= ENOUGH for r in records if r["method"] == method and r["start"] == start)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of nist.json")
    out = parser.parse_args().out
    folder = Path(os.environ["LATEPHASE_DATA"]) / "nist_strd"
    problems = [read(folder, name) for name in MODELS]
    records = [measure(problem, start, method) for problem in problems for start in (0, 1) for method in METHODS]
    versions = {"latephase": latephase.__version__, "scipy": scipy.__version__, "torch": torch.__version__}
    contents = {"versions": {**versions, "numpy": np.__version__}, "extended": EXTENDED, "runs": records}
    lines = ",\n  ".join(json.dumps(record) for record in records)
    head = json.dumps({name: contents[name] for name in ("versions", "extended")}, indent=1)[:-2]
    (out / "nist.json").write_text(f'{head},\n "runs": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    main()
