"""On which data the reduction ratio takes the actual change, and what a runaway damping says."""

import math

import pytest
import torch
from torch import nn

from latephase import HessianFree, LevenbergMarquardt, Objective


def cross_entropy(model, data):
    return Objective(model, nn.CrossEntropyLoss(), data)


def test_the_actual_change_is_the_objectives_and_the_choice_the_evaluations(toy, dense, flat):
    model, data, other = toy.network(), toy.batch(), toy.batch(9, seed=4)
    reports, steps = {}, {}
    for ratio_data in ("evaluation", "objective"):
        twin = toy.network()
        optimizer = HessianFree(twin.parameters(), damping=LevenbergMarquardt(0.1, factors=(1.0, 1.0), data=ratio_data))
        before = dense(twin, *data)
        optimizer.step(cross_entropy(twin, data), cross_entropy(twin, other))
        reports[ratio_data], steps[ratio_data] = optimizer.report, flat(twin)
        candidate = (flat(twin) - flat(model)) / optimizer.report.lr
        predicted = float(before.gradient @ candidate + 0.5 * candidate @ before.ggn @ candidate)
        assert optimizer.report.predicted_change == pytest.approx(predicted, rel=1e-8)
        judged = data if ratio_data == "objective" else other
        start = dense(toy.network(), *judged).loss
        nn.utils.vector_to_parameters(flat(model) + candidate, twin.parameters())
        change = dense(twin, *judged).loss - start
        assert optimizer.report.reduction_ratio == pytest.approx(change / predicted, rel=1e-6)
    assert torch.equal(steps["evaluation"], steps["objective"])
    assert reports["evaluation"].reduction_ratio != reports["objective"].reduction_ratio


def test_on_one_objective_both_are_the_same_and_nothing_is_computed_twice(toy):
    ratios = []
    for ratio_data in ("evaluation", "objective"):
        model = toy.network()
        optimizer = HessianFree(model.parameters(), damping=LevenbergMarquardt(data=ratio_data))
        optimizer.step(cross_entropy(model, toy.batch()))
        ratios.append(optimizer.report.reduction_ratio)
    assert ratios[0] == ratios[1]


def test_a_damping_that_runs_away_says_so_once_and_names_the_ways_out(function):
    point, objective = function(lambda x: ((x - 1).square().sum(), x), 0.0)
    # To this evaluation every step of the objective is a step uphill.
    evaluation = Objective.from_forward(point, lambda: (point.x.square().sum() + 10 * point.x.sum(), point.x))
    optimizer = HessianFree(point.parameters())
    for _ in range(19):
        optimizer.step(objective, evaluation)
    with pytest.warns(UserWarning, match=r"risen 20 steps in a row, to 3.33e\+03.*data=\"objective\""):
        optimizer.step(objective, evaluation)
    for _ in range(5):  # said once; any warning would be an error here
        optimizer.step(objective, evaluation)
    assert optimizer.damping == pytest.approx(1.5**25)
    assert math.isinf(optimizer.report.reduction_ratio) or optimizer.report.reduction_ratio < 0.25


def test_an_unknown_choice_is_named(toy):
    with pytest.raises(ValueError, match=r"LevenbergMarquardt\.data must be one of evaluation, objective, got 'batch'"):
        LevenbergMarquardt(data="batch")


def test_with_debias_predicted_and_actual_change_are_the_evaluation_datas(toy):
    ratios = []
    for ratio_data in ("evaluation", "objective"):
        model = toy.network()
        optimizer = HessianFree(model.parameters(), damping=LevenbergMarquardt(data=ratio_data), debias=True)
        optimizer.step(cross_entropy(model, toy.batch()), cross_entropy(model, toy.batch(9, seed=4)))
        ratios.append(optimizer.report.reduction_ratio)
    assert ratios[0] == ratios[1]
