"""How the damping adapts: thresholds, factors, range and the model behind the reduction ratio, against dense models."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from dense_models import dense_model, flat, without_cross_blocks
from torch import nn

from flat_parts import parts
from latephase import CG, GGN, HessianFree, LevenbergMarquardt, Objective, layerwise
from latephase.optim.parts.report import StepStatus

DEFAULTS = {"thresholds": (0.25, 0.75), "factors": (2 / 3, 3 / 2)}


def cross_entropy(model, data, **options):
    return Objective(model, nn.CrossEntropyLoss(), data, **options)


def quadratic(x):
    """A function that is its own quadratic model, with curvatures 1, 2 and 4: the ratio is 1 wherever one stands."""
    return 0.5 * (x * x * torch.tensor([1.0, 2.0, 4.0], dtype=x.dtype)).sum(), x


def opposite(point):
    """-f of `quadratic` at the point: every step that lowers f raises it."""
    return Objective.from_forward(point, lambda: (-quadratic(point.x)[0], point.x))


def step_and_warnings(optimizer, *objectives):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(*objectives)
    return caught


@pytest.mark.parametrize("options", [
    {}, {"thresholds": (0.6, 0.95)}, {"thresholds": (0.9, 0.9)}, {"thresholds": (-5.0, 5.0)},
    {"factors": (0.1, 10.0)}, {"factors": (1.0, 2.0)}, {"factors": [0.5, 1.0]},
])  # fmt: skip
@pytest.mark.parametrize("kind", ["undamped", "damped"])
@pytest.mark.parametrize("blocks", [False, True])
def test_each_step_follows_the_dense_ratio(options, kind, blocks, toy):
    model, sizes = toy.network(3), [16, 15] if blocks else [31]
    groups = layerwise(model)
    groups[1]["damping_scale"] = 0.25
    scales = torch.tensor([1.0] * 16 + [0.25] * 15, dtype=torch.float64)
    optimizer = HessianFree(groups, **parts(damping=0.02, model=kind, blocks=blocks, **options))
    (low, high), (fall, rise) = (DEFAULTS | options).values() if options else DEFAULTS.values()
    seen = set()
    for seed in range(12):
        data = toy.batch(8, seed)
        other = data if seed % 2 else toy.batch(8, seed + 50)
        plain, used, twin = dense_model(model, F.cross_entropy, data), optimizer.damping, copy.deepcopy(model)
        before = float(F.cross_entropy(model(other[0]), other[1]).detach())
        start = flat(model)
        optimizer.step(cross_entropy(model, data), cross_entropy(model, other))
        report = optimizer.report
        assert report.damping == used
        expected = rise if report.reduction_ratio < low else fall if report.reduction_ratio > high else 1.0
        assert optimizer.damping == pytest.approx(used * expected, rel=1e-14)
        seen.add(expected)
        if not report.accepted:
            continue
        candidate = (flat(model) - start) / report.lr
        matrix = without_cross_blocks(plain.matrix, sizes)
        if kind == "damped":
            matrix = matrix + torch.diag(used * scales)
        nn.utils.vector_to_parameters(start + candidate, twin.parameters())
        change = float(F.cross_entropy(twin(other[0]), other[1]).detach()) - before
        predicted = plain.change(candidate, matrix)
        assert report.predicted_change == pytest.approx(predicted, rel=1e-6)
        assert report.reduction_ratio == pytest.approx(change / predicted, rel=1e-6, abs=1e-8)
    assert len(seen) > 1 or "thresholds" in options


def test_the_damped_ratio_is_higher(toy):
    ratios = []
    for kind in ("undamped", "damped"):
        model = toy.network()
        optimizer = HessianFree(model.parameters(), damping=LevenbergMarquardt(1.0, model=kind))
        optimizer.step(cross_entropy(model, toy.batch()))
        ratios.append(optimizer.report.reduction_ratio)
    assert ratios[1] > ratios[0] > 0


def test_the_damping_stays_in_its_range_and_says_when_it_arrives(function):
    """Down to the least, up to the greatest and down again: one warning at each arrival, and none while it stays."""
    point, objective = function(quadratic, 5.0, -4.0, 3.0)
    options = {"factors": (0.5, 2.0), "range": (0.1, 10.0), "lr": 0.01, "line_search": False}
    optimizer = HessianFree(point.parameters(), **parts(candidates="last", **options))
    dampings, arrivals = [], []
    for judge, steps in ((objective, 8), (opposite(point), 12), (objective, 11)):
        for _ in range(steps):
            caught = step_and_warnings(optimizer, objective, judge)
            dampings.append(optimizer.damping)
            if caught:
                assert len(caught) == 1
                assert caught[0].category is UserWarning
                assert "damping" in str(caught[0].message)
                arrivals.append(optimizer.damping)
    assert min(dampings) == 0.1
    assert max(dampings) == 10.0
    assert arrivals == [0.1, 10.0, 0.1]
    assert dampings[:8] == pytest.approx([0.5, 0.25, 0.125, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert dampings[8:20] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10, 10, 10])
    assert dampings[20:] == pytest.approx([5, 2.5, 1.25, 0.625, 0.3125, 0.15625, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_leaving_a_bound_and_coming_back_is_a_new_arrival(function):
    point, objective = function(quadratic, 5.0, -4.0, 3.0)
    options = {"factors": (0.5, 2.0), "range": (0.1, 10.0), "lr": 0.01, "line_search": False}
    optimizer = HessianFree(point.parameters(), **parts(damping=0.15, candidates="last", **options))
    counts = [
        len(step_and_warnings(optimizer, objective, judge))
        for judge in (objective, objective, opposite(point), objective, objective)
    ]
    assert counts == [1, 0, 0, 1, 0]


def test_a_damping_that_does_not_adapt_is_left_alone(toy):
    model = toy.network()
    options = {"range": (0.2, 0.4), "thresholds": (5.0, 6.0), "factors": (0.1, 10.0)}
    optimizer = HessianFree(model.parameters(), **parts(damping=0.3, fixed=True, **options))
    for seed in range(4):
        optimizer.step(cross_entropy(model, toy.batch(seed=seed)))
        assert optimizer.damping == optimizer.report.damping == 0.3


@pytest.mark.parametrize("accept", [True, False])
def test_a_change_within_rounding_leaves_the_damping(accept, function, unchanged):
    """f = 1e12 + small: its rounding is 1e-4, a predicted change of 1e-6 says nothing about the model."""
    point, objective = function(lambda x: (1e12 + 1e-6 * quadratic(x)[0], x), 0.3, -0.4, 0.5)
    optimizer = HessianFree(point.parameters(), curvature="hessian", damping=1e-7, line_search=not accept)
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step(objective)
        assert optimizer.damping == 1e-7
        assert math.isnan(optimizer.report.reduction_ratio)
        assert optimizer.report.status in (StepStatus.STATIONARY, StepStatus.TAKEN)
        assert optimizer.report.accepted == (optimizer.report.status == StepStatus.TAKEN)
        assert point.x.isfinite().all()


@pytest.mark.parametrize("options", [
    {}, {"line_search": False}, {"candidates": "last"}, {"blocks": True}, {"curvature": "hessian"},
    {"model": "damped"}, {"max_step_norm": 0.1},
])  # fmt: skip
def test_a_gradient_of_zero_leaves_everything(options, function, unchanged):
    point, objective = function(quadratic, 0.0, 0.0, 0.0)
    optimizer = HessianFree(point.parameters(), **parts(damping=0.7, **options))
    for _ in range(2):
        with unchanged(point):
            optimizer.step(objective)
        report = optimizer.report
        assert optimizer.damping == 0.7
        assert math.isnan(report.reduction_ratio)
        assert report.gradient_norm == report.step_norm == 0.0
        assert report.new_evaluation_loss == report.evaluation_loss == 0.0
        assert report.status in (StepStatus.STATIONARY, StepStatus.TAKEN)
    with torch.no_grad():
        point.x += 1
    optimizer.step(objective)
    assert optimizer.report.status == StepStatus.TAKEN
    assert point.x.norm() < 3**0.5


def test_at_the_end_of_a_quadratic_the_damping_does_not_run_away(function):
    """200 steps on a function that is solved after a few: ratios of rounding must not drive the damping up."""
    point, objective = function(lambda x: (quadratic(x)[0] + 3.0, x), 5.0, -4.0, 3.0)
    optimizer = HessianFree(point.parameters(), damping=1.0)
    for _ in range(200):
        optimizer.step(objective)
    assert optimizer.damping <= 1.0
    assert point.x.abs().max() < 1e-7  # rounding of f = 3 hides what is below 1e-8
    assert optimizer.report.status in (StepStatus.STATIONARY, StepStatus.TAKEN)


BAD = {
    "thresholds": [(0.75, 0.25), (0.25,), (0.1, 0.2, 0.3), 0.5, (math.nan, 0.75), ("a", "b"), None],
    "factors": [
        (1.5, 2 / 3), (0.5,), (0.0, 2.0), (-0.5, 2.0), (0.5, 0.9), (1.1, 2.0), 2.0, (0.5, math.nan), (0.5, math.inf),
        None,
    ],
    "range": [
        (1.0, 0.1), (1e-3,), (-1.0, 1.0), (math.nan, 1.0), (1e-3, math.nan), 1.0, ("0", "1"), None,
        (2.0, 3.0), (0.1, 0.5),  # the damping is 1
    ],
    "model": ["martens", None, True, 1.0],
    "structural_damping": [-0.1, math.nan, math.inf, "some", None],
    "max_step_norm": [0.0, -1.0, math.nan, "1"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_values_are_named(name, value, toy):
    with pytest.raises(ValueError, match=name):
        HessianFree(toy.network().parameters(), **parts(**{name: value}))


@pytest.mark.parametrize(("name", "value"), [
    ("damping", LevenbergMarquardt(thresholds=(0.1, 0.9))), ("damping", LevenbergMarquardt(range=(1e-3, 1e3))),
    ("damping", LevenbergMarquardt(model="damped")), ("curvature", GGN(structural_damping=0.1)),
    ("solver", CG(max_step_norm=1.0)), ("debias", True),
])  # fmt: skip
def test_the_options_are_global(name, value, toy, unchanged):
    model = toy.network()
    groups = layerwise(model)
    groups[1][name] = value
    with pytest.raises(ValueError, match=f"{name} must be the same"):
        HessianFree(groups)
    optimizer = HessianFree(model.parameters())
    optimizer.param_groups[0][name] = "nonsense"
    with unchanged(model, optimizer), pytest.raises(ValueError, match=name):
        optimizer.step(cross_entropy(model, toy.batch()))


@pytest.mark.parametrize("scale", [-1.0, math.nan, "1"])
def test_a_bad_damping_scale_is_named(scale, toy):
    model = toy.network()
    with pytest.raises(ValueError, match="damping_scale"):
        HessianFree([{"params": list(model.parameters()), "damping_scale": scale}])


def test_the_options_travel_with_the_state(toy):
    """A loaded optimizer goes on under the options of the one that was saved."""
    model = toy.network()
    options = {"thresholds": (0.4, 0.6), "factors": (0.3, 4.0), "range": (0.2, 3.0)}
    optimizer = HessianFree(model.parameters(), **parts(model="damped", max_step_norm=0.5, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step(cross_entropy(model, toy.batch()))
        twin = copy.deepcopy(model)
        other = HessianFree(twin.parameters())
        other.load_state_dict(optimizer.state_dict())
        for seed in range(4):
            optimizer.step(cross_entropy(model, toy.batch(seed=seed)))
            other.step(cross_entropy(twin, toy.batch(seed=seed)))
            assert other.damping == optimizer.damping
            assert torch.equal(flat(twin), flat(model))


def test_a_preconditioner_is_not_a_groups_own(toy):
    """One for all groups; a group that sets one of its own must not be passed over in silence."""
    groups = layerwise(toy.network())
    groups[1]["preconditioner"] = "empirical_fisher"
    with pytest.raises(TypeError, match=r"param group 1 of HessianFree: preconditioner is solver=CG\(preconditioner="):
        HessianFree(groups)
