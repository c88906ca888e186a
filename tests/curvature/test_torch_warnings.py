"""What torch says about its own workings at our first use of them reaches nobody, in whatever category."""

import subprocess
import sys
import warnings

import pytest

from latephase.objective.kernels import quiet_forward_mode

PROGRAM = """
import torch
from torch import nn
from latephase import HessianFree, Objective

model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
objective = Objective(model, nn.MSELoss(), (torch.randn(8, 4), torch.randn(8, 3)))
optimizer = HessianFree(model.parameters())
for _ in range(3):
    optimizer.step(objective)
print(optimizer.report.method)
"""


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_forward_mode_is_quiet(category):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_forward_mode():
            warnings.warn("`torch.jit.script` is deprecated. Please switch to `torch.compile`.", category, stacklevel=1)
        with pytest.raises(UserWarning), quiet_forward_mode():
            warnings.warn("something else", stacklevel=1)


def test_steps_run_where_warnings_are_errors():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["traced"]
