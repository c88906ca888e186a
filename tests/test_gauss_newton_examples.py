"""The examples with Gauss-Newton steps run, and measure what they say they measure."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from latephase import Objective

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-W", "error", EXAMPLES / script, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(path: Path, quantity: str = "error") -> list[float]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line[quantity] for line in lines if quantity in line]


@pytest.mark.slow
def test_forces_end_below_first_order_steps(tmp_path):
    run("forces.py", "--out", tmp_path, "--time-limit", "6")
    ends = {name: measured(tmp_path / f"{name}.jsonl")[-1] for name in ("adam", "lbfgs", "gauss_newton")}
    assert len({measured(tmp_path / f"{name}.jsonl")[0] for name in ends}) == 1  # from the same parameters
    assert ends["gauss_newton"] < 0.1 * ends["adam"]  # after six seconds a hundredth in our runs
    assert (tmp_path / "forces.png").is_file()


@pytest.mark.slow
def test_an_image_is_learnt(tmp_path, monkeypatch):
    monkeypatch.delenv("LATEPHASE_DATA", raising=False)
    run("implicit_image.py", "--out", tmp_path, "--time-limit", "4", "--methods", "adam-0.003", "gauss_newton")
    for name in ("adam-0.003", "gauss_newton"):
        assert measured(tmp_path / f"{name}.jsonl", "psnr")[-1] > 20  # at the start it is 5 to 10
    assert (tmp_path / "implicit_image.png").is_file()


@pytest.mark.slow
def test_a_last_layer_comes_to_its_optimum(tmp_path, monkeypatch):
    monkeypatch.delenv("LATEPHASE_DATA", raising=False)
    run("last_layer.py", "--out", tmp_path, "--time-limit", "4")
    assert measured(tmp_path / "gauss_newton.jsonl")[-1] < 1e-9  # digits: a step takes some 50 ms
    assert measured(tmp_path / "lbfgs.jsonl")[-1] < 1e-3
    assert (tmp_path / "last_layer.png").is_file()


@pytest.mark.slow
def test_a_regression_prints_medians(tmp_path):
    if not os.environ.get("LATEPHASE_DATA"):
        pytest.skip("LATEPHASE_DATA is not set: it names the folder that holds uci/energy")
    text = run("regression.py", "--out", tmp_path, "--time-limit", "2", "--seeds", "0", "--activations", "tanh")
    assert "gauss_newton: " in text
    folder = tmp_path / "tanh"
    assert measured(folder / "gauss_newton-0.jsonl")[-1] < measured(folder / "adam-0.jsonl")[-1]
    assert (tmp_path / "tanh.png").is_file()


def test_forces_are_slopes_of_the_energy(load):
    forces = load("forces")
    torch.manual_seed(0)
    x = forces.clusters(2).double()
    found = forces.forces_of(forces.morse, x.clone()).detach().view_as(x)
    step = 1e-5  # central differences: errors of step^2, and of rounding over step, 1e-10 each
    for atom, axis in ((0, 0), (3, 2)):
        moved = torch.zeros_like(x)
        moved[:, atom, axis] = step
        slope = (forces.morse(x + moved) - forces.morse(x - moved)) / (2 * step)
        assert torch.allclose(found[:, atom, axis], -slope[:, 0], rtol=1e-7, atol=1e-7)
    nearest = forces.distances(x).min(dim=1).values
    assert bool(((nearest > 0.7) & (nearest < 1.3)).all())


def test_residuals_of_forces_vanish_where_the_model_is_the_truth(load):
    forces = load("forces")
    x = forces.clusters(3).double()

    class Truth(nn.Module):
        forward = staticmethod(forces.morse)

    assert not forces.energy_error(Truth(), (x, forces.morse(x))).any()
    true = forces.forces_of(forces.morse, x.clone()).detach()
    assert not forces.force_error(Truth(), (x.clone(), true)).detach().any()


def test_lbfgs_in_steps_comes_to_the_solution_of_a_linear_problem(load):
    torch.manual_seed(0)
    model = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    step = load("scipy_lbfgs").scipy_lbfgs(model, Objective(model, nn.MSELoss(), (x, y)))
    losses = [step()["loss"] for _ in range(40)]
    assert torch.allclose(model.weight.detach(), torch.linalg.lstsq(x, y).solution.T, atol=1e-7)
    assert nn.functional.mse_loss(model(x), y).item() == pytest.approx(min(losses), rel=1e-12)


def test_an_error_within_lbfgs_is_told_where_the_step_is_asked_for(load):
    def broken():
        raise ArithmeticError("no loss")

    step = load("scipy_lbfgs").scipy_lbfgs(nn.Linear(2, 1), broken)
    with pytest.raises(ArithmeticError, match="no loss"):
        step()


def test_an_image_without_data_is_grey(load):
    implicit_image = load("implicit_image")
    image = implicit_image.image(None)
    assert image.shape == (64, 64)
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert sum(p.numel() for p in implicit_image.network().parameters()) == 1185


def test_the_optimum_of_a_last_layer_has_no_gradient(load):
    last_layer = load("last_layer")
    torch.manual_seed(0)
    data = torch.randn(60, 32, dtype=torch.float64), torch.randint(10, (60,))
    optimum = last_layer.optimum_of(data)
    head = last_layer.new_head()
    objective = last_layer.objective_of(head, data)
    lbfgs = torch.optim.LBFGS(head.parameters(), max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        return objective()

    lbfgs.step(closure)
    # convex, with an L2 term of 1e-4: both are within some rounding of the one minimum
    assert optimum == pytest.approx(float(objective.value()), rel=1e-6)
    assert optimum <= float(objective.value()) + 1e-14
