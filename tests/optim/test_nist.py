"""NIST's certified nonlinear regressions, with the default options; the formulas are those of the benchmark."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latephase import minimize_residuals

FOLDER = Path(os.environ.get("LATEPHASE_DATA", "absent")) / "nist_strd"
SOURCE = Path(__file__).parents[2] / "benchmarks" / "nist_problems.py"
specification = importlib.util.spec_from_file_location("nist_problems", SOURCE)
nist = importlib.util.module_from_spec(specification)
sys.modules["nist_problems"] = nist  # dataclasses look their module up
specification.loader.exec_module(nist)
DIGITS = 6
SENSITIVE = ("MGH17",)
"""From the first start the path to its minimum is long, and rounding decides whether it is found."""
DATA = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs nist_strd/*.dat of NIST in LATEPHASE_DATA")


def digits(name, start, differences):
    problem = nist.read(FOLDER, name)
    beyond = name in nist.BEYOND_FLOAT64
    if beyond and not nist.EXTENDED:
        pytest.skip("NumPy's long double is float64 here, which does not hold the data's digits")
    with np.errstate(all="ignore"):
        if differences or beyond:
            function = problem.extended_residuals if beyond else problem.residuals
            found = minimize_residuals(function, problem.starts[start], jac=None if differences else problem.jacobian)
        else:
            found = minimize_residuals(problem.tensor_residuals(), torch.tensor(problem.starts[start]))
    return problem.digits(2 * found.cost), found


@DATA
@pytest.mark.parametrize("name", nist.MODELS)
def test_the_second_start_leads_to_the_certified_sum_of_squares(name):
    for differences in (False, True):
        correct, found = digits(name, 1, differences)
        assert correct >= DIGITS
        assert found.success


@DATA
@pytest.mark.parametrize("name", [name for name in nist.MODELS if name not in SENSITIVE])
def test_the_first_start_leads_to_the_certified_sum_of_squares(name):
    correct, found = digits(name, 0, False)
    assert correct >= DIGITS
    assert found.success


@DATA
@pytest.mark.parametrize("name", nist.MODELS)
def test_the_formulas_are_those_of_the_certified_values(name):
    problem = nist.read(FOLDER, name)
    squares = float(np.sum(problem.residuals(problem.certified) ** 2))
    if name in nist.BEYOND_FLOAT64:  # parameters to eleven digits make residuals of 1e-11, above the certified 1e-13
        assert squares < 1e-20
    else:
        assert problem.digits(squares) >= 9
