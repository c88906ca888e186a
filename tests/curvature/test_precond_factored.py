"""Factored damping of K-FAC, against its definition on the dense factors."""

import pytest
import torch
from torch import nn

from latephase import Objective
from latephase.curvature import linearize
from latephase.curvature.preconditioners import Kronecker


def test_a_layers_block_is_the_product_of_the_damped_factors():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    data = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    curved = linearize(Objective(model, nn.MSELoss(), data, weight_decay=0.1))
    method = Kronecker(damping="factored")
    estimate = method.estimate(curved, [8])
    a, b = (
        vectors @ torch.diag(values) @ vectors.T
        for values, vectors in (
            (estimate[f"0.{name}.values"], estimate[f"0.{name}.vectors"]) for name in ("inputs", "slopes")
        )
    )
    # The mean squared error of linear outputs: both factors are known.
    extended = torch.cat([data[0], torch.ones(40, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(a, extended.T @ extended / 40)
    level = 0.1 + 0.3  # weight decay and damping
    pi = float((a.diagonal().mean() / b.diagonal().mean()).sqrt())
    damped_a = a + pi * level**0.5 * torch.eye(4, dtype=torch.float64)
    damped_b = b + level**0.5 / pi * torch.eye(2, dtype=torch.float64)
    r = torch.randn(8, dtype=torch.float64)
    matrix = torch.cat([r[:6].view(2, 3), r[6:].view(2, 1)], dim=1)
    expected = torch.linalg.inv(damped_b) @ matrix @ torch.linalg.inv(damped_a)
    found = method.inverse(estimate, 0.3, [8])(r)
    torch.testing.assert_close(found, torch.cat([expected[:, :3].reshape(-1), expected[:, 3]]))
    # Larger than exact damping: (B + x)(A + y) = BA + level + what is positive.
    exact = Kronecker(damping="exact").inverse(estimate, 0.3, [8])
    assert torch.dot(r, found) < torch.dot(r, exact(r))


def test_an_unknown_damping_is_named():
    with pytest.raises(ValueError, match="damping must be 'factored' or 'exact', got 'none'"):
        Kronecker(damping="none")
