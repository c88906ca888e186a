"""Gauss-Newton, self-scaled Broyden and L-BFGS as strategies: the optimizers by hand, what is counted, physics."""

import dataclasses

import pytest
import torch
from every_kind import bits, context_at
from small_studies import first_order, hessian_free, study_of
from torch.utils._pytree import tree_map

from latephase import GaussNewton, SelfScaledBroyden
from latephase.problems import Splits, get
from latephase.problems.sampling import draw
from latephase.study.config import ConfigError
from latephase.study.performing.train import train
from latephase.study.strategies import StrategyContext, copied, start_strategy

SPRING = {"momentum": 0.9, "damping": {"kind": "fixed", "value": 1e-2}, "solver": {"max_step_norm": 0.1}}
PHYSICS = {
    "problem": "pinn_convection",
    "problem_options": {"width": 4, "beta": 1.0},
    "training": {"epochs": 1},
    "checkpoints": [0],
}
WOLFE = {"history_size": 100, "line_search_fn": "strong_wolfe", "tolerance_grad": 0, "tolerance_change": 0}


def gauss_newton(**changes):
    return {"kind": "gauss_newton", "name": "gn", "label": "GN"} | changes


def broyden(**changes):
    return {"kind": "self_scaled_broyden", "name": "ssb", "label": "S"} | changes


def lbfgs(**changes):
    return {"kind": "lbfgs", "name": "lbfgs", "label": "L", "options": WOLFE | {"max_iter": 20}} | changes


def few(data, rows=60):
    return [(tree_map(lambda leaf: leaf[:rows] if leaf.dim() else leaf, x), y[:rows]) for x, y in data]


def in_float64(data):
    return tree_map(lambda leaf: leaf.double(), data)


def physics_context(study, **changes):
    """A context of a small network on some points of the convection equation, in float64: a list of three batches."""
    problem, options = get("pinn_convection", **study.problem_options), {"seed": 3} | changes
    torch.manual_seed(0)
    model = problem.model().double()
    splits = problem.load()
    checkpoint = {"epoch": 0, "model": copied(model.state_dict()), "optimizer": None}
    splits = Splits(in_float64(few(splits.train)), in_float64(splits.valid), in_float64(splits.test))
    return StrategyContext(problem, splits, model, study.training, checkpoint, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study_of(first_order(), seeds=[0]))
    return directory


def whole(context):
    return context.problem.objective(context.model, context.problem.batch(context.splits.train))


def stepped(study, context, count):
    strategy = start_strategy(study.strategies[0], context)
    return strategy, [strategy.step(i / count) for i in range(count)]


def test_gauss_newton_on_all_points_is_the_optimizer_by_hand():
    study = study_of(gauss_newton(options={"damping": 0.5}), **PHYSICS)
    context, by_hand = physics_context(study), physics_context(study)
    strategy, reports = stepped(study, context, 5)
    optimizer = GaussNewton(by_hand.model.eval().parameters(), damping=0.5)
    for _ in range(5):
        optimizer.step(whole(by_hand))
    assert bits(copied(strategy.held())) == bits(copied(by_hand.model.state_dict()))
    assert reports[-1]["new_loss"] < 0.5 * reports[0]["loss"]
    assert [report["rows"] for report in reports] == [180] * 5
    work = context.work
    assert work.gradients == 5 * (180 + 180)  # of the loss, and the rows of J~
    tried = sum(report["dampings"] for report in reports)
    assert work.values == 2 * 180 * tried  # residuals and loss at each damping's end
    assert (work.products, work.forms, work.samples) == (0, 0, 5 * 180)


def test_without_acceleration_nothing_is_computed_of_it():
    study = study_of(gauss_newton(options={"solver": {"acceleration": 0}}), **PHYSICS)
    context = physics_context(study)
    _, reports = stepped(study, context, 3)
    assert context.work.values == 180 * sum(report["dampings"] for report in reports)


def test_momentum_goes_with_fresh_rows_which_nothing_else_judges(trained):
    study = study_of(gauss_newton(batch_size=24, options=SPRING), seeds=[0])
    assert study.strategies[0].evaluation_batch_size == 0
    context, by_hand = context_at(study, trained), context_at(study, trained)
    by_hand.problem = context.problem = dataclasses.replace(context.problem, augment=None)
    strategy, reports = stepped(study, context, 4)
    by_hand.model.load_state_dict(by_hand.checkpoint["model"])
    optimizer = GaussNewton(by_hand.model.eval().parameters(), **SPRING)
    assert (optimizer.param_groups[0]["damping"].value, optimizer.param_groups[0]["solver"].kind) == (1e-2, "direct")
    torch.manual_seed(7)
    for step in range(1, 5):
        (rows,) = draw(96, [24], 7, step)
        optimizer.step(by_hand.problem.objective(by_hand.model, by_hand.problem.batch(by_hand.splits.train, rows)))
    assert bits(copied(strategy.held())) == bits(copied(by_hand.model.state_dict()))
    rows = {report["rows"] for report in reports}
    assert rows == {24 * 3}  # a row of J~ for each row and class
    assert context.work.gradients == 4 * (24 + 24 * 3)


@pytest.mark.parametrize(("table", "held_out"), [
    (gauss_newton(), 0),
    (gauss_newton(batch_size=48), 24),  # judged, on a quarter of the split
    (gauss_newton(batch_size=48, options={"damping": {"kind": "fixed", "value": 1e-2}}), 0),
    (gauss_newton(batch_size=48, options={"damping": {"kind": "fixed", "value": 1e-2}, "line_search": True}), 24),
    (gauss_newton(batch_size=48, evaluation_batch_size=10), 10),
])  # fmt: skip
def test_rows_are_held_out_where_they_judge_something(table, held_out):
    assert study_of(table).strategies[0].evaluation_batch_size == held_out


