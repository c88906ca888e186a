"""What becomes of a step: candidates worse than staying, failing line searches, limits of its length, its status."""

import copy
import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from dense_models import cg, dense_model, flat
from torch import nn
from torch.optim import lr_scheduler

from flat_parts import parts
from latephase import CG, Fixed, HessianFree, LevenbergMarquardt, Objective, layerwise
from latephase.optim.parts.report import StepStatus
from latephase.solve import CGStatus

LAST = {"candidates": "last", "line_search": False, "fixed": True}


def cross_entropy(model, data, **options):
    return Objective(model, nn.CrossEntropyLoss(), data, **options)


def opposite(model, data):
    return Objective(model, lambda outputs, targets: -F.cross_entropy(outputs, targets), data)


def normalized():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


# ---------------------------------------------------------------------------------------------------------------------
# Candidates that are worse than staying

EIGENVALUES = torch.tensor([1.0, 3.0, 6.0, 10.0], dtype=torch.float64)
START = (0.1, -0.2, 0.15, 0.1)


def table(function, values, staying):
    """A quadratic objective, and an evaluation loss that is `values[i]` near candidate i and `staying` at the start.

    The candidates are the iterates 1, 2, ... of plain conjugate gradients with damping 1, one for each value.
    """
    point, objective = function(lambda x: (0.5 * (EIGENVALUES * x * x).sum(), x), *START)
    start = point.x.detach().clone()
    steps = cg(torch.diag(EIGENVALUES + 1.0), -EIGENVALUES * start, len(values))
    places = torch.stack([start + step for step in steps])
    losses = torch.tensor([staying, *values], dtype=torch.float64)
    nearest = lambda: losses[(places - point.x).norm(dim=1).argmin()]  # noqa: E731
    return point, objective, Objective.from_forward(point, lambda: (nearest() + 0.0 * point.x.sum(), point.x)), places


OPTIONS = {"damping": 1.0, "stopping": "residual", "tolerance": 0.0}


@pytest.mark.parametrize("line_search", [False, True])
@pytest.mark.parametrize(("values", "chosen"), [
    ([0.5, 5.0, 6.0], 1), ([0.5, 6.0, 5.0], 1), ([0.9, 0.5, 6.0, 5.0], 2), ([0.1, 0.9, 0.5, 6.0], 3),
    ([0.5, math.nan, 3.0, math.inf], 1), ([0.5, 0.8, 0.7], 3), ([5.0, 0.5, 0.7], 2),
])  # fmt: skip
def test_walking_back_passes_what_is_worse_than_staying(values, chosen, line_search, function):
    point, objective, evaluation, places = table(function, values, 1.0)
    optimizer = HessianFree(point.parameters(), **parts(line_search=line_search, max_iter=len(values), **OPTIONS))
    optimizer.step(objective, evaluation)
    report = optimizer.report
    assert (report.cg_chosen, report.status, report.accepted, report.lr) == (chosen, StepStatus.TAKEN, True, 1.0)
    assert (report.evaluation_loss, report.new_evaluation_loss) == (1.0, values[chosen - 1])
    torch.testing.assert_close(point.x.detach(), places[chosen], rtol=0, atol=1e-12)
    assert report.reduction_ratio == pytest.approx((values[chosen - 1] - 1.0) / report.predicted_change)


@pytest.mark.parametrize("values", [[3.0, 2.0, 4.0], [2.0, 3.0, 4.0], [2.0], [math.nan, 2.0, math.inf]])
def test_without_line_search_the_best_of_bad_candidates_is_taken(values, function):
    point, objective, evaluation, places = table(function, values, 1.0)
    optimizer = HessianFree(point.parameters(), **parts(line_search=False, max_iter=len(values), **OPTIONS))
    optimizer.step(objective, evaluation)
    report = optimizer.report
    assert (report.status, report.accepted, report.new_evaluation_loss) == (StepStatus.TAKEN, True, 2.0)
    torch.testing.assert_close(point.x.detach(), places[1 + values.index(2.0)], rtol=0, atol=1e-12)
    assert report.reduction_ratio == pytest.approx(1.0 / report.predicted_change)
    assert report.reduction_ratio < 0
    assert optimizer.damping == 1.5


