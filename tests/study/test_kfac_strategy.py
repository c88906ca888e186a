"""K-FAC as a strategy of a study."""

import functools

import pytest
from every_kind import context_at, run_states, strategy_named
from small_studies import study_of

from latephase.optim import KFAC
from latephase.study.config import ConfigError
from latephase.study.performing.evaluate import Evaluator
from latephase.study.performing.train import train
from latephase.study.strategies import start_strategy

FIXED = {
    "lr": 0.1,
    "momentum": 0.9,
    "damping": {"kind": "fixed", "value": 1.0},
    "factors": {"period": 2, "probes": 3},
}


def kfac(name="kfac", **changes):
    table = {"kind": "kfac", "name": name, "label": "K-FAC", "batch_size": 48} | changes
    return {key: value for key, value in table.items() if value is not None}


@pytest.fixture(scope="module")
def study():
    return study_of(kfac(), kfac("all-rows", batch_size=None), kfac("fixed", options=FIXED), seeds=[0])


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study)
    return directory


@pytest.fixture(scope="module")
def context_of(study, trained):
    return functools.partial(context_at, study, trained)


@pytest.mark.parametrize("name", ["kfac", "all-rows"])
def test_it_lowers_the_training_loss(study, context_of, name):
    context = context_of(dropout=0.0)
    evaluate = Evaluator(context.problem, context.model, context.splits)
    strategy = start_strategy(strategy_named(study, name), context)
    before = evaluate(strategy.held())["train_loss"]
    reports = [strategy.step(i / 10) for i in range(10)]
    assert evaluate(strategy.held())["train_loss"] < 0.7 * before
    assert strategy.lr == reports[-1]["lr"]
    assert reports[-1]["diagonal_layers"] == ["1"]  # batch norm


def test_work_is_counted(study, context_of):
    context = context_of()
    strategy = start_strategy(strategy_named(study, "kfac"), context)
    for i in range(5):
        strategy.step(i / 5)
    work, rows = context.work.as_dict(), 48
    # A gradient for loss, factors and diagonal; forms of the direction and, from the second step on, of the plane; the
    # new loss where the damping is adapted, in the fifth step.
    assert work == {
        "samples": 5 * rows, "gradients": 15 * rows, "forms": 13 * rows, "values": rows, "products": 0
    }  # fmt: skip


def test_fixed_rates_need_no_forms(study, context_of):
    context = context_of()
    strategy = start_strategy(strategy_named(study, "fixed"), context)
    for i in range(4):
        strategy.step(i / 4)
    work, rows = context.work.as_dict(), 48
    assert (work["gradients"], work["forms"], work["values"]) == ((4 + 2 * 2 * 3) * rows, 0, 0)
    assert strategy.lr == pytest.approx(0.1)
    assert isinstance(strategy._optimizer, KFAC)


def test_neither_warm_up_nor_evaluation_changes_its_trajectory(study, trained, tmp_path, monkeypatch):
    strategy = strategy_named(study, "kfac")
    seldom, _ = run_states(study, trained, tmp_path, strategy, monkeypatch, 2)
    often, _ = run_states(study, trained, tmp_path, strategy, monkeypatch, 8)
    assert seldom == {step: often[step] for step in seldom}
    assert often[8] != often[0]


def test_unknown_options_are_named():
    with pytest.raises(
        ConfigError, match=r"factors: KroneckerFactors has no 'inverse_periods' \(did you mean 'inverse_period'\?\)"
    ):
        study_of(kfac(options={"factors": {"inverse_periods": 3}}))
    with pytest.raises(ConfigError, match=r"'adapt_periods' is no option of KFAC \(did you mean 'adapt_period'\?\)"):
        study_of(kfac(options={"adapt_periods": 3}))
    with pytest.raises(ConfigError, match="adapt_period must be a whole number >= 1"):
        study_of(kfac(options={"adapt_period": -1}))


@pytest.mark.parametrize(("option", "value", "now"), [
    ("inverse_period", 3, "options.inverse_period is factors.inverse_period = 3"),
    ("weight_sharing", "reduce", 'options.weight_sharing is factors.weight_sharing = "reduce"'),
    ("damping_range", [0.1, 1.0], r"options.damping_range is damping.range = \[0.1, 1.0\]"),
    ("damping_decay", 0.9, r"options.damping_decay is damping.factors = \[x, 1 / x\] with x = 0.9 \*\* adapt_period"),
])  # fmt: skip
def test_options_of_a_former_release_are_named_as_a_file_has_them(option, value, now):
    with pytest.raises(ConfigError, match=now):
        study_of(kfac(options={option: value}))
