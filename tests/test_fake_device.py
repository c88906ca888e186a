"""Steps on a device that is not the CPU, without one: what is made in the wrong place is an error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAST = ("step: HessianFree", "step: GaussNewton", "products: perceptron", "planted")
ROUNDING = 1e-13
"""Of the relative differences: both compute in float64 on the CPU, sums may be taken in another order."""


def differences(folder, *patterns):
    """The relative difference to the CPU, or the error, of each case."""
    here = Path(__file__).parent
    command = [sys.executable, here / "fake_device_cases.py", folder / "found.json", *patterns]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent / "src"), *sys.path[1:]])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def wrong(found):
    return {name: value for name, value in found.items() if not (isinstance(value, float) and value < ROUNDING)}


def test_steps_on_a_device_are_those_on_the_cpu(tmp_path):
    found = differences(tmp_path, *FAST)
    assert set(found) == set(FAST)
    assert "WrongDevice" in found.pop("planted")  # a tensor that is made in the wrong place does not pass
    assert wrong(found) == {}


@pytest.mark.slow
def test_every_optimizer_model_and_objective_on_a_device(tmp_path):
    found = differences(
        tmp_path, "step: *", "products: *", "on *", "chunks cut", "residuals: *", "points", "late phase", "check"
    )
    assert len(found) >= 29
    assert wrong(found) == {}
