"""Bad input is named clearly and changes nothing; what is not finite for other reasons is reported, not fatal."""

import math

import pytest
import torch
from torch import nn

from latephase import CG, GGN, Armijo, Fixed, HessianFree, Objective
from latephase.solve import CGStatus


def cross_entropy(model, data, **options):
    return Objective(model, nn.CrossEntropyLoss(), data, **options)


def normalized():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


def spoiled(tensor: torch.Tensor, row: int, value: float = math.nan) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[row, 1] = value
    return tensor


def ignored(targets: torch.Tensor, row: int) -> torch.Tensor:
    return torch.where(torch.arange(len(targets)) == row, -100, targets)


@pytest.mark.parametrize(("options", "message"), [
    ({"curvature": "fisher"}, r"curvature must be one of ggn, hessian, .* got 'fisher'"),
    ({"curvature": {"kind": "fisher"}}, r"curvature: kind must be one of ggn, hessian; got 'fisher'"),
    ({"curvature": {"dtyp": None}}, r"curvature: GGN has no 'dtyp' \(did you mean 'dtype'\?\)"),
    ({"solver": "cg"}, r"solver must be a part: CG\(...\) or Direct\(...\); got 'cg'"),
    ({"solver": {"stopping": "never"}}, r"CG.stopping must be one of martens, residual, got 'never'"),
    ({"solver": {"nonpositive_curvature": "stop"}}, r"CG.nonpositive_curvature must be one of truncate, ignore, abs"),
    ({"solver": {"preconditioner": "jacobi"}}, r"preconditioner"),
    ({"solver": {"preconditioner": {"kind": "jacobi"}}}, r"CG.preconditioner: kind must be one of empirical_fisher"),
    ({"solver": {"preconditioner": {"kind": "nystrom", "rnk": 3}}}, r"CG.preconditioner: Nystrom does not take these"),
    ({"solver": {"preconditioner": torch.ones(3)}}, r"preconditioner"),
    ({"solver": {"candidates": "yes"}}, r"CG.candidates must be one of best, last"),
    ({"solver": {"max_step_norm": 0}}, r"CG.max_step_norm must be None or above 0"),
    ({"solver": {"on_host": 1}}, r"CG.on_host must be True or False"),
    ({"line_search": None}, r"line_search must be True or False"),
    ({"line_search": {"c": 1.0}}, r"Armijo.c must be a number >= 0 and < 1"),
    ({"line_search": {"factor": 0.0}}, r"Armijo.factor must be a number > 0 and < 1"),
    ({"line_search": {"max_trials": 0}}, r"Armijo.max_trials must be an integer >= 1"),
    ({"blocks": 1}, r"blocks must be None, True or False"),
    ({"debias": 0}, r"debias must be True or False"),
    ({"lr": -0.1}, r"lr must be .* >= 0, got -0.1"),
    ({"lr": math.inf}, r"lr must be"),
    ({"lr": True}, r"lr must be"),
    ({"damping": -1.0}, r"damping must be a finite number >= 0"),
    ({"damping": math.nan}, r"damping must be"),
    ({"damping": "1"}, r"damping must be a number >= 0, or a part"),
    ({"damping": {"kind": "fixed", "value": -1.0}}, r"Fixed.value must be a finite number >= 0"),
    ({"solver": {"warm_start": -0.5}}, r"CG.warm_start must be"),
    ({"solver": {"tolerance": -1e-4}}, r"CG.tolerance must be"),
    ({"solver": {"max_iter": 0}}, r"CG.max_iter must be an integer >= 1"),
    ({"solver": {"max_iter": 2.5}}, r"CG.max_iter must be an integer >= 1"),
    ({"solver": {"max_iter": True}}, r"CG.max_iter must be an integer >= 1"),
    ({"curvature": {"dtype": torch.int32}}, r"GGN.dtype must be None or a floating-point torch.dtype"),
    ({"curvature": {"dtype": "floating"}}, r"GGN.dtype must be"),
])  # fmt: skip
def test_option_values_are_checked(options, message, toy):
    with pytest.raises((ValueError, TypeError), match=message):
        HessianFree(toy.network().parameters(), **options)


