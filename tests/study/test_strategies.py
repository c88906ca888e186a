"""Every kind of strategy: where it starts, what it does, and that neither warm-up nor evaluation touches it."""

import math
from types import SimpleNamespace

import pytest
import torch
from small_studies import custom, first_order, hessian_free, study_of
from torch import nn

from latephase.problems import get
from latephase.problems.sampling import Stream, batches, generator
from latephase.study import run as run_module
from latephase.study import second_order
from latephase.study.averaging import BATCHES
from latephase.study.checkpoint import checkpoint_path, load_checkpoint
from latephase.study.context import StrategyContext
from latephase.study.evaluate import Evaluator
from latephase.study.run import Conditions, perform_run
from latephase.study.runs import RunKey
from latephase.study.store import read_journal, read_json
from latephase.study.strategies import start_strategy
from latephase.study.strategy import copied
from latephase.study.train import train

OWN_BATCH = hessian_free(name="own-batch", evaluation_batch_size=0)
QLR = {"label": "qlr", "batch_size": 48, "options": {"lr_clip": 0.1}}
CHAIN = {
    "kind": "chain",
    "name": "chain",
    "label": "chain",
    "parts": [
        {"until": 0.25, "strategy": first_order("averaging")},
        {"until": 0.5, "strategy": hessian_free()},
        {"until": 1.0, "strategy": first_order("cosine")},
    ],
}
TABLES = [
    *(first_order(schedule) for schedule in ("constant", "tenth", "cosine", "plateau", "averaging")),
    first_order(name="adam", optimizer="adam", lr=0.01),
    hessian_free(),
    OWN_BATCH,
    hessian_free(name="part", curvature_batch_size=8),
    hessian_free(name="layers", blocks="layerwise"),
    hessian_free(name="late", preset="late_phase", options={}),
    hessian_free(name="all-rows", batch_size=None, evaluation_batch_size=None),
    {"kind": "adamqlr", "name": "adamqlr", **QLR},
    {"kind": "sgdqlr", "name": "sgdqlr", **QLR},
    {"kind": "lbfgs", "name": "lbfgs", "label": "lbfgs", "batch_size": 48, "options": {"max_iter": 3}},
    {"kind": "lbfgs", "name": "lbfgs-all", "label": "lbfgs", "options": {"max_iter": 3}},
    CHAIN,
    custom("Plain"),
]
for each in TABLES:
    for key in [key for key, value in each.items() if value is None]:
        del each[key]


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
    """A function: a fresh context at the checkpoint of epoch 3, with momentum in its optimizer's state."""

    def make(problem="small_problems:noisy", seed=7, **options):
        found = get(problem, **options)
        checkpoint = load_checkpoint(checkpoint_path(trained, 3))
        if problem != "small_problems:noisy" or options:
            checkpoint |= {"model": found.model().state_dict(), "optimizer": None}
        return StrategyContext(found, found.load(), found.model(), study.training, checkpoint, seed)

    return make


def strategy_named(study, name):
    return next(strategy for strategy in study.strategies if strategy.name == name)