@pytest.mark.parametrize("values", [[3.0, 2.0, 4.0], [2.0, 3.0, 4.0], [2.0], [math.nan, 2.0, math.inf]])
def test_with_a_line_search_bad_candidates_leave_everything(values, function, unchanged):
    """Near the start the table says 1: no trial is below it."""
    point, objective, evaluation, _ = table(function, values, 1.0)
    optimizer = HessianFree(point.parameters(), **parts(max_iter=len(values), **OPTIONS))
    with unchanged(point):
        optimizer.step(objective, evaluation)
    report = optimizer.report
    assert (report.status, report.accepted) == (StepStatus.LINE_SEARCH_FAILED, False)
    assert (report.lr, report.step_norm, report.new_evaluation_loss, report.evaluation_loss) == (0.0, 0.0, 1.0, 1.0)
    assert report.reduction_ratio == pytest.approx(1.0 / report.predicted_change)
    assert optimizer.damping == 1.5
    assert not any("x0" in state for state in optimizer.state.values())


@pytest.mark.parametrize("with_backtracking", [False, True])
@pytest.mark.parametrize("line_search", [False, True])
def test_candidates_without_a_finite_loss_are_not_taken(with_backtracking, line_search, function, unchanged):
    point, objective, evaluation, _ = table(function, [math.nan, math.inf, math.nan], 1.0)
    options = {"candidates": "best" if with_backtracking else "last", "line_search": line_search, "max_iter": 3}
    optimizer = HessianFree(point.parameters(), **parts(**options, **OPTIONS))
    with unchanged(point):
        optimizer.step(objective, evaluation)
    report = optimizer.report
    assert not report.accepted
    assert report.status in (StepStatus.NONFINITE, StepStatus.LINE_SEARCH_FAILED)
    assert report.status == StepStatus.NONFINITE or line_search
    assert report.reduction_ratio == -math.inf
    assert report.new_evaluation_loss == report.evaluation_loss == 1.0
    assert optimizer.damping == 1.5


def test_a_line_search_can_save_a_candidate_that_is_not_finite(function):
    """The last candidate's loss is NaN, and so is every other's; half way there it is finite."""
    point, objective = function(lambda x: (x @ x, x), 3.0, 4.0)
    cliff = Objective.from_forward(
        point, lambda: (torch.where(point.x @ point.x < 1.0, math.nan, point.x @ point.x), point.x)
    )
    optimizer = HessianFree(point.parameters(), damping=Fixed(0.0))
    optimizer.step(objective, cliff)
    report = optimizer.report
    if report.accepted:
        assert report.new_evaluation_loss < 25.0
    else:
        assert report.status in (StepStatus.NONFINITE, StepStatus.LINE_SEARCH_FAILED)
    assert point.x.isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# The line search


def test_a_failing_line_search_changes_nothing_but_the_damping(toy, unchanged):
    model, data = normalized(), toy.batch()
    optimizer = HessianFree(model.parameters(), damping=30.0)  # short steps: what lowers f raises -f
    optimizer.step(cross_entropy(model, data))
    assert any("x0" in state for state in optimizer.state.values())
    damping = optimizer.damping
    for failures in range(1, 4):
        with unchanged(model):
            loss = optimizer.step(cross_entropy(model, data), opposite(model, data))
        report = optimizer.report
        assert report.status == StepStatus.LINE_SEARCH_FAILED
        assert (report.accepted, report.lr, report.step_norm) == (False, 0.0, 0.0)
        assert report.new_evaluation_loss == report.evaluation_loss == -float(loss)
        assert report.reduction_ratio < 0
        assert optimizer.damping == pytest.approx(damping * 1.5**failures)
        assert not any("x0" in state for state in optimizer.state.values())


def test_the_step_after_a_failure_starts_at_zero(toy):
    """It is, bit for bit, the first step of a new optimizer with the damping that the failure left."""
    model, data = toy.network(), toy.batch()
    optimizer = HessianFree(model.parameters(), damping=30.0)
    for judge in (cross_entropy, cross_entropy, opposite):
        optimizer.step(cross_entropy(model, data), judge(model, data))
    assert optimizer.report.status == StepStatus.LINE_SEARCH_FAILED
    twin = copy.deepcopy(model)
    fresh = HessianFree(twin.parameters(), damping=optimizer.damping)
    optimizer.step(cross_entropy(model, data))
    fresh.step(cross_entropy(twin, data))
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-12, atol=1e-14)
    assert optimizer.report.products == fresh.report.products


