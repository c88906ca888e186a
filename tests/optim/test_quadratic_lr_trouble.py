"""What quadratic learning rates do with rejected, non-finite and uphill steps, and with bad arguments."""

import copy
import math

import pytest
import torch
from quadratic_lr_bases import BASES, cross_entropy, steps
from torch import nn

from latephase import (
    SGDQLR,
    AdamQLR,
    DecreasingLoss,
    Fixed,
    HessianFree,
    LevenbergMarquardt,
    Objective,
    QuadraticLearningRate,
)
from latephase.optim import QuadraticStepStatus


@pytest.mark.parametrize("base", BASES)
def test_rejection_leaves_everything_bit_for_bit(base, toy, unchanged):
    model, data = toy.network(), toy.batch()
    model.append(nn.BatchNorm1d(3).double())
    optimizer = QuadraticLearningRate(
        BASES[base](model.parameters()), damping=DecreasingLoss(1e-3, factors=(0.5, 2.0)), lr_clip=1.0
    )
    optimizer.step(cross_entropy(model, data))
    for group in optimizer.param_groups:
        group |= {"amplification": 1e6}
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with unchanged(model):
        optimizer.step(cross_entropy(model, data))
    report = optimizer.report
    torch.testing.assert_close(optimizer.state_dict()["state"], before, rtol=0, atol=0)
    assert (report.status, report.accepted) == (QuadraticStepStatus.REJECTED, False)
    assert (report.lr, report.step_norm, report.new_loss) == (0.0, 0.0, report.loss)
    assert report.reduction_ratio is not None
    assert optimizer.damping == 2 * report.damping


def log_barrier(function, start):
    return function(lambda x: (x.log().sum(), x), start)


@pytest.mark.parametrize("rule", [LevenbergMarquardt(0.25), DecreasingLoss(0.25), Fixed(0.25)], ids=lambda r: r.kind)
def test_a_loss_that_is_not_finite_changes_nothing(rule, function, unchanged):
    point, objective = log_barrier(function, -1.0)
    optimizer = AdamQLR(point.parameters(), damping=rule)
    with unchanged(point):
        optimizer.step(objective)
    report = optimizer.report
    assert report.status == QuadraticStepStatus.NONFINITE
    assert (report.accepted, report.lr, report.step_norm, report.method) == (False, 0.0, 0.0, "none")
    assert not optimizer.state
    rises = {"levenberg_marquardt": 1.5, "decreasing_loss": 2.0, "fixed": 1.0}[rule.kind]
    assert optimizer.damping == 0.25 * rises
    assert report.reduction_ratio == (None if rule.kind == "fixed" else -math.inf)


def test_a_curvature_that_is_not_finite_changes_nothing(function, unchanged):
    point, objective = function(lambda x: (1e15 * (x @ x), x), 1.0, 2.0)  # d'Hd overflows float32
    point.float()
    optimizer = SGDQLR(point.parameters(), curvature="hessian")
    with unchanged(point):
        optimizer.step(objective)
    assert optimizer.report.status == QuadraticStepStatus.NONFINITE
    SGDQLR(point.parameters()).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("direction", [float("inf"), float("nan")])
def test_a_direction_that_is_not_finite_changes_nothing(direction, function, unchanged):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            for p in (p for group in self.param_groups for p in group["params"]):
                self.state[p]["steps"] = self.state[p].get("steps", 0) + 1
                p.fill_(direction if self.state[p]["steps"] == 2 else -1.0)

    point, objective = function(lambda x: (0.5 * x @ x, x), 1.0, 2.0)
    optimizer = QuadraticLearningRate(Broken(point.parameters(), lr=1.0), lr_clip=1e9)
    optimizer.step(objective)
    assert optimizer.report.accepted
    used = optimizer.damping
    with unchanged(point):
        optimizer.step(objective)
    assert optimizer.report.status == QuadraticStepStatus.NONFINITE
    assert optimizer.state[point.x]["steps"] == 1
    assert optimizer.damping == 2 * used


def test_a_rate_that_is_not_finite_changes_nothing(function, unchanged):
    point, objective = function(lambda x: (x.sum(), x), 1.0, 2.0)  # linear: no curvature at all
    optimizer = AdamQLR(point.parameters(), damping=Fixed(0.0), curvature="hessian")
    with unchanged(point):
        optimizer.step(objective)
    assert optimizer.report.status == QuadraticStepStatus.NONFINITE
    assert (optimizer.report.slope, optimizer.report.curvature) == (pytest.approx(2.0), 0.0)
    assert not optimizer.state
    optimizer = AdamQLR(point.parameters(), damping=Fixed(0.0), curvature="hessian", lr_clip=0.1)
    optimizer.step(objective)  # a clip makes an infinite rate finite
    assert (optimizer.report.status, optimizer.report.lr) == (QuadraticStepStatus.TAKEN, 0.1)


