"""Where a model stands, against dense matrices in float64."""

import pytest
import torch
from torch import nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.finishing.certificate import certify


@pytest.fixture
def objective():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(40, 3).double(), torch.randn(40, 2).double()
    return Objective(model, nn.MSELoss(), (inputs, targets), weight_decay=0.01)


def dense(objective):
    curved = linearize(objective)
    size = curved.space.size
    return curved, torch.stack([curved.matvec(row) for row in torch.eye(size, dtype=torch.float64)])


def test_numbers_are_those_of_the_dense_matrix(objective):
    """26 parameters: 30 products span the whole Krylov space, up to rounding in small Ritz values."""
    curved, matrix = dense(objective)
    found = certify(objective)
    gradient = curved.gradient
    values = torch.linalg.eigvalsh(matrix)
    assert found.rows == 40
    assert found.loss == pytest.approx(float(curved.loss), rel=1e-14)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-14)
    exact = float(gradient @ torch.linalg.solve(matrix, gradient)) ** 0.5
    assert found.decrement == pytest.approx(exact, rel=1e-8)
    assert found.highest == pytest.approx(float(values[-1]), rel=1e-10)
    assert found.lowest == pytest.approx(float(values[0]), rel=1e-6)


def test_fewer_products_give_a_lower_bound(objective, monkeypatch):
    exact = certify(objective).decrement
    bounds = []
    for products in (1, 3, 6):
        monkeypatch.setattr("latephase.finishing.certificate.PRODUCTS", products)
        bounds.append(certify(objective).decrement)
    assert bounds == sorted(bounds)
    assert bounds[-1] <= exact * (1 + 1e-12)
    assert bounds[0] > 0


def test_at_a_stationary_point_there_is_nothing_to_gain():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    objective = Objective(model, nn.MSELoss(), (torch.ones(3, 2).double(), torch.zeros(3, 1).double()))
    found = certify(objective)
    assert (found.gradient_norm, found.decrement) == (0.0, 0.0)


def test_the_model_is_as_it_was(objective):
    before = [p.detach().clone() for p in objective.model.parameters()]
    certify(objective)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.model.parameters(), strict=True))
    assert "Newton decrement at least" in str(certify(objective))
