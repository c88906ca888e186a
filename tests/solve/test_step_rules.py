"""The rules after CG at their thresholds: backtracking, reduction ratio, damping, line search."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latephase.solve import armijo, backtrack, levenberg_marquardt, quotient, reduction_ratio, resolution

INF, NAN = math.inf, math.nan
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)


# ---------------------------------------------------------------------------------------------------------------------
# Backtracking over CG's candidates


class Candidates:
    """value(index) of a hand-made sequence; remembers the order of the calls."""

    def __init__(self, values: Sequence[float]):
        self.values = values
        self.calls: list[int] = []

    def __call__(self, index: int) -> float:
        self.calls.append(index)
        return self.values[index]


@pytest.mark.parametrize(
    ("values", "chosen", "evaluations"),
    [
        ([1.0], 0, 1),
        ([3.0, 2.0, 1.0], 2, 2),
        ([1.0, 2.0, 3.0], 0, 3),
        ([5.0, 1.0, 2.0, 3.0], 1, 4),
        ([0.0, 5.0, 1.0, 2.0], 2, 3),
        ([0.0, 2.0, 2.0], 2, 2),
        ([5.0, 1.0, 2.0, NAN], 1, 4),
        ([5.0, 1.0, INF, NAN], 1, 4),
        ([9.0, 7.0, INF, NAN, INF], 1, 5),
        ([7.0, NAN], 0, 2),
    ],
    ids=[
        "single",
        "last_is_best",
        "first_is_best",
        "stops_at_the_first_worsening",
        "does_not_look_beyond_a_worsening",
        "no_change_is_no_improvement",
        "past_a_nan",
        "past_inf_and_nan",
        "past_three",
        "nan_then_the_only_one",
    ],
)
def test_backtracking_walk(values, chosen, evaluations):
    value = Candidates(values)
    assert backtrack(value, len(values)) == (chosen, values[chosen])
    assert value.calls == list(range(len(values) - 1, len(values) - 1 - evaluations, -1))


def test_backtracking_where_nothing_is_finite():
    value = Candidates([NAN, INF, NAN])
    index, loss = backtrack(value, 3)
    assert len(value.calls) == 3
    assert 0 <= index < 3
    assert not math.isfinite(loss)


def test_backtracking_never_prefers_a_nonfinite_candidate():
    index, loss = backtrack(Candidates([3.0, NAN, 2.0]), 3)
    assert (index, loss) == (2, 2.0)
    index, loss = backtrack(Candidates([3.0, INF, 2.0]), 3)
    assert (index, loss) == (2, 2.0)


@pytest.mark.parametrize(
    ("values", "staying", "chosen", "evaluations"),
    [
        ([0.5, 5.0, 6.0], 1.0, 0, 3),
        ([0.5, 6.0, 5.0], 1.0, 0, 3),
        ([0.9, 0.5, 6.0, 5.0], 1.0, 1, 4),
        ([0.1, 0.9, 0.5, 6.0], 1.0, 2, 3),
        ([0.5, NAN, 3.0, INF, 5.0], 1.0, 0, 5),
        ([0.5, 2.0, math.nextafter(1.0, 0.0)], 1.0, 2, 2),
        ([0.5, 2.0, math.nextafter(1.0, 2.0)], 1.0, 0, 3),
        ([4.0, 2.0, 3.0], 1.0, 1, 3),
        ([2.0, 3.0, 4.0], 1.0, 0, 3),
        ([4.0, 3.0, 2.0], 1.0, 2, 3),
        ([NAN, 3.0, INF], 1.0, 1, 3),
        ([2.0], 1.0, 0, 1),
    ],
    ids=[
        "falling_until_better_than_staying",
        "past_a_worsening_that_is_worse_than_staying",
        "stops_once_it_was_better",
        "does_not_look_beyond_a_worsening",
        "past_what_is_not_finite",
        "a_rounding_below_is_better",
        "a_rounding_above_is_worse",
        "all_worse_the_best_is_inside",
        "all_worse_the_best_is_first",
        "all_worse_the_best_is_last",
        "all_worse_or_not_finite",
        "a_single_one",
    ],
)
def test_backtracking_passes_over_what_is_worse_than_staying(values, staying, chosen, evaluations):
    value = Candidates(values)
    assert backtrack(value, len(values), staying) == (chosen, values[chosen])
    assert value.calls == list(range(len(values) - 1, len(values) - 1 - evaluations, -1))


@PROPERTY
@given(
    st.lists(st.one_of(st.integers(0, 9).map(float), st.sampled_from([NAN, INF])), min_size=1, max_size=12),
    st.one_of(st.integers(0, 9).map(lambda i: i + 0.5), st.just(INF)),
)
def test_backtracking_with_staying_is_the_walk_by_definition(values, staying):
    """From the end: the first that is not worse than staying, and from there on for as long as the loss falls."""
    value = Candidates(values)
    index, loss = backtrack(value, len(values), staying)
    evaluations = len(value.calls)
    assert value.calls == list(range(len(values) - 1, len(values) - 1 - evaluations, -1))
    good = [i for i, v in enumerate(values) if math.isfinite(v) and v < staying]
    if good:
        expected = good[-1]
        while expected > 0 and values[expected - 1] < values[expected]:
            expected -= 1
        assert (index, loss) == (expected, values[expected])
        assert evaluations == len(values) - max(expected - 1, 0)
        return
    assert evaluations == len(values)
    finite = [v for v in values if math.isfinite(v)]
    assert (loss == values[index] == min(finite)) if finite else not math.isfinite(loss)


def test_staying_is_infinite_by_default():
    for values in ([5.0, 6.0, 5.0], [1.0, 2.0], [NAN, 7.0, INF]):
        assert backtrack(Candidates(values), len(values)) == backtrack(Candidates(values), len(values), INF)


# ---------------------------------------------------------------------------------------------------------------------
# Reduction ratio and Levenberg-Marquardt


@pytest.mark.parametrize(
    ("change", "predicted", "ratio"),
    [
        (-1.0, -2.0, 0.5),
        (-2.0, -2.0, 1.0),
        (-4.0, -2.0, 2.0),
        (1.0, -2.0, -0.5),
        (0.0, -2.0, 0.0),
        (-1.0, 0.0, -INF),
        (-1.0, 2.0, -INF),
        (0.0, 0.0, -INF),
        (NAN, -1.0, -INF),
        (INF, -1.0, -INF),
        (-INF, -1.0, -INF),
        (-1.0, NAN, -INF),
        (-1.0, -INF, -INF),
        (-1.0, INF, -INF),
        (-1e300, -1e-300, -INF),
    ],
)
def test_reduction_ratio(change, predicted, ratio):
    assert reduction_ratio(change, predicted) == ratio


@pytest.mark.parametrize(
    ("change", "predicted", "size", "ratio"),
    [
        (-1.0, -2.0, 1.0, 0.5),
        (-1.0, -1.0, 1.0, NAN),
        (3.0, 0.5, 1.0, NAN),
        (0.0, 0.0, 0.0, NAN),
        (0.0, 0.0, None, -INF),
        (INF, -0.5, 1.0, -INF),
        (NAN, -0.5, 1.0, -INF),
        (-1.0, NAN, 1.0, -INF),
        (-1.0, -2.0, INF, 0.5),
        (-1.0, -2.0, NAN, 0.5),
    ],
)
def test_a_prediction_within_the_rounding_of_the_loss_says_nothing(change, predicted, size, ratio):
    found = reduction_ratio(change, predicted, size)
    assert math.isnan(found) if math.isnan(ratio) else found == ratio


@pytest.mark.parametrize(
    ("change", "predicted", "size", "ratio"),
    [
        (-1.0, -2.0, 1.0, 0.5),
        (3.0, 1.5, 1.0, 2.0),
        (-3.0, 1.5, 1.0, -2.0),
        (3.0, 0.5, 1.0, NAN),
        (0.0, 0.0, None, NAN),
        (1.0, 0.0, None, INF),
        (1.0, -0.0, None, -INF),
        (INF, -0.5, 1.0, -INF),
        (NAN, -0.5, 1.0, NAN),
    ],
)
def test_a_ratio_of_either_sign_is_a_quotient(change, predicted, size, ratio):
    found = reduction_ratio(change, predicted, size, either_sign=True)
    assert math.isnan(found) if math.isnan(ratio) else found == ratio


@PROPERTY
@given(st.floats(), st.floats() | st.sampled_from([0.0, -0.0, INF, -INF]))
def test_quotients_are_numpys(x, y):
    with np.errstate(all="ignore"):
        expected = float(np.float64(x) / np.float64(y))
    found = quotient(x, y)
    assert repr(found) == repr(expected)  # which tells zeros apart, and not one NaN from another


def test_the_resolution_of_a_loss_is_four_units_of_rounding():
    assert resolution(-8.0, 2**-52) == 4 * 8 * 2**-52
    assert resolution(0.0, 2**-52) == 0


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [
        (math.nextafter(0.25, 0.0), 3 / 2),
        (0.25, 1.0),
        (math.nextafter(0.25, 1.0), 1.0),
        (0.5, 1.0),
        (math.nextafter(0.75, 0.0), 1.0),
        (0.75, 1.0),
        (math.nextafter(0.75, 1.0), 2 / 3),
        (1.0, 2 / 3),
        (50.0, 2 / 3),
        (0.0, 3 / 2),
        (-2.0, 3 / 2),
        (-INF, 3 / 2),
        (NAN, 1.0),
    ],
)
@pytest.mark.parametrize("damping", [1.0, 1e-8, 45.0])
def test_levenberg_marquardt(ratio, factor, damping):
    # Up to the rounding of one or two operations; without a change the damping is the same number.
    assert levenberg_marquardt(damping, ratio) == pytest.approx(damping * factor, rel=1e-15, abs=0.0)
    if factor == 1.0:
        assert levenberg_marquardt(damping, ratio) == damping


@pytest.mark.parametrize(
    ("thresholds", "ratio", "expected"),
    [
        ((0.1, 0.9), 0.2, 1.0),
        ((0.1, 0.9), 0.05, 4.0),
        ((0.1, 0.9), 0.95, 0.5),
        ((0.5, 0.5), 0.5, 1.0),
        ((0.5, 0.5), math.nextafter(0.5, 0.0), 4.0),
        ((0.5, 0.5), math.nextafter(0.5, 1.0), 0.5),
        ((-1.0, 2.0), -0.5, 1.0),
        ((-1.0, 2.0), -1.5, 4.0),
        ((-1.0, 2.0), NAN, 1.0),
        ((-1.0, 2.0), -INF, 4.0),
        ((-1.0, 2.0), INF, 0.5),
    ],
)
def test_levenberg_marquardt_thresholds(thresholds, ratio, expected):
    assert levenberg_marquardt(1.0, ratio, thresholds=thresholds, factors=(0.5, 4.0)) == expected


@pytest.mark.parametrize(
    ("damping", "ratio", "expected"),
    [
        (1.0, 0.9, 0.75),  # 0.5 would be below the least
        (1.0, 0.1, 1.5),  # 4.0 would be above the greatest
        (1.0, 0.5, 1.0),
        (0.75, 0.9, 0.75),
        (1.5, 0.1, 1.5),
        (0.75, 0.1, 1.5),
        (1.5, 0.9, 0.75),
        (1.5, NAN, 1.5),
        (9.0, NAN, 9.0),
        (9.0, 0.5, 1.5),
    ],
)
def test_levenberg_marquardt_bounds(damping, ratio, expected):
    options = {"factors": (0.5, 4.0), "bounds": (0.75, 1.5)}
    assert levenberg_marquardt(damping, ratio, **options) == expected


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@PROPERTY
@given(
    damping=st.floats(1e-12, 1e12),
    ratio=st.one_of(FINITE, st.sampled_from([NAN, INF, -INF])),
    thresholds=st.tuples(FINITE, FINITE).map(lambda pair: tuple(sorted(pair))),
    factors=st.tuples(st.floats(0.01, 1.0), st.floats(1.0, 100.0)),
    bounds=st.tuples(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12)).map(lambda pair: tuple(sorted(pair))),
)
def test_levenberg_marquardt_by_definition(damping, ratio, thresholds, factors, bounds):
    after = levenberg_marquardt(damping, ratio, thresholds=thresholds, factors=factors, bounds=bounds)
    if math.isnan(ratio):
        assert after == damping
        return
    assert bounds[0] <= after <= bounds[1]
    factor = factors[0] if ratio > thresholds[1] else 1.0 if ratio >= thresholds[0] else factors[1]
    assert after == pytest.approx(min(max(damping * factor, bounds[0]), bounds[1]), rel=1e-14, abs=0.0)
    unbounded = levenberg_marquardt(damping, ratio, thresholds=thresholds, factors=factors)
    assert unbounded == pytest.approx(damping * factor, rel=1e-14, abs=0.0)


@PROPERTY
@given(st.lists(st.one_of(st.floats(-2.0, 3.0), st.just(NAN)), max_size=60), st.floats(1e-3, 1e3))
def test_a_bounded_damping_comes_back_by_factors(ratios, damping):
    """Whatever the ratios were, 60 good ones lead from any damping within 1e-5 .. 1e5 to the least, and back."""
    options = {"bounds": (1e-5, 1e5)}
    for ratio in ratios:
        damping = levenberg_marquardt(damping, ratio, **options)
    for ratio, end in ((1.0, 1e-5), (0.0, 1e5)):
        for _ in range(60):
            damping = levenberg_marquardt(damping, ratio, **options)
        assert damping == end


# ---------------------------------------------------------------------------------------------------------------------
# Armijo line search


def recorded(function: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    """The function, and the list of its arguments so far."""
    calls: list[float] = []

    def value(alpha: float) -> float:
        calls.append(alpha)
        return function(alpha)

    return value, calls


def test_armijo_accepts_the_first_rate_that_is_good_enough():
    value, calls = recorded(lambda a: 1.0 - a)
    result = armijo(value, 1.0, -1.0)
    assert (result.lr, result.value) == (1.0, 0.0)
    assert calls == [1.0]


@pytest.mark.parametrize(("reached", "accepted"), [(0.75, True), (math.nextafter(0.75, 1.0), False)])
def test_armijo_condition_holds_with_equality(reached, accepted):
    # f0 + c * alpha * slope = 1 - 0.25 * 1 * 1, exact in binary. Below the first rate nothing is good enough.
    result = armijo(lambda a: reached if a == 1.0 else 1.0, 1.0, -1.0, c=0.25, max_trials=3)
    assert result.lr == (1.0 if accepted else 0.0)


def test_armijo_reduces_by_the_factor():
    # f falls only below 0.3; slope -1: the first rate with f <= 1 - 0.01 alpha is the first below 0.3.
    value, calls = recorded(lambda a: 1.0 - 0.5 * a if a < 0.3 else 2.0)
    result = armijo(value, 1.0, -1.0)
    expected = [0.8**i for i in range(7)]
    assert calls == pytest.approx(expected, rel=1e-12)
    assert result.lr == pytest.approx(0.8**6, rel=1e-12)
    assert result.value == pytest.approx(1.0 - 0.5 * 0.8**6, rel=1e-12)


def test_armijo_options():
    value, calls = recorded(lambda a: 1.0 - a if a < 1.0 else 5.0)
    result = armijo(value, 1.0, -1.0, lr=4.0, factor=0.5)
    assert calls == [4.0, 2.0, 1.0, 0.5]
    assert (result.lr, result.value) == (0.5, 0.5)


@pytest.mark.parametrize("max_trials", [0, 3, 20])
def test_armijo_gives_up_after_max_trials_reductions(max_trials):
    value, calls = recorded(lambda _: 2.0)
    result = armijo(value, 1.0, -1.0, max_trials=max_trials)
    assert (result.lr, result.value) == (0.0, 1.0)
    assert calls == pytest.approx([0.8**i for i in range(max_trials + 1)], rel=1e-12)


def test_armijo_default_is_at_most_twenty_reductions():
    value, calls = recorded(lambda a: 0.0 if a < 0.8**19.5 else 2.0)  # good from the 20th reduction on
    assert armijo(value, 1.0, -1.0).lr == pytest.approx(0.8**20, rel=1e-12)
    assert len(calls) == 21
    value, calls = recorded(lambda a: 0.0 if a < 0.8**20.5 else 2.0)  # good from the 21st on: too late
    assert armijo(value, 1.0, -1.0).lr == 0.0
    assert len(calls) == 21


def test_armijo_known_value_saves_an_evaluation():
    value, calls = recorded(lambda a: 1.0 - a)
    result = armijo(value, 1.0, -1.0, known=0.0)
    assert (result.lr, result.value, calls) == (1.0, 0.0, [])
    value, calls = recorded(lambda a: 1.0 - a)
    result = armijo(value, 1.0, -1.0, known=7.0)
    assert calls == pytest.approx([0.8])
    assert result.lr == pytest.approx(0.8)
    value, calls = recorded(lambda _: 2.0)
    failed = armijo(value, 1.0, -1.0, known=2.0)
    assert (failed.lr, failed.value, len(calls)) == (0.0, 1.0, 20)


@pytest.mark.parametrize("slope", [0.5, 1e6, INF])
def test_armijo_positive_slope_admits_no_increase(slope):
    result = armijo(lambda a: 1.0 + 1e-12 * a, 1.0, slope)
    assert (result.lr, result.value) == (0.0, 1.0)
    result = armijo(lambda a: 1.0 - 1e-12 if a < 0.7 else 1.0 + 1e-12, 1.0, slope)
    assert result.lr == pytest.approx(0.8**2)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_armijo_walks_past_nonfinite_values(bad):
    result = armijo(lambda a: bad if a > 0.6 else 0.5, 1.0, -1.0)
    assert result.lr == pytest.approx(0.8**3)
    assert result.value == 0.5
    assert armijo(lambda _: bad, 1.0, -1.0).lr == 0.0
    assert armijo(lambda _: 0.5, 1.0, -1.0, known=bad).lr == pytest.approx(0.8)


def test_armijo_from_a_nonfinite_loss_fails():
    assert armijo(lambda _: NAN, NAN, -1.0).lr == 0.0


@PROPERTY
@given(
    st.lists(st.one_of(st.floats(-2.0, 2.0), st.sampled_from([NAN, INF])), min_size=1, max_size=21),
    st.floats(-5.0, 5.0),
    st.floats(0.1, 4.0),
)
def test_armijo_result_is_the_first_that_holds(values, slope, lr):
    trials = iter(values)
    value_of, calls = recorded(lambda _: next(trials))
    result = armijo(value_of, 0.5, slope, lr=lr, max_trials=len(values) - 1)
    good = [
        (i, value)
        for i, value in enumerate(values)
        # a margin against the rounding of lr * 0.8^i; undecided cases are left out below
        if value <= 0.5 + 0.01 * lr * 0.8**i * min(slope, 0.0)
    ]
    near = any(abs(v - 0.5 - 0.01 * lr * 0.8**i * min(slope, 0.0)) < 1e-12 for i, v in enumerate(values))
    if near:
        return
    if good:
        i, value = good[0]
        assert result.lr == pytest.approx(lr * 0.8**i, rel=1e-12)
        assert (result.value, len(calls)) == (value, i + 1)
        assert result.value <= 0.5
    else:
        assert (result.lr, result.value, len(calls)) == (0.0, 0.5, len(values))