@pytest.mark.parametrize(("name", "value"), [
    ("curvature", "hessian"), ("damping", 2.0), ("solver", CG(max_iter=3)), ("line_search", False),
    ("damping", Fixed(1.0)), ("solver", CG(warm_start=0.1)), ("curvature", GGN(dtype=torch.float64)), ("blocks", True),
    ("debias", True), ("line_search", Armijo(c=0.1)),
])  # fmt: skip
def test_a_global_option_may_not_differ_between_groups(name, value, toy, unchanged):
    model = toy.network()
    first, second = {"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), name: value}
    with pytest.raises(ValueError, match=f"{name} must be the same"):
        HessianFree([first, second])
    optimizer = HessianFree([first])
    optimizer.step(cross_entropy(model, toy.batch()))

    def add_and_step():
        optimizer.add_param_group(second)
        optimizer.step(cross_entropy(model, toy.batch()))

    with unchanged(model), pytest.raises(ValueError, match=f"{name} must be the same"):
        add_and_step()


def test_a_bad_option_set_later_is_caught(toy, unchanged):
    model = toy.network()
    optimizer = HessianFree(model.parameters())
    for name, value in [("lr", -1.0), ("curvature", "none"), ("solver", 0)]:
        good = optimizer.param_groups[0][name]
        optimizer.param_groups[0][name] = value
        with unchanged(model, optimizer), pytest.raises(ValueError, match=f"{name} must be"):
            optimizer.step(cross_entropy(model, toy.batch()))
        optimizer.param_groups[0][name] = good
    with pytest.raises(ValueError, match="damping"):
        optimizer.damping = -1.0


X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(8) % 3

STEPS = {
    "evaluation_closure": (lambda m: (cross_entropy(m, (X, Y)), lambda: 1.0), TypeError, r"Objective\("),
    "other_evaluation": (
        lambda m: (cross_entropy(m, (X, Y)), cross_entropy(normalized(), (X, Y))), ValueError, "same model"),
    "other_curvature": (
        lambda m: (cross_entropy(m, (X, Y)), None, cross_entropy(normalized(), (X, Y))), ValueError, "same model"),
    "nan_inputs": (lambda m: (cross_entropy(m, (spoiled(X, 5), Y)),), ValueError, r"inputs of chunk 0 .* row 5"),
    "inf_inputs": (
        lambda m: (cross_entropy(m, (spoiled(X, 2, math.inf), Y)),), ValueError, r"inputs of chunk 0 .* row 2"),
    "nan_in_a_chunk": (
        lambda m: (cross_entropy(m, (spoiled(X, 5), Y), microbatch_size=3),), ValueError,
        r"inputs of chunk 1 .* row 2"),
    "nan_in_named_inputs": (
        lambda m: (Objective(m, nn.CrossEntropyLoss(), ({"x": spoiled(X, 4)}, Y), forward=lambda m, i: m(i["x"])),),
        ValueError, r"inputs.*x.* of chunk 0 .* row 4"),
    "nan_targets": (
        lambda m: (Objective(m, nn.MSELoss(), (X, spoiled(X, 6))),), ValueError, r"targets of chunk 0 .* row 6"),
    "nan_evaluation": (
        lambda m: (cross_entropy(m, (X, Y)), cross_entropy(m, (spoiled(X, 1), Y))), ValueError, r"inputs .* row 1"),
    "nan_curvature": (
        lambda m: (cross_entropy(m, (X, Y)), None, cross_entropy(m, (spoiled(X, 1), Y))), ValueError,
        r"inputs .* row 1"),
    "nan_behind_a_finite_loss": (  # the row's target does not count, but its gradient is 0 * NaN
        lambda m: (Objective(m[3], nn.CrossEntropyLoss(), (torch.cat([spoiled(X, 5), X[:, :1]], 1), ignored(Y, 5))),),
        ValueError, r"inputs of chunk 0 .* row 5"),
    "not_a_scalar": (
        lambda m: (Objective(m, nn.CrossEntropyLoss(reduction="none"), (X, Y)),), ValueError, r"scalar.*\(8,\)"),
    "not_a_tensor": (lambda m: (Objective(m, lambda z, t: 1.0, (X, Y)),), TypeError, r"scalar tensor, got float"),
    "hidden_reduction": (
        lambda m: (Objective(m, lambda z, t: z.mean(), (X, Y), microbatch_size=3),), ValueError, r"reduction"),
    "not_a_pair": (
        lambda m: (Objective.from_forward(m, lambda: m(X).sum()),), TypeError, r"pair \(loss, outputs\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("begun", [False, True])
def test_a_step_on_bad_input_changes_nothing(case, begun, unchanged):
    model = normalized()
    optimizer = HessianFree(model[3].parameters() if case == "nan_behind_a_finite_loss" else model.parameters())
    if begun:
        optimizer.step(cross_entropy(model, (X, Y)))
    arguments, error, message = STEPS[case]
    objectives, report = arguments(model), optimizer.report
    with unchanged(model, optimizer), pytest.raises(error, match=message):
        optimizer.step(*objectives)
    assert optimizer.report is report
    optimizer.step(cross_entropy(model, (X, Y)))
    assert optimizer.report.accepted


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    (("model", "loss", (X, Y)), {}, TypeError, "model must be a torch.nn.Module"),
    ((None, 3, (X, Y)), {}, TypeError, "loss must be a callable"),
    ((None, "loss", [(X, Y), (X[:3], Y)]), {}, ValueError, "chunk 1 has 3 rows of inputs but 8 of targets"),
    ((None, "loss", [(X, Y), ((X, X[:4]), Y)]), {}, ValueError, "4 rows of inputs but 8"),
    ((None, "loss", (X[:0], Y[:0])), {}, ValueError, "empty"),
    ((None, "loss", [(X, Y), (X[:0], Y[:0])]), {}, ValueError, "chunk 1 is empty"),
    ((None, "loss", []), {}, ValueError, "empty"),
    ((None, "loss", X), {}, TypeError, "pair"),
    ((None, "loss", (X, X, Y)), {}, TypeError, "pair"),
    ((None, "loss", {"inputs": X}), {}, TypeError, "pair"),
    ((None, "loss", [(X, Y), (X, Y[0])]), {}, ValueError, "dimension 0"),
    ((None, "loss", (X.numpy(), Y)), {}, (TypeError, ValueError), "inputs|examples"),
    ((None, "loss", (X, Y)), {"microbatch_size": 0}, ValueError, "microbatch_size must be"),
    ((None, "loss", (X, Y)), {"microbatch_size": 2.5}, (TypeError, ValueError), "microbatch_size must be"),
    ((None, "loss", (X, Y)), {"microbatch_size": "4"}, (TypeError, ValueError), "microbatch_size must be"),
    ((None, "loss", (X, Y)), {"weight_decay": -1.0}, ValueError, "weight_decay must be"),
    ((None, "loss", (X, Y)), {"weight_decay": math.nan}, ValueError, "weight_decay must be"),
    ((None, "loss", (X, Y)), {"weight_decay": "much"}, ValueError, "weight_decay must be"),
    ((None, "loss", (X, Y)), {"weight_decay": (1.0, "bias")}, ValueError, "weight_decay must be"),
    ((None, "loss", (X, Y)), {"forward": 3}, TypeError, "forward must be"),
])  # fmt: skip
def test_an_objective_checks_what_it_is_given(arguments, options, error, message):
    model, loss, data = arguments
    with pytest.raises(error, match=message):
        Objective(model or normalized(), nn.CrossEntropyLoss() if loss == "loss" else loss, data, **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [((X, Y[:5]), "8 rows of inputs but 5 of targets"), ((X, Y[0]), "no examples to count: dimension 0")],
)
def test_rows_are_counted_where_a_batch_is_cut(data, message):
    objective = Objective(normalized(), nn.CrossEntropyLoss(), data)
    for ask in (lambda: objective.split(2), lambda: objective.subsample(2)):
        with pytest.raises(ValueError, match=message):
            ask()
    with pytest.raises(ValueError, match=message):
        Objective(normalized(), nn.CrossEntropyLoss(), data, microbatch_size=2)


def test_from_forward_needs_a_function():
    with pytest.raises(TypeError, match="forward must be a callable"):
        Objective.from_forward(normalized(), torch.ones(()))  # pyright: ignore[reportArgumentType]


def rejected_for_nonfinite(optimizer, *objectives):
    """Take the step; its report must say that it met something not finite, and the next start is zero."""
    damping = optimizer.damping
    optimizer.step(*objectives)
    report = optimizer.report
    assert (report.accepted, report.lr, report.step_norm, report.reduction_ratio) == (False, 0.0, 0.0, -math.inf)
    assert optimizer.damping == 1.5 * damping
    assert not any("x0" in state for state in optimizer.state.values())
    return report


def test_an_overflowing_loss_rejects_the_step(unchanged):
    model = nn.Linear(1, 1, bias=False)
    huge, fine = torch.full((2, 1), 1e20), torch.ones(2, 1)  # (1e20)^2 overflows float32, the gradient too
    optimizer = HessianFree(model.parameters())
    optimizer.step(Objective(model, nn.MSELoss(), (fine, fine)))
    with unchanged(model):
        report = rejected_for_nonfinite(optimizer, Objective(model, nn.MSELoss(), (huge, fine)))
    assert report.loss == math.inf
    assert report.cg_status == (CGStatus.NONFINITE,)
    optimizer.step(Objective(model, nn.MSELoss(), (fine, fine)))
    assert optimizer.report.accepted


def test_an_overflowing_loss_with_a_finite_gradient_rejects_the_step(unchanged):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1e20)
    data = torch.ones(2, 1)
    optimizer = HessianFree(model.parameters())
    with unchanged(model):
        report = rejected_for_nonfinite(optimizer, Objective(model, nn.MSELoss(), (data, data)))
    assert math.isfinite(report.gradient_norm)
    assert report.loss == math.inf


