"""Products through torch.compile: the same numbers with a compiler, a clear message and the same numbers without."""

import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import sys, warnings
import torch
from torch import nn
from latephase import GGN, HessianFree, Objective
from latephase.curvature import linearize

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
objective = Objective(model, nn.CrossEntropyLoss(), (torch.randn(16, 4).double(), torch.randint(3, (16,))))
v = torch.randn(67, dtype=torch.float64)
expected = linearize(objective, method="double_backward").matvec(v)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        product = linearize(objective, method="traced", compile=True).matvec(v)
    print([str(w.message) for w in caught if "torch.compile failed" in str(w.message)])
    optimizer = HessianFree(model.parameters(), curvature=GGN(compile=True))
    for _ in range(3):
        optimizer.step(objective)
print(float((product - expected).norm() / expected.norm()), optimizer.report.method, optimizer.report.accepted)
"""


def run(folder, **environment):
    variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder)} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    warned, result = done.stdout.strip().splitlines()[-2:]
    error, method, accepted = result.split()
    assert float(error) < 1e-12  # a sum of 16 rows in another order
    assert (method, accepted) == ("traced", "True")
    return warned


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_product_is_the_same(tmp_path):
    assert run(tmp_path) == "[]"


def test_without_a_compiler_products_run_uncompiled_and_a_warning_says_so(tmp_path):
    warned = run(tmp_path, CXX=str(tmp_path / "no-compiler"))
    assert warned.count("torch.compile failed") == 1
    assert "products run uncompiled" in warned
    assert "compiler" in warned