SCHEDULES = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 3.0 * 0.7**epoch),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=2.0, total_steps=12, cycle_momentum=False),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "warmup": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "steps": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.3),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("line_search", [False, True])
def test_a_schedule_sets_the_first_trial(schedule, line_search, toy):
    """report.lr = alpha * lr, alpha one of 0.8^i, and the step is that multiple of the candidate."""
    model = toy.network()
    optimizer = HessianFree(model.parameters(), damping=0.02, line_search=line_search)
    scheduler = SCHEDULES[schedule](optimizer)
    scaled_back = 0
    for seed in range(10):
        data, other = toy.batch(10, seed), toy.batch(10, seed + 60)
        lr = optimizer.param_groups[0]["lr"]
        assert lr == scheduler.get_last_lr()[0]
        twin_model, twin = copy.deepcopy((model, optimizer))
        twin.param_groups[0].update(lr=1.0, line_search=False)
        start = flat(model)
        optimizer.step(cross_entropy(model, data), cross_entropy(model, other))
        twin.step(cross_entropy(twin_model, data), cross_entropy(twin_model, other))
        report, candidate = optimizer.report, flat(twin_model) - start
        torch.testing.assert_close(flat(model) - start, report.lr * candidate, rtol=1e-7, atol=1e-10)
        if lr > 0 and report.accepted:
            power = math.log(report.lr / lr) / math.log(0.8)
            assert power == pytest.approx(round(power), abs=1e-9)
            assert 0 <= round(power) <= (20 if line_search else 0)
            scaled_back += round(power) > 0
        else:
            assert report.lr == report.step_norm == 0.0
        assert optimizer.param_groups[0]["lr"] == lr, "the line search is not to write the schedule's number"
        scheduler.step()
    assert not (scaled_back and not line_search)


def test_a_plateau_schedule_follows_the_report(toy):
    model, data = toy.network(), toy.batch()
    optimizer = HessianFree(model.parameters())
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10.0)  # never good enough
    for step in range(4):
        optimizer.step(cross_entropy(model, data))
        assert optimizer.report.lr == 0.5**step
        scheduler.step(optimizer.report.new_evaluation_loss)


def test_an_lr_of_zero_takes_no_step_and_does_no_harm(toy, unchanged):
    for line_search in (False, True):
        model = toy.network()
        optimizer = HessianFree(model.parameters(), lr=0.0, line_search=line_search)
        for _ in range(3):
            with unchanged(model):
                optimizer.step(cross_entropy(model, toy.batch()))
            assert (optimizer.report.lr, optimizer.report.step_norm) == (0.0, 0.0)
            assert optimizer.report.new_evaluation_loss == optimizer.report.evaluation_loss


# ---------------------------------------------------------------------------------------------------------------------
# The length of a step


@pytest.mark.parametrize("limit", [0.3, 0.03, 1e-6])
@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_a_long_candidate_is_scaled_back(limit, curvature, toy):
    model, data, other = toy.network(), toy.batch(), toy.batch(9, seed=4)
    oracle = dense_model(model, F.cross_entropy, data, curvature)
    damping = 0.5
    direction = torch.linalg.solve(oracle.matrix + damping * torch.eye(31), -oracle.gradient)
    assert direction.norm() > 0.3
    expected = limit / direction.norm() * direction
    options = {"stopping": "residual", "tolerance": 1e-13, "damping": damping, "curvature": curvature, **LAST}
    optimizer = HessianFree(model.parameters(), **parts(max_step_norm=limit, **options))
    evaluation, start = cross_entropy(model, other), flat(model)
    before = float(evaluation.value())
    optimizer.step(cross_entropy(model, data), evaluation)
    report = optimizer.report
    torch.testing.assert_close(flat(model) - start, expected, rtol=1e-7, atol=1e-15)
    assert report.step_norm == pytest.approx(limit, rel=1e-9)
    change = oracle.change(expected)
    assert report.predicted_change == pytest.approx(change, rel=1e-7)
    # At 1e-6 the change is some 1e-7 of a loss of 1, with seven digits left.
    assert report.reduction_ratio == pytest.approx((float(evaluation.value()) - before) / change, rel=1e-5)


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (4.0, 4.0), (0.5, 2.0), (1.0, 0.0)])
def test_the_limit_is_on_the_step_with_its_lr(first, second, toy):
    """theta moves by at most the limit, whatever the rates; ratio and prediction are those of the candidate itself."""
    model, data = toy.network(), toy.batch()
    oracle, limit = dense_model(model, F.cross_entropy, data), 0.1
    direction = torch.linalg.solve(oracle.matrix + 0.5 * torch.eye(31), -oracle.gradient)
    rates = torch.tensor([first] * 16 + [second] * 15, dtype=torch.float64)
    assert (rates * direction).norm() > limit
    candidate = limit / (rates * direction).norm() * direction
    groups = layerwise(model)
    groups[0]["lr"], groups[1]["lr"] = first, second
    optimizer = HessianFree(
        groups, **parts(max_step_norm=limit, damping=0.5, stopping="residual", tolerance=1e-13, **LAST)
    )
    start, twin = flat(model), copy.deepcopy(model)
    optimizer.step(cross_entropy(model, data))
    torch.testing.assert_close(flat(model) - start, rates * candidate, rtol=1e-7, atol=1e-15)
    assert optimizer.report.predicted_change == pytest.approx(oracle.change(candidate), rel=1e-7)
    nn.utils.vector_to_parameters(start + candidate, twin.parameters())
    change = float(F.cross_entropy(twin(data[0]), data[1]).detach()) - oracle.loss
    assert optimizer.report.reduction_ratio == pytest.approx(change / oracle.change(candidate), rel=1e-6)


