"""The line search: Wolfe's conditions on the functions of Moré and Thuente, rounding, functions with an end."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latephase.solve import WolfeStatus, wolfe

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def counted(phi):
    trials = []

    def call(lr):
        trials.append(lr)
        return phi(lr)

    return call, trials


def rational(x):
    """Function 1 of Moré and Thuente (1994), Section 5."""
    return -x / (x * x + 2), (x * x - 2) / (x * x + 2) ** 2


def quintic(x):
    """Function 2: long and flat at 0, its minimum narrow at 1.6."""
    z = x + 0.004
    return z**5 - 2 * z**4, 5 * z**4 - 8 * z**3


def wavy(x, ends=0.01, waves=39):
    """Function 3: near |x - 1|, with waves."""
    if x <= 1 - ends:
        base, slope = 1 - x, -1.0
    elif x >= 1 + ends:
        base, slope = x - 1, 1.0
    else:
        base, slope = (x - 1) ** 2 / (2 * ends) + ends / 2, (x - 1) / ends
    amplitude = 2 * (1 - ends) / (waves * math.pi)
    angle = waves * math.pi / 2 * x
    return base + amplitude * math.sin(angle), slope + (1 - ends) * math.cos(angle)


def yanai(b1, b2):
    """Functions 4 to 6 (Yanai, Ozawa and Kaneko)."""
    g1, g2 = math.sqrt(1 + b1**2) - b1, math.sqrt(1 + b2**2) - b2

    def phi(x):
        one, two = math.sqrt((1 - x) ** 2 + b2**2), math.sqrt(x**2 + b1**2)
        return g1 * one + g2 * two, g1 * (x - 1) / one + g2 * x / two

    return phi


TABLES = {
    "1": (rational, 1e-3, 0.1),
    "2": (quintic, 0.1, 0.10001),
    "3": (wavy, 0.1, 0.10001),
    "4": (yanai(1e-3, 1e-3), 1e-3, 1.1e-3),
    "5": (yanai(1e-2, 1e-3), 1e-3, 1.1e-3),
    "6": (yanai(1e-3, 1e-2), 1e-3, 1.1e-3),
}


@pytest.mark.parametrize("first", [1e-3, 1e-1, 1e1, 1e3])
@pytest.mark.parametrize("name", TABLES)
def test_the_functions_of_the_paper(name, first):
    """With its conditions and starts; it reports at most 17 evaluations for any of them."""
    phi, c1, c2 = TABLES[name]
    call, trials = counted(phi)
    f0, slope = phi(0.0)
    found = wolfe(call, f0, slope, lr=first, c1=c1, c2=c2)
    value, after = phi(found.lr)
    assert found.status is WolfeStatus.WOLFE
    assert (found.value, found.trials, trials[-1]) == (value, len(trials), found.lr)
    assert value <= f0 + c1 * found.lr * slope
    assert abs(after) <= c2 * abs(slope)
    assert found.trials <= 17


@PROPERTY
@given(
    seed=st.integers(0, 10**6),
    first=st.floats(-4, 3).map(lambda x: 10**x),
    conditions=st.sampled_from([(1e-4, 0.9), (1e-4, 0.1), (0.1, 0.5)]),
)
def test_a_smooth_function_with_a_minimum_is_searched_to_the_end(seed, first, conditions):
    a, b, d, e = np.random.default_rng(seed).uniform(0.1, 3, 4).tolist()

    def phi(x):
        wave = a * math.sin(b * x)
        return wave - (a * b + d) * x + e * x * x, a * b * math.cos(b * x) - (a * b + d) + 2 * e * x

    c1, c2 = conditions
    f0, slope = phi(0.0)
    found = wolfe(phi, f0, slope, lr=first, c1=c1, c2=c2, max_trials=60)
    value, after = phi(found.lr)
    assert found.status is WolfeStatus.WOLFE
    assert value <= f0 + c1 * found.lr * slope
    assert abs(after) <= c2 * abs(slope)


def test_a_quasi_newton_step_that_will_do_is_taken_at_once():
    assert wolfe(lambda x: ((x - 1) ** 2, 2 * (x - 1)), 1.0, -2.0).trials == 1


def test_slopes_decide_where_values_have_no_digits():
    """A loss of 1e16 moves in steps of 2, by the rounding of its terms; the slopes are exact."""

    def phi(x):
        return 1e16 + 0.1 * (x - 1) ** 2 + (2.0 if x > 0 else 0.0), 0.2 * (x - 1)

    f0, slope = phi(0.0)
    assert {phi(x)[0] for x in (0.5, 1.0, 3.0)} == {f0 + 2}
    assert wolfe(phi, f0, slope, lr=0.9).status is WolfeStatus.FAILED
    found = wolfe(phi, f0, slope, lr=0.9, rounding=4.0)
    assert (found.status, found.lr, found.trials) == (WolfeStatus.APPROXIMATE, 0.9, 1)
    far = wolfe(phi, f0, slope, lr=30.0, rounding=4.0)  # the slope there says that it is too far
    assert far.status is WolfeStatus.APPROXIMATE
    assert abs(phi(far.lr)[1]) <= abs(slope)


def test_the_approximate_conditions_are_for_rounding_alone():
    """A loss that rose by more than its rounding is not taken, however good the slope."""

    def phi(x):
        return (0.0, -1.0) if x == 0 else (1e-6, -0.1)

    assert wolfe(phi, 0.0, -1.0, rounding=1e-9).status is WolfeStatus.FAILED
    assert wolfe(phi, 0.0, -1.0, rounding=1e-5).status is WolfeStatus.APPROXIMATE


@pytest.mark.parametrize("outside", [(math.inf, math.nan), (math.nan, 1.0), (-math.inf, -1.0), (0.0, math.inf)])
def test_a_function_that_ends(outside):
    def phi(x):
        return (-x - 0.1 * math.log(1 - x), -1 + 0.1 / (1 - x)) if x < 1 else outside

    for first in (0.01, 1.0, 30.0, 1e6):
        found = wolfe(phi, *phi(0.0), lr=first)
        assert found.status is WolfeStatus.WOLFE
        assert 0 < found.lr < 1


def test_a_search_that_finds_nothing_says_so():
    call, trials = counted(lambda x: (math.nan, math.nan))
    found = wolfe(call, 1.0, -1.0, max_trials=7)
    assert (found.lr, found.value, found.status, found.trials) == (0.0, 1.0, WolfeStatus.FAILED, 7)
    assert trials == sorted(trials, reverse=True)
    rising = wolfe(lambda x: (1 + x, 1.0), 1.0, -1.0)  # the slope at 0 was wrong
    assert (rising.lr, rising.status) == (0.0, WolfeStatus.FAILED)


def test_a_decrease_without_end_is_taken_as_far_as_it_was_seen():
    call, trials = counted(lambda x: (-x, -1.0))
    found = wolfe(call, 0.0, -1.0, max_trials=6)
    assert found.status is WolfeStatus.DECREASE
    assert found.lr == max(trials) > 100
    assert found.value == -found.lr


@pytest.mark.parametrize(("arguments", "message"), [
    ({"slope": 0.0}, "slope below 0"), ({"slope": math.nan}, "slope below 0"), ({"lr": 0.0}, "first trial above 0"),
    ({"lr": math.inf}, "first trial above 0"), ({"c1": 0.95}, "0 < c1 < c2 < 1"), ({"c2": 1.0}, "0 < c1 < c2 < 1"),
])  # fmt: skip
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        wolfe(rational, 0.0, **({"slope": -0.5} | arguments))
