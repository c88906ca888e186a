"""The mathematics of one Hessian-free step, against dense solves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flat_parts import parts
from latephase import CG, HessianFree, Objective, layerwise

EXACT_SOLVE = {"stopping": "residual", "tolerance": 1e-13, "candidates": "last", "line_search": False}
CONSTANT = {"fixed": True, "line_search": False}
SOLVED = {"rtol": 1e-8, "atol": 1e-9}  # float64, condition numbers below 1e4, CG to 1e-13 of |b|


def step_of(model, optimizer, flat, *objectives, **others):
    before = flat(model)
    optimizer.step(*objectives, **others)
    return flat(model) - before


def cross_entropy(model, data, **options):
    return Objective(model, nn.CrossEntropyLoss(), data, **options)


def split_in_two(model):
    return [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("microbatch_size", [None, 7])
def test_one_undamped_step_solves_least_squares(curvature, microbatch_size):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    model = nn.Linear(6, 2).double()
    objective = Objective(model, nn.MSELoss(), (x, y), microbatch_size=microbatch_size)
    options = {"damping": 0.0, "fixed": True, "stopping": "residual", "tolerance": 1e-12}
    optimizer = HessianFree(model.parameters(), **parts(curvature=curvature, **options))
    optimizer.step(objective)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], 1), y).solution
    torch.testing.assert_close(model.weight.detach(), solution[:6].T, rtol=0, atol=1e-8)
    torch.testing.assert_close(model.bias.detach(), solution[6], rtol=0, atol=1e-8)
    assert optimizer.report.reduction_ratio == pytest.approx(1.0, abs=1e-8)  # the model is the function
    assert optimizer.report.lr == 1.0


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_one_undamped_step_minimises_any_quadratic(curvature, function):
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(5), torch.randn(5, dtype=torch.float64)
    point, objective = function(lambda x: (0.5 * x @ matrix @ x - b @ x, x), 1.0, -2.0, 3.0, 0.0, 0.5)
    options = {"damping": 0.0, "fixed": True, "stopping": "residual", "tolerance": 1e-12}
    HessianFree(point.parameters(), **parts(curvature=curvature, **options)).step(objective)
    torch.testing.assert_close(point.x.detach(), torch.linalg.solve(matrix, b), rtol=0, atol=1e-8)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_rosenbrock(curvature, function):
    def rosenbrock(x):
        residuals = torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
        return residuals @ residuals, residuals

    point, objective = function(rosenbrock, -1.2, 1.0)
    optimizer = HessianFree(point.parameters(), curvature=curvature)
    losses = [float(optimizer.step(objective)) for _ in range(60)]
    assert losses[0] == pytest.approx(24.2)
    assert min(losses) < 1e-10
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_a_step_is_the_dense_solve_with_a_scale_of_the_damping_per_group(curvature, toy, dense, flat):
    model, data = toy.network(), toy.batch()
    oracle = dense(model, *data)
    groups = split_in_two(model)
    groups[1]["damping_scale"] = 0.1
    optimizer = HessianFree(groups, **parts(curvature=curvature, damping=2.0, fixed=True, **EXACT_SOLVE))
    step = step_of(model, optimizer, flat, cross_entropy(model, data))
    scales = torch.tensor([2.0] * 16 + [0.2] * 15, dtype=torch.float64)
    expected = torch.linalg.solve(getattr(oracle, curvature) + torch.diag(scales), -oracle.gradient)
    torch.testing.assert_close(step, expected, **SOLVED)
    # The ratio is that of the undamped model, whatever the scale.
    predicted = expected @ oracle.gradient + 0.5 * expected @ getattr(oracle, curvature) @ expected
    change = dense(model, *data).loss - oracle.loss
    assert optimizer.report.reduction_ratio == pytest.approx(change / float(predicted), rel=1e-6)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_blocks_are_the_dense_solve_without_cross_blocks(curvature, toy, dense, flat):
    model, data = toy.network(), toy.batch()
    oracle = dense(model, *data)
    options = {"curvature": curvature, "damping": 1.0, "blocks": True, "fixed": True}
    optimizer = HessianFree(layerwise(model), **parts(**options, **EXACT_SOLVE))
    step = step_of(model, optimizer, flat, cross_entropy(model, data))
    matrix = getattr(oracle, curvature) + torch.eye(31)
    expected = [torch.linalg.solve(matrix[b, b], -oracle.gradient[b]) for b in (slice(0, 16), slice(16, 31))]
    torch.testing.assert_close(step, torch.cat(expected), **SOLVED)
    assert len(optimizer.report.cg_iterations) == len(optimizer.report.cg_status) == 2
    assert optimizer.report.products == max(optimizer.report.cg_iterations)  # one is with all blocks


def test_one_block_is_the_full_matrix_bit_for_bit(toy, flat):
    data, models = toy.batch(), [toy.network(), toy.network()]
    optimizers = [HessianFree(model.parameters(), blocks=model is models[1]) for model in models]
    for _ in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.step(cross_entropy(model, data))
        assert torch.equal(flat(models[0]), flat(models[1]))
        reports = [optimizer.report.as_dict() | {"seconds": 0.0} for optimizer in optimizers]
        assert reports[0] == reports[1]


def test_the_tolerance_of_each_block_is_its_groups(toy):
    model = toy.network()
    groups = split_in_two(model)
    groups[1]["tolerance"] = 0.5
    optimizer = HessianFree(groups, damping=1e-3, solver=CG(stopping="residual", tolerance=1e-10), blocks=True)
    optimizer.step(cross_entropy(model, toy.batch()))
    first, second = optimizer.report.cg_iterations
    assert second <= 2 < 8 < first


def test_a_preconditioner_changes_the_path_and_not_the_solution(toy, dense, flat):
    data, steps, iterations = toy.batch(), [], []
    scale = torch.logspace(-2, 2, 31, dtype=torch.float64)
    oracle = dense(toy.network(), *data)
    jacobi = 1 / (oracle.ggn.diag() + 0.1)
    for preconditioner in (None, lambda r: jacobi * r, lambda r: scale * r):
        model = toy.network()
        options = {"damping": 0.1, "fixed": True, "preconditioner": preconditioner}
        optimizer = HessianFree(model.parameters(), **parts(**options, **EXACT_SOLVE))
        steps.append(step_of(model, optimizer, flat, cross_entropy(model, data)))
        iterations.append(optimizer.report.cg_iterations)
    expected = torch.linalg.solve(oracle.ggn + 0.1 * torch.eye(31), -oracle.gradient)
    for step in steps:
        torch.testing.assert_close(step, expected, **SOLVED)
    assert len(set(iterations)) > 1


def test_the_curvature_objective_gives_curvature_only(toy, dense, flat):
    model, data, other = toy.network(), toy.batch(), toy.batch(9, seed=5)
    gradient, matrix = dense(model, *data).gradient, dense(model, *other).ggn
    optimizer = HessianFree(model.parameters(), **parts(damping=0.5, fixed=True, **EXACT_SOLVE))
    step = step_of(model, optimizer, flat, cross_entropy(model, data), curvature_objective=cross_entropy(model, other))
    torch.testing.assert_close(step, torch.linalg.solve(matrix + 0.5 * torch.eye(31), -gradient), **SOLVED)


def test_chunks_take_the_same_steps(toy, flat):
    data, other, models = toy.batch(), toy.batch(9, seed=4), [toy.network(), toy.network()]
    optimizers = [HessianFree(model.parameters(), solver=CG(max_iter=8)) for model in models]
    for _ in range(5):
        for model, optimizer, size in zip(models, optimizers, (None, 7), strict=True):
            parts = {"microbatch_size": size, "weight_decay": 0.01}
            objectives = cross_entropy(model, data, **parts), cross_entropy(model, other, **parts)
            optimizer.step(*objectives, curvature_objective=objectives[0].split(12)[0])
        torch.testing.assert_close(*map(flat, models), rtol=1e-9, atol=1e-11)
    assert sum(optimizer.report.accepted for optimizer in optimizers) == 2


@pytest.mark.parametrize("per_group", [False, True])
def test_lr_scales_the_step(per_group, toy, flat):
    data, unit, model = toy.batch(), toy.network(), toy.network()
    full = step_of(unit, HessianFree(unit.parameters(), **parts(**CONSTANT)), flat, cross_entropy(unit, data))
    groups = split_in_two(model)
    groups[1]["lr"] = 0.25 if per_group else 0.5
    optimizer = HessianFree(groups, **parts(lr=0.5, **CONSTANT))
    step = step_of(model, optimizer, flat, cross_entropy(model, data))
    factor = torch.tensor([0.5] * 16 + [0.25 if per_group else 0.5] * 15, dtype=torch.float64)
    torch.testing.assert_close(step, factor * full, rtol=1e-9, atol=1e-12)
    assert optimizer.report.lr == 0.5
    assert optimizer.report.new_loss == float(cross_entropy(model, data).value())


def test_the_start_is_the_decayed_last_solution(toy, dense, flat):
    """One product and no iteration: with max_iter 1 from x0 the step is x0 + alpha r, not a multiple of -g."""
    model, data = toy.network(), toy.batch()
    optimizer = HessianFree(model.parameters(), **parts(warm_start=0.5, max_iter=1, candidates="last", **CONSTANT))
    last = step_of(model, optimizer, flat, cross_entropy(model, data))
    oracle = dense(model, *data)
    matrix, x0 = oracle.ggn + torch.eye(31), 0.5 * last
    r = -oracle.gradient - matrix @ x0
    assert float(0.5 * x0 @ matrix @ x0 + oracle.gradient @ x0) < 0, "else x0 is rescaled"
    step = step_of(model, optimizer, flat, cross_entropy(model, data))
    torch.testing.assert_close(step, x0 + (r @ r) / (r @ matrix @ r) * r, **SOLVED)
    assert optimizer.report.products == 2


def test_backtracking_chooses_a_better_candidate_than_the_last(toy):
    """On a small batch of its own the last iterate overshoots the evaluation loss; walking back must not."""
    chosen = []
    for backtracking in (True, False):
        model = toy.network()
        options = {
            "damping": 1e-4,
            "candidates": "best" if backtracking else "last",
            "stopping": "residual",
            "tolerance": 1e-10,
        }
        optimizer = HessianFree(model.parameters(), **parts(fixed=True, line_search=False, **options))
        optimizer.step(cross_entropy(model, toy.batch(4)), cross_entropy(model, toy.batch(50, seed=9)))
        chosen.append(optimizer.report)
    assert chosen[0].new_evaluation_loss < chosen[1].new_evaluation_loss
    assert chosen[0].cg_chosen < chosen[1].cg_chosen == chosen[1].cg_iterations[0]


def test_without_line_search_a_step_may_raise_the_loss(toy):
    model = toy.network()
    optimizer = HessianFree(model.parameters(), **parts(damping=1e-6, candidates="last", **CONSTANT, lr=20.0))
    optimizer.step(cross_entropy(model, toy.batch(5)))
    assert optimizer.report.accepted
    assert optimizer.report.new_loss > optimizer.report.loss


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    damping=st.sampled_from([1e-6, 1e-3, 1.0, 30.0]),
    lr=st.sampled_from([0.3, 1.0, 5.0]),
    curvature=st.sampled_from(["ggn", "hessian"]),
    rule=st.sampled_from(["truncate", "ignore", "absolute"]),
    blocks=st.booleans(),
    backtracking=st.booleans(),
)
def test_a_step_never_raises_the_evaluation_loss(seed, damping, lr, curvature, rule, blocks, backtracking):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    whole = cross_entropy(model, (3 * torch.randn(14, 3).double(), torch.randint(3, (14,))))
    objective, evaluation = whole.split(6, 8)
    options = {
        "lr": lr,
        "blocks": blocks,
        "candidates": "best" if backtracking else "last",
        "nonpositive_curvature": rule,
    }
    optimizer = HessianFree(layerwise(model), **parts(curvature=curvature, damping=damping, **options))
    for _ in range(3):
        before, theta = float(evaluation.value()), copy.deepcopy(model.state_dict())
        optimizer.step(objective, evaluation)
        after, report = float(evaluation.value()), optimizer.report
        assert after <= before
        assert (report.evaluation_loss, report.new_evaluation_loss) == (before, after)
        assert report.accepted or all(torch.equal(theta[name], p) for name, p in model.state_dict().items())


@pytest.mark.parametrize("line_search", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_the_damping_follows_the_reduction_ratio(line_search, same, toy, dense, flat):
    """The ratio again, from plain losses and the dense GGN, at the candidate that the step and its lr give away."""
    seen = set()
    for seed, damping in [(1, 1e-3), (2, 1e-2), (3, 0.1), (4, 10.0)]:
        model, data, other = toy.network(seed), toy.batch(8, seed), toy.batch(8, seed + (0 if same else 50))
        optimizer = HessianFree(model.parameters(), damping=damping, line_search=line_search)
        objective = cross_entropy(model, data)
        for _ in range(8):
            oracle, evaluation_loss, used = dense(model, *data), dense(model, *other).loss, optimizer.damping
            twin = copy.deepcopy(model)
            step = step_of(model, optimizer, flat, objective, objective if same else cross_entropy(model, other))
            report = optimizer.report
            assert report.damping == used
            factor = 1.5 if report.reduction_ratio < 0.25 else 2 / 3 if report.reduction_ratio > 0.75 else 1.0
            assert optimizer.damping == pytest.approx(used * factor, rel=1e-14)
            seen.add(factor)
            if not report.accepted:
                continue
            candidate = step / report.lr
            nn.utils.vector_to_parameters(flat(twin) + candidate, twin.parameters())
            change = float(F.cross_entropy(twin(other[0]), other[1]).detach()) - evaluation_loss
            predicted = float(oracle.gradient @ candidate + 0.5 * candidate @ oracle.ggn @ candidate)
            assert report.reduction_ratio == pytest.approx(change / predicted, rel=1e-6, abs=1e-8)
    assert seen == {1.5, 1.0, 2 / 3}


@pytest.mark.parametrize(("rule", "x"), [("truncate", 0.5), ("absolute", 0.5), ("ignore", 0.0)])
def test_an_indefinite_hessian_does_not_hold_the_step_at_a_saddle(rule, x, function):
    """With "ignore" the step is plain Newton's, which x = 0.5 draws to the saddle; on x = 0 the damping leads away."""
    point, objective = function(lambda x: (x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, x), x, 0.1)
    optimizer = HessianFree(point.parameters(), curvature="hessian", damping=0.1, solver=CG(nonpositive_curvature=rule))
    for _ in range(100):
        optimizer.step(objective)
        assert point.x.isfinite().all()
    assert float(objective.value()) == pytest.approx(-1.0, abs=1e-6)
    assert abs(float(point.x.detach()[1])) == pytest.approx(2**0.5, abs=1e-3)


def test_ignoring_nonpositive_curvature_is_newtons_step(function):
    point, objective = function(lambda x: (x[0] ** 2 - x[1] ** 2, x), 0.5, 0.1)
    options = {"damping": 0.0, "fixed": True, "line_search": False, "candidates": "last"}
    optimizer = HessianFree(point.parameters(), **parts(curvature="hessian", nonpositive_curvature="ignore", **options))
    optimizer.step(objective)
    torch.testing.assert_close(point.x.detach(), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_positive_slope_does_not_admit_an_increase(function):
    """The slope is the objective's, a thousand times the evaluation's: cut at zero, or any step would pass Armijo's."""
    point, objective = function(lambda x: (1000 * (x[0] ** 2 - x[1] ** 2), x), 0.0, 0.1)
    evaluation = Objective.from_forward(point, lambda: (point.x[0] ** 2 - point.x[1] ** 2, point.x))
    options = {"damping": 0.0, "candidates": "last", "nonpositive_curvature": "ignore"}
    optimizer = HessianFree(point.parameters(), **parts(curvature="hessian", **options))
    optimizer.step(objective, evaluation)
    assert not optimizer.report.accepted
    assert point.x.tolist() == [0.0, 0.1]