@pytest.mark.parametrize("kind", ["undamped", "damped"])
@pytest.mark.parametrize("debias", [False, True])
def test_the_limit_holds_with_everything_on(kind, debias, toy):
    model = toy.network()
    optimizer = HessianFree(
        model.parameters(),
        solver=CG(max_step_norm=0.2, max_iter=20),
        damping=LevenbergMarquardt(1e-3, model=kind),
        debias=debias,
    )
    reached = 0
    for seed in range(10):
        start = flat(model)
        optimizer.step(cross_entropy(model, toy.batch(10, seed)), cross_entropy(model, toy.batch(10, seed + 60)))
        norm = float((flat(model) - start).norm())
        assert norm <= 0.2 * (1 + 1e-12)
        assert optimizer.report.step_norm == pytest.approx(norm, rel=1e-9)
        reached += norm > 0.199
    assert reached > 0


def test_a_large_limit_changes_nothing(toy):
    models = [toy.network(), toy.network()]
    optimizers = [
        HessianFree(models[0].parameters(), solver=CG(max_step_norm=1e6)),
        HessianFree(models[1].parameters()),
    ]
    for _ in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.step(cross_entropy(model, toy.batch()))
        assert torch.equal(flat(models[0]), flat(models[1]))
        reports = [optimizer.report.as_dict() | {"seconds": 0.0} for optimizer in optimizers]
        assert reports[0] == reports[1]


