"""Averages of the weights against their definitions, and schedules of the rate."""

import math

import pytest
import torch
from every_kind import bits, context_at
from hypothesis import given, settings
from hypothesis import strategies as st
from small_studies import first_order, study_of, table
from torch import nn

from latephase.optim import ExponentialAverage, WindowAverage
from latephase.study.config import ConfigError, parse_study
from latephase.study.performing.train import train
from latephase.study.strategies import StrategyContext, copied, start_strategy
from latephase.study.strategies.averages import MARKS, Mean, Shared

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(sorted)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study_of(first_order(), seeds=[0]))
    return directory


def walked(make, shares):
    """What an average holds after steps that began at these shares, and the weights of each step, in float64."""
    random = torch.Generator().manual_seed(0)
    model = nn.Linear(2, 2).double()
    context = StrategyContext(None, None, model, None, {}, 0)
    average, weights = make(context), []
    assert bits(average.state()) == bits(model.state_dict())
    for share in shares:
        weights.append(torch.randn(2, 2, generator=random, dtype=torch.float64))
        model.weight.data.copy_(weights[-1])
        average.update(share)
    return average.state()["weight"], weights


@settings(deadline=None, max_examples=30)
@given(shares=SHARES, horizon=st.floats(1e-3, 1.0))
def test_an_exponential_average_has_the_factors_that_it_says(shares, horizon):
    held, weights = walked(lambda context: Shared(context, ExponentialAverage(horizon)), shares)
    factors = [math.exp(-(shares[-1] - share) / horizon) for share in shares]
    expected = sum(factor * each for factor, each in zip(factors, weights, strict=True)) / sum(factors)
    torch.testing.assert_close(held, expected, rtol=1e-11, atol=1e-11)  # 30 steps of float64's rounding, 1e-16 each


def test_with_a_horizon_beyond_the_budget_it_is_the_mean_of_all():
    shares = [i / 20 for i in range(20)]
    exponential, weights = walked(lambda context: Shared(context, ExponentialAverage(1e9)), shares)
    mean, _ = walked(Mean, shares)
    torch.testing.assert_close(exponential, mean, rtol=0, atol=1e-8)  # exp(-1e-9) is not 1
    torch.testing.assert_close(mean, torch.stack(weights).mean(dim=0), rtol=0, atol=1e-13)


@settings(deadline=None, max_examples=30)
@given(hundredths=st.lists(st.integers(0, 99), min_size=1, max_size=40).map(sorted), window=st.integers(1, 6))
def test_the_latest_states_are_one_of_each_hundredth(hundredths, window):
    held, weights = walked(
        lambda context: Shared(context, WindowAverage(window, MARKS)), [each / 100 for each in hundredths]
    )
    first_of = {each: i for i, each in reversed(list(enumerate(hundredths)))}
    taken = [weights[i] for i in sorted(first_of.values())][-window:]
    torch.testing.assert_close(held, torch.stack(taken).mean(dim=0), rtol=0, atol=1e-13)  # of float64


@pytest.mark.parametrize("schedule", ["averaging", "ema", "lawa"])
def test_looking_at_an_average_moves_no_step_and_statistics_are_renewed(trained, schedule):
    study, ends = study_of(first_order(schedule), seeds=[0]), []
    for looks in (False, True):
        context = context_at(study, trained)
        strategy = start_strategy(study.strategies[0], context)
        for i in range(6):
            strategy.step(i / 6)
            finished = strategy.finished(copied(strategy.held())) if looks else {}
        ends.append([bits(copied(context.model.state_dict())), bits(copied(strategy.held()))])
    assert ends[0] == ends[1]
    assert not torch.equal(finished["1.running_mean"], context.model.state_dict()["1.running_mean"])
    assert bits(finished["0.weight"]) == ends[0][1]["0.weight"] != ends[0][0]["0.weight"]


def test_a_schedule_free_optimizer_evaluates_its_average_and_steps_on_as_if_nobody_looked(trained):
    pytest.importorskip("schedulefree", reason="schedule-free AdamW is of an optional package")
    study, ends = study_of(first_order(optimizer="schedule_free"), seeds=[0]), []
    for looks in (False, True):
        context = context_at(study, trained)
        strategy = start_strategy(study.strategies[0], context)
        assert strategy.lr == 2.5e-3
        for i in range(6):
            held = copied(strategy.held()) if looks or i == 5 else {}
            strategy.step(i / 6)
        ends.append(bits(copied(context.model.state_dict())))
    assert ends[0] == ends[1]
    optimizer, held = strategy._optimizer, copied(strategy.held())
    optimizer.eval()
    assert bits(held) == bits(copied(context.model.state_dict())) != ends[0]
    assert not torch.equal(strategy.finished(held)["1.running_mean"], held["1.running_mean"])


def test_rates_go_to_zero_over_the_budget_in_the_way_that_is_asked_for(trained):
    rates = {}
    for schedule in ("linear", "one_minus_sqrt"):
        study = study_of(first_order(schedule), seeds=[0])
        strategy = start_strategy(study.strategies[0], context_at(study, trained))
        rates[schedule] = [(strategy.step(share), strategy.lr)[1] for share in (0.0, 0.25, 1.0, 1.1)]
    assert rates["linear"] == pytest.approx([0.05, 0.0375, 0.0, 0.0])
    assert rates["one_minus_sqrt"] == pytest.approx([0.05, 0.025, 0.0, 0.0])


KEYS = st.sampled_from(["horizon", "window", "redraw", "schedule", "optimizer"])
VALUES = st.one_of(st.integers(-3, 3), st.floats(allow_nan=True), st.text(max_size=8), st.booleans(), st.none())


@settings(deadline=None, max_examples=40)
@given(key=KEYS, value=VALUES, schedule=st.sampled_from(["constant", "ema", "lawa"]))
def test_whatever_a_key_is_given_it_is_taken_or_named(key, value, schedule):
    try:
        said = getattr(parse_study(table(first_order(schedule) | {key: value}), "x").strategies[0], key)
    except ConfigError as error:
        said = str(error)
    assert (said == value and type(said) is type(value)) or key in said


@pytest.mark.parametrize(("changes", "said"), [
    ({"horizon": 0.1}, 'horizon goes with schedule = "ema", got "cosine"'),
    ({"window": 3}, 'window goes with schedule = "lawa", got "cosine"'),
])  # fmt: skip
def test_keys_of_one_average_are_refused_elsewhere(changes, said):
    with pytest.raises(ConfigError, match=said):
        study_of(first_order("cosine", **changes))