def test_a_stationary_point_is_left_alone(function, unchanged):
    point, objective = function(lambda x: (0.5 * x @ x, x), 0.0, 0.0)
    optimizer = AdamQLR(point.parameters())
    with unchanged(point):
        optimizer.step(objective)
    assert optimizer.report.status == QuadraticStepStatus.STATIONARY
    assert (optimizer.report.accepted, optimizer.damping) == (False, 1e-3)


def test_a_new_loss_that_is_not_finite(function, unchanged):
    point, objective = function(lambda x: ((x - x.log()).sum(), x), 3.0)
    start = copy.deepcopy(point)
    careful = SGDQLR(point.parameters(), damping=1e-3, curvature="hessian")
    with unchanged(point):
        careful.step(objective)
    assert careful.report.status == QuadraticStepStatus.REJECTED
    assert (careful.damping, careful.report.reduction_ratio) == (2e-3, pytest.approx(float("nan"), nan_ok=True))
    bold = SGDQLR(start.parameters(), damping=LevenbergMarquardt(1e-3), curvature="hessian")
    bold.step(Objective.from_forward(start, lambda: ((start.x - start.x.log()).sum(), start.x)))
    assert bold.report.status == QuadraticStepStatus.DIVERGED
    assert (bold.report.accepted, bold.damping) == (True, 1e-3)
    assert float(start.x.detach()) < 0


def test_negative_slope_and_curvature_are_statuses(function):
    point, objective = function(lambda x: (-0.5 * x @ x, x), 1.0, 2.0)
    optimizer = SGDQLR(point.parameters(), curvature="hessian", damping=Fixed(0.0))
    optimizer.step(objective)
    report = optimizer.report
    assert (report.status, report.accepted) == (QuadraticStepStatus.NEGATIVE_CURVATURE, True)
    assert (report.lr, report.curvature, report.slope) == (-1.0, -5.0, 5.0)
    saddle_free, objective = function(lambda x: (-0.5 * x @ x, x), 1.0, 2.0)
    optimizer = SGDQLR(saddle_free.parameters(), curvature="absolute_hessian", damping=Fixed(1.0))
    optimizer.damping = 0.0
    optimizer.step(objective)
    assert (optimizer.report.status, optimizer.report.lr) == (QuadraticStepStatus.NEGATIVE_CURVATURE, 1.0)
    uphill, objective = function(lambda x: (0.5 * x @ x, x), 1.0, 2.0)
    base = torch.optim.SGD(uphill.parameters(), lr=1.0, maximize=True)
    optimizer = QuadraticLearningRate(base, damping=Fixed(0.0))
    optimizer.step(objective)
    assert (optimizer.report.status, optimizer.report.lr) == (QuadraticStepStatus.NEGATIVE_SLOPE, -1.0)


def test_a_rate_out_of_hand_is_warned_of_once(function):
    point, objective = function(lambda x: (0.5e-8 * x @ x + x.sum(), x), 0.0, 0.0)
    optimizer = SGDQLR(point.parameters(), curvature="hessian", damping=Fixed(0.0))
    with pytest.warns(UserWarning, match="Set lr_clip") as caught:
        optimizer.step(objective)
    assert caught[0].filename == __file__
    steps(optimizer, objective, 2)  # a second warning would be an error
    clipped, objective = function(lambda x: (0.5e-8 * x @ x + x.sum(), x), 0.0, 0.0)
    options = {"curvature": "hessian", "damping": Fixed(0.0)}
    steps(SGDQLR(clipped.parameters(), lr_clip=1e6, **options), objective, 2)


def test_a_loss_without_curvature_is_warned_of(toy):
    model, (inputs, _) = toy.network(), toy.batch()
    optimizer = AdamQLR(model.parameters())
    objective = Objective(model, nn.L1Loss(), (inputs, torch.ones_like(model(inputs)).detach()))
    with pytest.warns(UserWarning, match="no curvature along the direction.*nn.HuberLoss"):
        optimizer.step(objective)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "must be a torch.optim.Optimizer, got list"),
        (torch.optim.LBFGS, "LBFGS.step needs closure"),
        (HessianFree, "HessianFree.step needs objective"),
        (AdamQLR, "AdamQLR.step needs objective"),
        (torch.optim.Rprop, "Rprop cannot be the base: its step is no multiple of lr"),
    ],
)
def test_what_cannot_be_a_base(make, message, toy):
    with pytest.raises(TypeError, match=message):
        QuadraticLearningRate(make(list(toy.network().parameters())))