def bits(tree):
    if isinstance(tree, torch.Tensor):
        return bytes(tree.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    return [bits(value) for value in tree] if isinstance(tree, list) else tree


def run_states(study, trained, tmp_path, strategy, monkeypatch, evaluations, amount=8):
    """The states that a run evaluates, bit for bit, by step, and its rows."""
    states = []

    class Recorder(Evaluator):
        def __call__(self, state):
            states.append(bits(state))
            return super().__call__(state)

    monkeypatch.setattr(run_module, "Evaluator", Recorder)
    changed = study.model_copy(update={"evaluations": evaluations})
    directory = tmp_path / f"{strategy.name}-{evaluations}-{run_module.WARM_UP_STEPS}"
    directory.mkdir()
    (directory / "training").symlink_to(trained / "training")
    key = RunKey(3, strategy, 0)
    assert perform_run(Conditions(directory, changed, amount, 0.5, {}), key) == "finished"
    rows = [r for r in read_journal(directory / "runs" / key.run_id / "rows.jsonl") if r["event"] == "evaluation"]
    assert [row["step"] for row in rows] == [amount * i // evaluations for i in range(evaluations + 1)]
    return dict(zip([row["step"] for row in rows], states, strict=True)), rows


SAME_CODE = ("own-batch", "layers", "late", "all-rows", "lbfgs-all", "sgdqlr", "tenth")
"""Strategies that differ from others in what an optimizer is given."""
CURVED = ("hf", "part", "adamqlr", "chain")


@pytest.mark.parametrize("name", [table["name"] for table in TABLES if table["name"] not in SAME_CODE])
def test_neither_warm_up_nor_evaluation_changes_a_trajectory_bit_for_bit(study, trained, tmp_path, monkeypatch, name):
    strategy = strategy_named(study, name)
    checkpoint = load_checkpoint(checkpoint_path(trained, 3))
    seldom, rows = run_states(study, trained, tmp_path, strategy, monkeypatch, 2)
    often, more_rows = run_states(study, trained, tmp_path, strategy, monkeypatch, 8)
    assert seldom[0] == bits(checkpoint["model"])
    assert seldom == {step: often[step] for step in seldom}
    assert rows == [row for row in more_rows if row["step"] in seldom]
    assert often[8] != often[0]
    # Without any, curvature would be traced later, and rounded otherwise until then.
    monkeypatch.setattr(run_module, "WARM_UP_STEPS", 6 if name in CURVED else 0)
    assert run_states(study, trained, tmp_path, strategy, monkeypatch, 2)[0] == seldom


@pytest.mark.parametrize("name", [table["name"] for table in TABLES])
def test_a_strategy_starts_from_the_same_bits_whatever_ran_before(study, context_of, name):
    strategy, context = strategy_named(study, name), context_of()
    saved = bits(context.checkpoint)
    seen = []
    for _ in range(2):
        started = start_strategy(strategy, context)
        optimizer = getattr(started, "_optimizer", None)
        seen.append(
            (
                bits(copied(started.held())),
                bits(torch.get_rng_state()),
                bits(optimizer.state_dict()["state"]) if optimizer is not None else None,
                [module.training for module in context.model.modules()],
                [p.grad for p in context.model.parameters()],
            )
        )
        for share in (0.0, 0.3, 0.6, 0.6):
            started.step(share)
    assert seen[0] == seen[1]
    assert seen[0][0] == saved["model"]
    assert bits(context.checkpoint) == saved  # momentum buffers are changed in place


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

        class Watched(second_order.HessianFree):
            def step(self, objective, evaluation=None, curvature_objective=None):
                seen.update(objective=objective, evaluation=evaluation, curvature=curvature_objective)
                return super().step(objective, evaluation, curvature_objective)

        monkeypatch.setattr(second_order, "HessianFree", Watched)
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
    assert held_out.optimizer.param_groups[0]["cg_max_iter"] == 4
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
    assert (late["damping"], late["cg_max_iter"], tuple(late["damping_thresholds"])) == (0.3, 3, (0.0, 0.5))


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
    step = second_order.HessianFree.step
    monkeypatch.setattr(
        second_order.HessianFree,
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


def test_evaluation_with_random_numbers_leaves_the_generator_alone_and_repeats_itself():
    problem = get("small_problems:draws_in_eval")
    model = problem.model()
    evaluate = Evaluator(problem, model, problem.load())
    before = torch.get_rng_state()
    assert evaluate(model.state_dict()) == evaluate(model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_run_says_of_itself(study, trained, tmp_path, monkeypatch):
    run_states(study, trained, tmp_path, strategy_named(study, "hf"), monkeypatch, 4)
    (folder,) = tmp_path.glob("hf-*/runs/*")
    run, status = read_json(folder / "run.json"), read_json(folder / "status.json")
    assert run["kind"] == "hessian_free"
    assert (run["unit"], run["budget"], run["seed"], run["checkpoint_epoch"]) == ("steps", 8, 0, 3)
    assert status["cold_seconds"] == pytest.approx(status["scored_seconds"] + status["warmup_seconds"])
    assert status["warmup_seconds"] > 0
    assert (status["steps"], status["spent"], status["overshoot"]) == (8, 8.0, 0.0)
    clocks = read_journal(folder / "clocks.jsonl")
    rows = [row for row in read_journal(folder / "rows.jsonl") if row["event"] == "evaluation"]
    assert [(c["spent"], c["step"]) for c in clocks] == [(r["spent"], r["step"]) for r in rows]
    assert clocks[-1]["scored_seconds"] == status["scored_seconds"]
