"""The statistics of a study against answers known by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest

from latephase.study.results.statistics import (
    EXACT_PAIRS,
    RESAMPLES,
    SpeedUp,
    bootstrap_interval,
    holm,
    profile,
    profile_score,
    sign_flip_test,
    smallest_p,
    speed_up,
    time_ratios,
)

INF = math.inf
TIMES = {  # case -> time to target of three strategies
    "a": {"x": 1.0, "y": 2.0, "z": INF},
    "b": {"x": 6.0, "y": 2.0, "z": 4.0},
    "c": {"x": INF, "y": 5.0, "z": 20.0},
    "d": {"x": INF, "y": INF, "z": INF},
}


def test_sign_flips_of_three_equal_signs_leave_two_of_eight():
    assert sign_flip_test([1.0, 2.0, 3.0]) == 2 / 8


def test_sign_flips_by_hand():
    # |±1±2±4| with the observed 1 + 2 - 4 = -1: every one of the eight sums is at least 1 in size
    assert sign_flip_test([1.0, 2.0, -4.0]) == 1.0
    # |±1±2±4| with the observed -1 + 2 + 4 = 5: sizes 7, 5, 3, 1, twice each; four of eight are at least 5
    assert sign_flip_test([-1.0, 2.0, 4.0]) == 4 / 8


def test_sums_that_differ_by_rounding_only_are_ties():
    # 0.1 + 0.2 + 0.3 in two orders differ in the last digit, and so would the flips of equal size
    assert sign_flip_test([0.1, 0.2, 0.3]) == sign_flip_test([0.3, 0.1, 0.2]) == 2 / 8
    assert sign_flip_test([0.1, 0.1, 0.1, -0.1]) == Fraction(10, 16)  # |sum| >= 0.2: all but the six sums of zero


def test_no_difference_gives_one():
    assert sign_flip_test([]) == sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_a_zero_pair_adds_nothing():
    assert sign_flip_test([0.0, 1.0, 2.0, 3.0]) == sign_flip_test([1.0, 2.0, 3.0])


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 12])
def test_smallest_p_is_attained(pairs):
    assert sign_flip_test([1.0] * pairs) == smallest_p(pairs) == 2.0 ** (1 - pairs)


def test_no_pair_can_decide_nothing():
    assert smallest_p(0) == 1.0


def test_many_pairs_are_tested_by_random_flips():
    pairs = EXACT_PAIRS + 8
    assert sign_flip_test([1.0] * pairs) == smallest_p(pairs) == pytest.approx(1 / RESAMPLES, rel=1e-3)
    # half of the pairs with each sign: the sum is zero, which every flip reaches
    assert sign_flip_test([1.0, -1.0] * (pairs // 2)) == 1.0


def test_random_flips_agree_with_the_exact_distribution():
    # 20 equal sizes with 15 of one sign: |sum| >= 10 is at most 5 or at least 15 of one sign of a binomial(20, 1/2)
    exact = 2 * sum(math.comb(20, k) for k in range(6)) / 2**20
    p = sign_flip_test([1.0] * 15 + [-1.0] * 5)
    assert p == pytest.approx(exact, abs=4 * math.sqrt(exact / RESAMPLES))  # four standard errors


def test_p_values_are_uniform_under_the_null():
    random = np.random.default_rng(1)
    p_values = [sign_flip_test(random.normal(size=8).tolist()) for _ in range(400)]
    # an exact test: P(p <= 0.05) = 12 / 256 here; 400 draws have a standard error of 0.0106, four of them are allowed
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(12 / 256, abs=0.042)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 with factors 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.06 (never below the one before)
    assert holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02}) == pytest.approx(
        {"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06}
    )
    assert list(holm({"d": 0.04, "a": 0.01})) == ["d", "a"]
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_bootstrap_of_equal_values_is_that_value():
    assert bootstrap_interval([3.0] * 4, "mean") == bootstrap_interval([3.0] * 4, "median") == (3.0, 3.0)


def test_bootstrap_of_one_value_is_unknown():
    assert bootstrap_interval([3.0], "mean") is bootstrap_interval([], "median") is None


def test_bootstrap_of_two_values_has_known_ends():
    # means of two draws from {0, 1}: 0, 1/2, 1 with shares 1/4, 1/2, 1/4, so both tails of 2.5% lie at the ends
    assert bootstrap_interval([0.0, 1.0], "mean") == (0.0, 1.0)


def test_bootstrap_of_the_mean_agrees_with_the_normal_interval():
    sample = np.random.default_rng(2).normal(size=400)
    interval = bootstrap_interval(sample.tolist(), "mean")
    half = 1.96 * sample.std() / math.sqrt(len(sample))
    # the ends of 10,000 resamples have a standard error of about 3% of the half width; 12% is four of them
    assert interval == pytest.approx((sample.mean() - half, sample.mean() + half), abs=0.12 * half)


def test_bootstrap_is_the_same_each_time():
    assert bootstrap_interval([1.0, 2.0, 5.0], "mean") == bootstrap_interval([1.0, 2.0, 5.0], "mean")


def test_bootstrap_of_a_median_takes_infinite_times():
    lower, upper = bootstrap_interval([1.0, 2.0, 3.0, INF, INF], "median") or (0, 0)
    assert (lower, upper) == (1.0, INF)  # a median of 1 takes three draws of five at 1: 5.8% of the resamples
    assert bootstrap_interval([INF, INF], "median") == (INF, INF)


def test_ratios_by_hand():
    assert time_ratios(TIMES) == {
        "x": [1.0, 3.0, INF, INF],
        "y": [2.0, 1.0, 1.0, INF],
        "z": [INF, 2.0, 4.0, INF],
    }


def test_ratios_where_no_time_was_needed():
    assert time_ratios({"a": {"x": 0.0, "y": 0.0, "z": 2.0}}) == {"x": [1.0], "y": [1.0], "z": [INF]}


def test_ratios_need_the_same_strategies():
    with pytest.raises(ValueError, match=r"b has strategies \['x'\]"):
        time_ratios({"a": {"x": 1.0, "y": 1.0}, "b": {"x": 1.0}})


def test_profile_by_hand():
    ratios = time_ratios(TIMES)
    assert [profile(ratios["x"], tau) for tau in (1, 2.9, 3, 4)] == [0.25, 0.25, 0.5, 0.5]
    assert [profile(ratios["y"], tau) for tau in (1, 2, 4)] == [0.5, 0.75, 0.75]
    assert profile([], 2) == 0.0


def test_profile_score_is_the_integral():
    ratios = time_ratios(TIMES)
    # x: a quarter from 1 to 3, a half from 3 to 4; y: a half from 1 to 2, three quarters from 2 to 4
    assert profile_score(ratios["x"]) == pytest.approx((0.25 * 2 + 0.5 * 1) / 3)
    assert profile_score(ratios["y"]) == pytest.approx((0.5 * 1 + 0.75 * 2) / 3)
    taus = np.linspace(1, 4, 3001)
    numeric = np.trapezoid([profile(ratios["z"], tau) for tau in taus], taus) / 3
    assert profile_score(ratios["z"]) == pytest.approx(numeric, abs=1e-3)  # two jumps on a grid of a thousandth
    assert profile_score([1.0, 1.0]) == 1.0
    assert profile_score([INF]) == profile_score([]) == 0.0


def test_speed_up_by_hand():
    # y against x: case a 1/2, case b 3: the geometric mean is the root of 3/2; c only y reached, d nobody
    assert speed_up(TIMES, "y", "x") == SpeedUp(pytest.approx(math.sqrt(1.5)), 2, 1, 0)
    assert speed_up(TIMES, "x", "y") == SpeedUp(pytest.approx(1 / math.sqrt(1.5)), 2, 0, 1)
    assert speed_up(TIMES, "x", "x") == SpeedUp(1.0, 2, 0, 0)
    assert speed_up({"a": {"x": INF, "y": 1.0}}, "x", "y") == SpeedUp(None, 0, 0, 1)
    assert speed_up({"a": {"x": 0.0, "y": 0.0}}, "x", "y") == SpeedUp(1.0, 1, 0, 0)
