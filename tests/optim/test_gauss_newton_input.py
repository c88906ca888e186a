"""What can be wrong with a Gauss-Newton step's residuals: named with term, row and remedy, and nothing is changed."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latephase import GaussNewton, Objective, check

POINTS = torch.rand(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def values(model: nn.Module, x: Tensor) -> Tensor:
    return model(x) - 1


def centred(model: nn.Module, x: Tensor) -> Tensor:
    u = model(x)
    return u - u.mean()


def neighbours(model: nn.Module, x: Tensor) -> Tensor:
    u = model(x)
    return u - u.roll(1, 0)


class Growing:
    """Residuals of which there are more at every call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        self.calls += 1
        return model(x).expand(-1, self.calls).contiguous()


class Root:
    """Not a number at one row once the parameters have moved."""

    def __init__(self, model: nn.Module, row: int):
        self.start, self.row = [p.detach().clone() for p in model.parameters()], row

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        moved = sum((p.detach() - own).abs().sum() for p, own in zip(model.parameters(), self.start, strict=True))
        shift = torch.zeros(len(x), 1, dtype=x.dtype)
        shift[self.row] = moved
        return model(x) + (-shift).sqrt()


@pytest.mark.parametrize("function", [centred, neighbours])
def test_a_function_that_mixes_rows_is_named(function, unchanged):
    model = network()
    objective = Objective.from_residuals(model, {"a": (values, POINTS), "flux": (function, POINTS)})
    optimizer, words = GaussNewton(model.parameters()), "residuals of term 'flux' at a point depend on other points"
    with (
        unchanged(model, optimizer),
        pytest.raises(ValueError, match=words),
    ):
        optimizer.step(objective)
    finding = check(objective).finding("rows")
    assert finding.severity == "note"
    assert words in finding.message


def test_residuals_of_varying_shape_are_named(unchanged):
    model = network()
    function = Growing()
    objective = Objective.from_residuals(model, {"a": (values, POINTS), "g": (function, POINTS)})
    optimizer = GaussNewton(model.parameters())
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"term 'g' returns residuals of shape \[9, \d\]"):
        optimizer.step(objective)
    report = check(objective)
    assert not report.ok
    assert any("term 'g' returns residuals of shape" in finding.message for finding in report.findings)


def test_points_that_are_no_numbers_are_named_with_their_row(unchanged):
    """Those of a later draw, and such as were written into the points."""
    model, points = network(), POINTS.clone()
    objective = Objective.from_residuals(model, {"a": (values, POINTS), "b": (values, points)})
    optimizer = GaussNewton(model.parameters())
    optimizer.step(objective)
    spoiled = POINTS.clone()
    spoiled[5, 1] = math.nan
    with pytest.raises(ValueError, match=r"points of term 'b' are not finite in 1 rows.* row 5"):
        objective.on({"b": spoiled})
    points[3, 0] = math.inf
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"term 'b'.* row 3"):
        optimizer.step(objective)
    finding = check(objective).finding("data")
    assert finding.severity == "defect"
    assert "['b']" in finding.message
    assert "row 3" in finding.message


def test_residuals_that_become_no_numbers_end_no_training(unchanged):
    """At a trial point the damping rises; where all are, the step is rejected and says so."""
    model = network()
    objective = Objective.from_residuals(model, {"a": (values, POINTS), "b": (Root(model, 4), POINTS)})
    optimizer = GaussNewton(model.parameters(), damping=0.1)
    with unchanged(model):
        optimizer.step(objective)
    assert optimizer.report.status == "line_search_failed"
    assert optimizer.damping > 0.1


def test_residuals_that_are_no_numbers_here_are_named(unchanged):
    model = network()
    objective = Objective.from_residuals(model, {"a": (values, POINTS), "b": (Root(model, 4), POINTS)})
    with torch.no_grad():
        model[0].bias.add_(0.1)
    optimizer = GaussNewton(model.parameters())
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"term 'b' are not finite at 1 points.* row 4"):
        optimizer.step(objective)
    finding = check(objective).finding("loss")
    assert finding.severity == "defect"
    assert "residuals of term 'b' are not finite at 1 points, the first in row 4" in finding.message


@pytest.mark.parametrize(
    ("terms", "options", "words"),
    [
        ({"a": (values, POINTS[:0])}, {}, "term 'a' has no points"),
        ({"a": (values, POINTS), "b": (values, POINTS[:0])}, {}, "term 'b' has no points"),
        ({"a": (values, POINTS)}, {"weights": {"b": 2.0}}, "given for 'b', but the terms are 'a'"),
        ({"a": (values, (10 * POINTS).long())}, {}, "points of term 'a' are torch.int64"),
    ],
)
def test_what_an_objective_refuses_reaches_no_step(terms: Any, options: Any, words: str):
    with pytest.raises((TypeError, ValueError), match=words):
        Objective.from_residuals(network(), terms, **options)


def test_a_loss_without_rows_says_what_to_take(unchanged):
    model = network()
    optimizer = GaussNewton(model.parameters())
    objective = Objective(model, lambda outputs, targets: (outputs - targets).abs().mean(), (POINTS, POINTS[:, :1]))
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"no root of the Hessian .* no rows"):
        optimizer.step(objective)


def test_batch_norm_in_training_mode_is_named(unchanged):
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = GaussNewton(model.parameters())
    objective = Objective(model, nn.MSELoss(), (POINTS, POINTS[:, :1]))
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"batch norm '1' .* eval mode"):
        optimizer.step(objective)
    assert "batch norm '1'" in check(objective).finding("rows").message
