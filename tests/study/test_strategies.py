"""Every kind of strategy does what its name says."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch
from every_kind import TABLES, bits, context_at, run_states, strategy_named
from small_studies import first_order, study_of
from torch import nn

from latephase.problems import get
from latephase.problems.sampling import Stream, batches, generator
from latephase.records.files import read_journal
from latephase.study.performing.evaluate import Evaluator
from latephase.study.performing.train import train
from latephase.study.strategies import StrategyContext, copied, hessian_free, start_strategy
from latephase.study.strategies.averages import BATCHES


@pytest.fixture(scope="module")
def study():
    return study_of(*TABLES, seeds=[0])


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study)
    return directory


@pytest.fixture(scope="module")
def context_of(study, trained):
    return functools.partial(context_at, study, trained)


def test_the_trainings_optimizer_goes_on_with_its_state(study, context_of):
    context = context_of()
    optimizer = start_strategy(strategy_named(study, "constant"), context)._optimizer
    assert optimizer.state_dict()["state"][0]["momentum_buffer"].abs().sum() > 0
    assert bits(optimizer.state_dict()["state"]) == bits(context.checkpoint["optimizer"]["state"])
    fresh = start_strategy(strategy_named(study, "adam"), context)
    assert (type(fresh._optimizer), fresh.lr) == (torch.optim.Adam, 0.01)


def test_learning_rates_follow_their_schedules(study, context_of):
    rates = {}
    for name in ("constant", "tenth", "cosine", "averaging"):
        strategy = start_strategy(strategy_named(study, name), context_of())
        rates[name] = [(strategy.step(share), strategy.lr)[1] for share in (0.0, 0.5, 1.0)]
    lr = study.training.lr
    assert rates["constant"] == rates["averaging"] == [lr, lr, lr]
    assert rates["tenth"] == pytest.approx([lr / 10] * 3, rel=1e-12)
    assert rates["cosine"] == pytest.approx([lr, lr / 2, 0.0])


def test_three_reductions_of_a_plateau_fit_into_the_budget():
    study = study_of(first_order("plateau"), problem="small_problems:flat", checkpoints=[40], training={})
    problem = get(study.problem)
    checkpoint = {"epoch": 40, "model": problem.model().state_dict(), "optimizer": None}
    context = StrategyContext(problem, problem.load(), problem.model(), study.training, checkpoint, 0, 0.4)
    strategy = start_strategy(study.strategies[0], context)
    rates = [(strategy.step(i / 16), strategy.lr)[1] for i in range(16)]  # 0.4 of 40 epochs of a step each
    assert rates[0] == 0.1
    assert sorted({round(math.log10(rate)) for rate in rates}) == [-4, -3, -2, -1]


def test_averaged_weights_are_the_running_mean_and_statistics_are_measured_anew(study, context_of):
    context, twin = context_of(), context_of()
    averaging = start_strategy(strategy_named(study, "averaging"), context)
    weights = []
    for _ in range(6):
        averaging.step(0.0)
    constant = start_strategy(strategy_named(study, "constant"), twin)
    for _ in range(6):
        constant.step(0.0)
        weights.append(copied(dict(twin.model.named_parameters())))
    held = copied(averaging.held())
    for name, parameter in context.model.named_parameters():
        mean = torch.stack([each[name] for each in weights]).mean(dim=0)
        torch.testing.assert_close(held[name], mean, rtol=1e-5, atol=1e-6)  # float32, another order of adding up
        assert not torch.equal(held[name], parameter)
    before, values = torch.get_rng_state(), context.work.values
    finished = averaging.finished(copied(held))
    assert torch.equal(torch.get_rng_state(), before)  # dropout drew, but not from the steps' generator
    assert bits(copied(averaging.held())) == bits(held)
    chosen = batches(96, 24, 7, 0)[:BATCHES]
    assert context.work.values - values == 24 * len(chosen)
    random = generator(Stream.EVALUATION, 7, 0)
    first = nn.Linear(6, 8)
    first.load_state_dict({"weight": held["0.weight"], "bias": held["0.bias"]})
    means = []
    for rows in chosen:
        inputs, _ = context.problem.batch(context.splits.train, rows, random)
        means.append(first(inputs).mean(dim=0))
    torch.testing.assert_close(finished["1.running_mean"], torch.stack(means).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not torch.equal(finished["1.running_mean"], held["1.running_mean"])
    assert bits({name: finished[name] for name, _ in context.model.named_parameters()}) == bits(
        {name: held[name] for name, _ in context.model.named_parameters()}
    )


def test_without_batch_norm_an_average_is_evaluated_as_it_is(study, context_of):
    strategy = start_strategy(strategy_named(study, "averaging"), context_of(batch_norm=False))
    strategy.step(0.0)
    state = copied(strategy.held())
    assert strategy.finished(state) is state
    assert strategy.context.work.values == 0


@pytest.fixture
def steps_of(study, context_of, monkeypatch):
    """A function: the objectives with which a strategy calls HessianFree, and its report."""

    def take(name):
        seen = {}

        class Watched(hessian_free.HessianFree):
            def step(self, objective, evaluation=None, curvature_objective=None):
                seen.update(objective=objective, evaluation=evaluation, curvature=curvature_objective)
                return super().step(objective, evaluation, curvature_objective)

        monkeypatch.setattr(hessian_free.HessianFreeSteps, "optimizer", Watched)
        strategy = start_strategy(strategy_named(study, name), context_of())
        report = strategy.step(0.0)
        return SimpleNamespace(**seen, report=report, optimizer=strategy._optimizer, model=strategy.model)

    return take


def inputs_of(objective):
    return {tuple(row) for chunk in objective.chunks for row in chunk.inputs.tolist()}


def test_hessian_free_steps_are_judged_on_other_rows_or_on_their_own(steps_of):
    held_out = steps_of("hf")
    assert (len(inputs_of(held_out.objective)), len(inputs_of(held_out.evaluation))) == (32, 16)
    assert not inputs_of(held_out.objective) & inputs_of(held_out.evaluation)
    assert held_out.report["evaluation_loss"] != held_out.report["loss"]
    assert not held_out.model.training
    assert held_out.optimizer.param_groups[0]["solver"].max_iter == 4
    own = steps_of("own-batch")
    assert own.evaluation is None
    assert own.report["evaluation_loss"] == own.report["loss"]


def test_curvature_may_come_from_a_part_of_the_batch(steps_of):
    part = steps_of("part")
    assert len(inputs_of(part.curvature)) == 8
    assert inputs_of(part.curvature) < inputs_of(part.objective)
    assert steps_of("hf").curvature is None


def test_all_rows_may_be_the_batch(steps_of):
    everything = steps_of("all-rows")
    assert len(inputs_of(everything.objective)) == 96
    assert everything.evaluation is None


def test_blocks_are_layers_and_the_preset_is_that_of_the_late_phase(steps_of):
    layers = steps_of("layers")
    assert len(layers.report["cg_iterations"]) == 3  # linear, batch norm, linear
    late = steps_of("late").optimizer.param_groups[0]
    assert (late["damping"].initial, late["solver"].max_iter, late["damping"].thresholds) == (0.3, 3, (0.0, 0.5))


@pytest.mark.parametrize("name", ["hf", "own-batch", "all-rows", "adamqlr", "sgdqlr", "lbfgs-all"])
def test_second_order_strategies_lower_the_training_loss(study, context_of, name):
    context = context_of(dropout=0.0)
    evaluate = Evaluator(context.problem, context.model, context.splits)
    strategy = start_strategy(strategy_named(study, name), context)
    before = evaluate(strategy.held())["train_loss"]
    for i in range(10):
        strategy.step(i / 10)
    assert evaluate(strategy.held())["train_loss"] < 0.9 * before


def test_a_chain_hands_over_at_its_shares_what_it_would_evaluate(study, trained, context_of, tmp_path, monkeypatch):
    run_states(study, trained, tmp_path, strategy_named(study, "chain"), monkeypatch, 8)
    (path,) = tmp_path.glob("chain-*/runs/*/rows.jsonl")
    rows = read_journal(path)
    assert [row["step"] for row in rows if row["event"] == "step"] == [3, 4]  # of Hessian-free: shares 0.25 to 0.5
    lr = study.training.lr
    rates = [row["lr"] for row in rows if row["event"] == "evaluation"]
    assert rates[5:] == pytest.approx([lr * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])
    strategy = start_strategy(strategy_named(study, "chain"), context_of())
    strategy.step(0.0)
    strategy.step(0.1)
    averaged = bits(strategy.finished(copied(strategy.held())))
    started = []
    step = hessian_free.HessianFree.step
    monkeypatch.setattr(
        hessian_free.HessianFree,
        "step",
        lambda self, objective, **others: (
            started.append(bits(copied(objective.model.state_dict()))),
            step(self, objective, **others),
        )[1],
    )
    strategy.step(0.25)
    assert started == [averaged]


def test_a_later_part_of_a_chain_gets_rows_of_its_own(study, context_of):
    twice = {"kind": "chain", "name": "twice", "label": "twice"}
    twice["parts"] = [{"until": until, "strategy": first_order()} for until in (0.5, 1.0)]
    context = context_of()
    strategy = start_strategy(study_of(twice).strategies[0], context)
    seen = []
    make = context.problem.batch
    object.__setattr__(context.problem, "batch", lambda data, rows, random: (seen.append(rows), make(data, rows))[1])
    strategy.step(0.0)
    strategy.step(0.5)
    assert not torch.equal(seen[0], seen[1])