def test_a_product_that_is_not_finite_rejects_the_step(function, unchanged):
    point, objective = function(lambda x: ((x + x.abs().pow(1.5)).sum(), x), 0.0, 1.0)  # second derivative at 0: inf
    optimizer = HessianFree(point.parameters(), curvature="hessian")
    with unchanged(point):
        report = rejected_for_nonfinite(optimizer, objective)
    assert report.cg_status == (CGStatus.NONFINITE,)
    assert math.isfinite(report.loss)
    assert math.isfinite(report.gradient_norm)
    with torch.no_grad():
        point.x += 1
    optimizer.step(objective)
    assert optimizer.report.accepted


def test_trial_losses_that_are_all_infinite_reject_the_step(function, unchanged):
    point, objective = function(lambda x: (x @ x, x), 3.0, 4.0)
    here = point.x.detach().clone()
    cliff = Objective.from_forward(
        point, lambda: (torch.where((point.x == here).all(), 1.0, math.inf) * (point.x @ point.x), point.x)
    )
    optimizer = HessianFree(point.parameters())
    with unchanged(point):
        report = rejected_for_nonfinite(optimizer, objective, cliff)
    assert report.new_evaluation_loss == report.evaluation_loss == 25.0
    optimizer.step(objective)
    assert optimizer.report.accepted


def test_an_infinite_evaluation_loss_rejects_the_step(function, unchanged):
    point, objective = function(lambda x: (x @ x, x), 3.0, 4.0)
    infinite = Objective.from_forward(point, lambda: (point.x.sum() * math.inf, point.x))
    optimizer = HessianFree(point.parameters())
    with unchanged(point):
        report = rejected_for_nonfinite(optimizer, objective, infinite)
    assert report.evaluation_loss == math.inf