def test_a_base_with_options_of_the_same_names_is_refused(toy):
    class Damped(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=1.0)
            self.defaults["damping"] = 1.0

    with pytest.raises(TypeError, match="by the name damping"):
        QuadraticLearningRate(Damped(toy.network().parameters()))
    with pytest.raises(ValueError, match="must be above 0"):
        QuadraticLearningRate(torch.optim.SGD(toy.network().parameters(), lr=0.0))


@pytest.mark.parametrize(
    "option",
    [
        {"curvature": "fisher"},
        {"damping": -1.0},
        {"damping": float("inf")},
        {"damping": "large"},
        {"damping": {"factors": (2.0, 0.5)}},
        {"damping": {"range": (1.0, 0.0)}},
        {"damping": {"model": "biased"}},
        {"damping": {"kind": "kfac"}},
        {"lr_clip": 0.0},
        {"lr_clip": -1.0},
        {"lr_clip": math.nan},
        {"amplification": 0.0},
    ],
    ids=str,
)
def test_bad_options_are_named(option, toy):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=next(iter(value)) if isinstance(value, dict) else name):
        AdamQLR(toy.network().parameters(), **option)


@pytest.mark.parametrize("option", ["damping", "lr_clip", "amplification"])
def test_a_number_that_is_none_is_told_before_groups_are_compared(option, toy):
    """Not a number is not even the same as itself."""
    groups = [{"params": [p]} for p in toy.network().parameters()]
    with pytest.raises(ValueError, match="must be a finite number >= 0, got nan"):
        AdamQLR(groups, **{option: math.nan})


@pytest.mark.parametrize(
    ("option", "now"),
    [
        ({"damping_factors": (0.5, 2.0)}, r'damping={"factors": \(0.5, 2.0\)}, .* damping=LevenbergMarquardt\(factors'),
        ({"damping_factors": None}, r"damping=Fixed\(...\)"),
        ({"damping_range": (0.1, 2.0)}, r'damping={"range": \(0.1, 2.0\)}'),
        ({"reduction_ratio": "undamped"}, r'damping={"model": \'undamped\'}'),
        ({"damping_rule": "ratio"}, r"damping=LevenbergMarquardt\(...\)"),
        ({"damping_rule": "decreasing_loss"}, r"damping=DecreasingLoss\(...\)"),
        ({"absolute_curvature": True}, 'curvature="absolute_hessian"'),
        ({"curvature_ema": 0.5}, "curvature_ema is there no more"),
        ({"step_clip": None}, "step_clip is there no more"),
        ({"lambda0": 1.0}, "has no option 'lambda0'; there are curvature, damping, lr_clip, amplification"),
    ],
    ids=str,
)
def test_options_of_a_former_release_are_errors_that_say_what_is_there_now(option, now, toy):
    parameters = list(toy.network().parameters())
    for make in (AdamQLR, SGDQLR, lambda p, **o: QuadraticLearningRate(torch.optim.SGD(p, lr=1.0), **o)):
        with pytest.raises(TypeError, match=now):
            make(parameters, **option)
    if "lambda0" not in option:
        with pytest.raises(TypeError, match=f"a param group of AdamQLR: .*{now}"):
            AdamQLR([{"params": parameters, **option}])
        with pytest.raises(TypeError, match=f"a param group of AdamQLR: .*{now}"):
            AdamQLR(parameters[:1]).add_param_group({"params": parameters[1:], **option})


def test_options_are_global_and_a_second_wrapping_replaces_them(toy):
    model, data = toy.network(), toy.batch()
    with pytest.raises(ValueError, match="damping must be the same in all param groups"):
        AdamQLR([{"params": [model[0].weight], "damping": 1.0}, {"params": [model[0].bias]}])
    base = torch.optim.Adam(model.parameters(), lr=0.1)
    steps(QuadraticLearningRate(base, damping=1.0), cross_entropy(model, data), 2)
    again = QuadraticLearningRate(base, damping=0.3, lr_clip=0.2)
    assert (again.damping, again.param_groups[0]["lr_clip"]) == (0.3, 0.2)