def test_a_scaled_candidate_leaves_the_start_of_the_next_run_alone(toy):
    """The limit is on the step; what conjugate gradients found stays the start of the next run."""
    starts = []
    for limit in (None, 0.01):
        model = toy.network()
        optimizer = HessianFree(model.parameters(), **parts(max_step_norm=limit, **LAST))
        optimizer.step(cross_entropy(model, toy.batch()))
        starts.append(torch.cat([optimizer.state[p]["x0"].reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(starts[0], starts[1], rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------------------------------------------------------------
# Statuses


def test_statuses_of_what_is_not_finite(function, unchanged):
    """Loss, gradient, product, evaluation loss: each alone, and the step after it is an ordinary one."""
    cases = {
        "loss": (lambda x: ((x * x).sum() * torch.where(x[0] == 3.0, math.inf, 1.0), x), None),
        "nan_loss": (lambda x: (x @ x + torch.where(x[0] == 3.0, math.nan, 0.0), x), None),
        "gradient": (lambda x: ((x @ x) + (x[0] - 3.0).abs().sqrt(), x), None),
        "product": (lambda x: (x @ x + (x[0] - 3.0).abs().pow(1.5), x), None),
        "evaluation": (lambda x: (x @ x, x), lambda x: x @ x + torch.where(x[0] == 3.0, math.inf, 0.0)),
    }
    for name, (f, judge) in cases.items():
        point, objective = function(f, 3.0, 4.0)
        evaluation = Objective.from_forward(point, lambda p=point, j=judge: (j(p.x), p.x)) if judge else objective
        optimizer = HessianFree(point.parameters(), curvature="hessian")
        with unchanged(point):
            optimizer.step(objective, evaluation)
        report = optimizer.report
        assert (report.status, report.accepted) == (StepStatus.NONFINITE, False), name
        assert (report.lr, report.step_norm, report.reduction_ratio) == (0.0, 0.0, -math.inf), name
        assert math.isnan(report.predicted_change) or name == "evaluation", name
        assert optimizer.damping == 1.5, name
        with torch.no_grad():
            point.x -= 0.5
        optimizer.step(objective, evaluation)
        assert optimizer.report.status == StepStatus.TAKEN, name


def test_steps_that_lower_the_loss_are_taken(toy):
    model = toy.network()
    optimizer = HessianFree(model.parameters())
    for _ in range(5):
        optimizer.step(cross_entropy(model, toy.batch()))
        report = optimizer.report
        assert report.status is StepStatus.TAKEN
        assert report.status == "taken"
        assert report.accepted
        assert report.predicted_change < 0


@pytest.mark.parametrize("rule", ["truncate", "ignore", "absolute"])
@pytest.mark.parametrize("limit", [None, 0.1])
def test_from_a_saddle_of_an_indefinite_hessian(rule, limit, function):
    """x^2 - y^2 + y^4/4 at (0.5, 0.1): with a small damping CG meets negative curvature in its first two iterations."""
    point, objective = function(lambda x: (x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, x), 0.5, 0.1)
    options = {"curvature": "hessian", "damping": 0.1, "nonpositive_curvature": rule, "max_step_norm": limit}
    optimizer = HessianFree(point.parameters(), **parts(**options))
    met = set()
    for _ in range(100):
        before = float(objective.value())
        optimizer.step(objective)
        report = optimizer.report
        met |= set(report.cg_status)
        assert point.x.isfinite().all()
        assert report.new_evaluation_loss <= before
        assert report.status != StepStatus.NONFINITE
        assert limit is None or report.step_norm <= limit * (1 + 1e-12)
    if rule == "truncate":
        assert CGStatus.NONPOSITIVE_CURVATURE in met
    if rule != "ignore":  # plain Newton may end on the saddle
        assert float(objective.value()) == pytest.approx(-1.0, abs=1e-6)


def test_reports_are_ready_for_json(toy, function):
    model, reports = toy.network(), []
    optimizer = HessianFree(model.parameters(), damping=30.0)
    for judge in (cross_entropy, opposite):
        optimizer.step(cross_entropy(model, toy.batch()), judge(model, toy.batch()))
        reports.append(optimizer.report)
    point, objective = function(lambda x: (x @ x, x), 0.0, 0.0)
    other = HessianFree(point.parameters())
    other.step(objective)
    reports.append(other.report)
    infinite = Objective.from_forward(point, lambda: (point.x.sum() * math.inf, point.x))
    other.step(objective, infinite)
    reports.append(other.report)
    found = [json.loads(json.dumps(report.as_dict())) for report in reports]
    assert [entry["status"] for entry in found[:2]] == ["taken", "line_search_failed"]
    assert found[2]["status"] in ("stationary", "taken")
    assert found[3]["status"] == "nonfinite"
    for entry, report in zip(found, reports, strict=True):
        assert set(entry) == set(report.__dataclass_fields__) - {"collectives", "collective_bytes"}  # of one rank
        assert isinstance(entry["predicted_change"], float)
        assert entry["accepted"] == (entry["status"] == "taken")


def test_a_hook_reads_the_report_of_its_step(toy):
    model, seen = toy.network(), []
    optimizer = HessianFree(model.parameters())
    handle = optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append((o.report, len(args), set(kwargs))))
    for _ in range(3):
        optimizer.step(cross_entropy(model, toy.batch()), evaluation=cross_entropy(model, toy.batch(9, seed=2)))
        assert seen[-1][0] is optimizer.report
    assert len({id(report) for report, *_ in seen}) == 3
    assert seen[0][2] == {"evaluation"}
    handle.remove()
    optimizer.step(cross_entropy(model, toy.batch()))
    assert len(seen) == 3


def test_warnings_are_no_surprise(toy):
    """An ordinary run, a failing line search and a stop at the minimum warn of nothing."""
    model = toy.network()
    optimizer = HessianFree(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for judge in (cross_entropy, opposite, cross_entropy):
            optimizer.step(cross_entropy(model, toy.batch()), judge(model, toy.batch()))
