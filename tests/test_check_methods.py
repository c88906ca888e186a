"""What `check` says of methods: who fits in memory, and that each number is a step's."""

import pytest
import torch
from torch import nn

from latephase import Direct, Objective, check
from latephase.diagnosis import methods


def checked(width=8, rows=30):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2)).double()
    return Objective(model, nn.MSELoss(), (torch.randn(rows, 3).double(), torch.randn(rows, 2).double()))


def table(report):
    return {name: (seconds, size, fits) for name, seconds, size, fits in report.finding("methods").value}


def test_each_method_has_seconds_and_bytes_and_fits():
    report = check(checked())
    found = table(report)
    assert list(found) == ["GaussNewton", "HessianFree", "L-BFGS", "SelfScaledBroyden"]
    assert all(0 < seconds < 60 for seconds, _, _ in found.values())
    assert all(fits for _, _, fits in found.values())
    size = report.parameters
    assert found["SelfScaledBroyden"][1] == 2 * 8 * size**2
    assert found["GaussNewton"][1] == Direct().plan(60, size, torch.float64).bytes
    assert found["HessianFree"][0] >= methods.ITERATIONS * report.seconds_per_product


def test_what_has_no_room_is_said(monkeypatch):
    monkeypatch.setattr(methods, "available", lambda device: 2 * 150_000)
    report = check(checked(width=30, rows=400))
    assert not table(report)["GaussNewton"][2]
    assert "which does not fit" in report.finding("methods").message
    assert "SelfScaledBroyden" not in table(report)


def test_without_rows_there_is_no_direct_solve():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    report = check(model, nn.MSELoss(), (torch.randn(20, 3).double(), torch.randn(20, 1).double()))
    assert report.finding("rows").severity == "note"
    assert list(table(report)) == ["HessianFree", "L-BFGS", "SelfScaledBroyden"]


@pytest.mark.parametrize("size", [10, methods.LARGEST_MATRIX + 1])
def test_a_dense_inverse_hessian_is_told_of_up_to_a_size(monkeypatch, size):
    monkeypatch.setattr(methods, "LARGEST_MATRIX", size)
    assert ("SelfScaledBroyden" in table(check(checked()))) == (size > 50)