def test_blocks_are_layers_and_the_curvature_may_be_of_a_part(trained):
    study = study_of(gauss_newton(blocks="layerwise", batch_size=48, curvature_batch_size=8), seeds=[0])
    context = context_at(study, trained)
    _, (report,) = stepped(study, context, 1)
    assert len(report["sides"]) == 3
    assert report["rows"] == 8 * 3
    assert context.work.gradients == 48 + 8 * 3


def test_a_direct_solve_of_hessian_free_counts_its_rows_too(trained):
    study = study_of(hessian_free(options={"solver": {"kind": "direct"}}), seeds=[0])
    context = context_at(study, trained)
    _, (report,) = stepped(study, context, 1)
    assert context.work.gradients == 32 + report["rows"] == 32 + 32 * 3


def test_warming_up_takes_the_same_steps():
    (strategy,) = study_of(gauss_newton()).strategies
    assert strategy.warm_up_version() is strategy


@pytest.mark.parametrize(("table", "said"), [
    (gauss_newton(preset="late_phase"), r"unknown key strategies\.0\.preset"),
    (gauss_newton(options={"momentum": 1.5}), "momentum must be a number >= 0 and < 1"),
    (gauss_newton(options={"solver": {"kind": "cg"}}), r"the solver of GaussNewton must be Direct"),
    (gauss_newton(options={"solver": {"side": "left"}}), "side"),
    (gauss_newton(options={"momentun": 0.5}), "no option of GaussNewton .did you mean 'momentum'"),
    (gauss_newton(evaluation_batch_size=8), "no rows are left for it"),
    (broyden(options={"update": "dfp"}), "update must be one of"),
    (broyden(options={"line_search": {"c2": 2}}), "c2"),
    (broyden(options={"damping": 1.0}), "no option of SelfScaledBroyden"),
    (broyden(batch_size=97), "exceeds the 96 training rows"),
])  # fmt: skip
def test_what_is_wrong_is_named(table, said):
    with pytest.raises(ConfigError, match=said):
        study_of(table)


def test_self_scaled_broyden_on_all_points_is_the_optimizer_by_hand():
    """With one objective, so that the gradient at a step's beginning is known, and counted once."""
    study = study_of(broyden(options={"line_search": {"c2": 0.5}}), **PHYSICS)
    context, by_hand = physics_context(study), physics_context(study)
    strategy, reports = stepped(study, context, 12)
    optimizer, objective = SelfScaledBroyden(by_hand.model.parameters(), line_search={"c2": 0.5}), whole(by_hand)
    gradients, known = 0, 0
    for step in range(12):
        optimizer.step(objective)
        gradients += optimizer.report.gradients
        known += bool(step) and optimizer.report.gradients == 1
    assert known > 0  # of a search that ended at its first trial
    assert bits(copied(strategy.held())) == bits(copied(by_hand.model.state_dict()))
    assert context.work.gradients == 180 * gradients
    assert context.work.samples == 12 * 180
    assert strategy.lr == reports[-1]["lr"]
    assert reports[-1]["new_loss"] < 0.5 * reports[0]["loss"]


@pytest.mark.filterwarnings("ignore:SelfScaledBroyden on parameters in torch.float32")
def test_on_batches_its_matrix_goes_on_and_every_gradient_is_new(trained):
    study = study_of(broyden(batch_size=48), seeds=[0])
    context = context_at(study, trained)
    _, reports = stepped(study, context, 4)
    assert all(report["gradients"] >= 2 for report in reports)  # at the beginning and at the end
    assert reports[-1]["updates"] > 1
    assert context.work.samples == 4 * 48


def test_lbfgs_takes_a_list_of_batches_in_float64_and_stops_for_no_tolerance():
    study = study_of(lbfgs(), **PHYSICS)
    context, by_hand = physics_context(study), physics_context(study)
    strategy, _ = stepped(study, context, 3)
    objective = whole(by_hand)
    optimizer = torch.optim.LBFGS(by_hand.model.parameters(), max_iter=20, **WOLFE)
    losses = [float(optimizer.step(objective)) for _ in range(3)]
    assert bits(copied(strategy.held())) == bits(copied(by_hand.model.state_dict()))
    assert strategy._optimizer.state_dict()["state"][0]["n_iter"] == 60
    assert context.work.gradients == 180 * strategy._optimizer.state_dict()["state"][0]["func_evals"]
    assert losses[-1] < 0.2 * losses[0]


def test_adam_and_then_lbfgs_share_a_budget():
    parts = [
        {"until": 0.5, "strategy": first_order(name="adam", optimizer="adam", lr=0.01)},
        {"until": 1.0, "strategy": lbfgs()},
    ]
    study = study_of({"kind": "chain", "name": "chain", "label": "C", "parts": parts}, **PHYSICS)
    context, by_hand = physics_context(study), physics_context(study)
    strategy = start_strategy(study.strategies[0], context)
    rates = []
    for share in (0.0, 0.2, 0.4, 0.5, 0.75):
        strategy.step(share)
        rates.append(strategy.lr)
    assert rates == [0.01, 0.01, 0.01, 1, 1]
    objective = whole(by_hand)
    adam = torch.optim.Adam(by_hand.model.parameters(), lr=0.01)
    for _ in range(3):
        adam.step(objective)
    optimizer = torch.optim.LBFGS(by_hand.model.parameters(), max_iter=20, **WOLFE)
    for _ in range(2):
        optimizer.step(objective)
    assert bits(copied(strategy.held())) == bits(copied(by_hand.model.state_dict()))
