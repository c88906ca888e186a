"""What all second-order optimizers do with their damping alike: bounds, ratios that say nothing, steps that fail."""

import math

import pytest
import torch
from torch import nn

from latephase import KFAC, SGDQLR, AdamQLR, DecreasingLoss, Fixed, HessianFree, LevenbergMarquardt, Objective
from latephase.optim import SecondOrderReport

OPTIMIZERS = {
    "HessianFree": HessianFree,
    "KFAC": lambda params, **options: KFAC(params, adapt_period=1, **options),
    "AdamQLR": AdamQLR,
    "SGDQLR": SGDQLR,
}
every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


@every
@pytest.mark.parametrize(("high", "expected"), [(1.0, 0.5), (0.3, 0.3)])
@pytest.mark.filterwarnings("ignore:the damping has arrived at the upper bound")
def test_something_not_finite_raises_it_up_to_its_bound(make, high, expected, function, unchanged):
    point, objective = function(lambda x: (x.log().sum(), x), -1.0)
    optimizer = make(point.parameters(), damping=LevenbergMarquardt(0.25, factors=(0.5, 2.0), range=(0.1, high)))
    with unchanged(point):
        optimizer.step(objective)
    report = optimizer.report
    assert (report.status, report.accepted, report.damping) == ("nonfinite", False, 0.25)
    assert (report.reduction_ratio, report.step_norm, report.lr) == (-math.inf, 0.0, 0.0)
    assert optimizer.damping == expected


@every
def test_a_prediction_within_the_rounding_of_the_loss_says_nothing(make, function):
    # A unit of rounding of 1e9 is 1.2e-7; the model predicts less than 2e-8.
    point, objective = function(lambda x: (1e9 + 0.5 * x @ x, x), 1e-4, 1e-4)
    optimizer = make(point.parameters(), damping=LevenbergMarquardt(1.0))
    optimizer.step(objective)
    assert math.isnan(optimizer.report.reduction_ratio)
    assert optimizer.damping == 1.0


@every
@pytest.mark.parametrize("damping", [Fixed(0.25), Fixed(0.0), LevenbergMarquardt(0.0)], ids=str)
def test_what_is_fixed_or_zero_stays(make, damping, toy):
    model = toy.network()
    optimizer = make(model.parameters(), damping=damping, **({"lr_clip": 0.1} if make in (AdamQLR, SGDQLR) else {}))
    for _ in range(3):
        optimizer.step(Objective(model, nn.CrossEntropyLoss(), toy.batch()))
        assert optimizer.damping == damping.initial
    optimizer.damping = 0.5
    assert optimizer.damping == 0.5


@every
@pytest.mark.filterwarnings("ignore:the damping has arrived at the lower bound")
def test_a_good_prediction_lowers_it_to_its_bound(make, function):
    """The model of a quadratic is exact, so that the ratio without the damping is one."""
    point, objective = function(lambda x: (0.5 * x @ x, x), 1.0, 2.0)
    rule = LevenbergMarquardt(1.0, factors=(0.5, 2.0), range=(0.3, 2.0))
    optimizer = make(point.parameters(), damping=rule)
    found = []
    for _ in range(3):
        optimizer.step(objective)
        assert optimizer.report.reduction_ratio == pytest.approx(1.0, rel=1e-6)
        found.append(optimizer.damping)
    assert found == [0.5, 0.3, 0.3]


@every
def test_reports_have_one_base(make, toy):
    model = toy.network()
    optimizer = make(model.parameters())
    optimizer.step(Objective(model, nn.CrossEntropyLoss(), toy.batch()))
    assert isinstance(optimizer.report, SecondOrderReport)
    row = optimizer.report.as_dict()
    of_ranks = {"collectives", "collective_bytes"}  # which there is one of
    assert set(SecondOrderReport.__dataclass_fields__) - of_ranks <= set(row)
    assert set(row) == set(type(optimizer.report).__dataclass_fields__) - of_ranks
    assert {type(value) for value in row.values()} <= {int, float, bool, str, list, type(None)}
    assert (row["status"], row["accepted"]) == ("taken", True)


@pytest.mark.parametrize("make", [HessianFree, KFAC])
def test_a_rule_of_others_is_refused(make):
    with pytest.raises(ValueError, match=r"or a part: LevenbergMarquardt\(...\).* or \w+\(...\); got DecreasingLoss"):
        make([torch.zeros(2, requires_grad=True)], damping=DecreasingLoss())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("initial", -1.0), ("initial", math.inf), ("initial", math.nan), ("factors", (2.0, 3.0)),
        ("factors", (0.0, 2.0)), ("factors", 0.5), ("range", (1.0, 0.0)), ("range", (-1.0, 0.0)), ("model", "both"),
    ],
)  # fmt: skip
def test_bad_fields_of_the_decreasing_loss_are_named(field, value):
    with pytest.raises(ValueError, match=rf"DecreasingLoss\.{field} must be"):
        DecreasingLoss(**{field: value})
    with pytest.raises(ValueError, match=r"DecreasingLoss\.initial must be in its range"):
        DecreasingLoss(1.0, range=(2.0, 3.0))
