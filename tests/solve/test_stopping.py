"""Martens' stopping rule at its thresholds, and the grid of the iterates that CG keeps."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stopping_oracle import by_the_paper, progress_is_small

from latephase.solve import iteration_grid

INF, NAN = math.inf, math.nan
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)


# ---------------------------------------------------------------------------------------------------------------------
# Martens' stopping rule


def flat(iterations: int, value: float = -1.0) -> list[float]:
    """m(x_0) = 0 and `iterations` equal values: no progress at all."""
    return [0.0] + [value] * iterations


@pytest.mark.parametrize(
    ("iterations", "stops"), [(1, False), (9, False), (10, False), (11, True), (12, True), (100, True)]
)
def test_martens_needs_more_than_k_iterations(iterations, stops):
    # k = 10 up to i = 100; i = 10 is not greater than k, and from i = 11 on m_{i-k} = m_1 = -1 < 0.
    assert progress_is_small(flat(iterations)) is stops


def test_martens_has_no_opinion_on_the_start():
    assert progress_is_small([0.0]) is False


@pytest.mark.parametrize("earlier", [0.0, 0.5, NAN])
def test_martens_needs_a_negative_earlier_value(earlier):
    values = [earlier] * 5 + [-1.0] * 10  # i = 14, k = 10: m_4 = earlier
    assert progress_is_small(values) is False
    assert progress_is_small([*values, -1.0]) is True  # i = 15: m_5 = -1


@pytest.mark.parametrize(
    ("earlier", "stops"),
    # m_i = -1 and k = 10: the progress is 1 + m_{i-k}, the limit k * tolerance = 10 / 1024, all exact in binary.
    [(-1.0 + 10 / 1024, False), (-1.0 + 10.001 / 1024, False), (-1.0 + 9.999 / 1024, True), (-1.0, True)],
    ids=["at_the_threshold", "above", "below", "flat"],
)
def test_martens_threshold_carries_the_factor_k(earlier, stops):
    values = [0.0] + [earlier] * 10 + [-1.0]  # i = 11, m_1 = earlier
    assert progress_is_small(values, tolerance=1 / 1024) is stops


@pytest.mark.parametrize(
    ("iterations", "window"), [(11, 10), (99, 10), (100, 10), (101, 11), (105, 11), (110, 11), (111, 12), (250, 25)]
)
def test_martens_window_grows_with_the_iteration(iterations, window):
    # A large decrease exactly at i - window: seen from i - window, no progress; seen from one earlier, much of it.
    step = [0.0] + [-1.0] * (iterations - window - 1) + [-2.0] * (window + 1)
    assert len(step) == iterations + 1
    assert progress_is_small(step) is True
    late = [0.0] + [-1.0] * (iterations - window) + [-2.0] * window
    assert progress_is_small(late) is False


def test_martens_default_tolerance_is_5e_minus_4():
    # i = 11, k = 10: stops below a relative progress of 5e-3.
    assert progress_is_small([0.0] + [-1.0 + 4.99e-3] * 10 + [-1.0]) is True
    assert progress_is_small([0.0] + [-1.0 + 5.01e-3] * 10 + [-1.0]) is False


@PROPERTY
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=150), st.floats(1e-6, 1e-1))
def test_martens_equals_its_formula(values, tolerance):
    assert progress_is_small(values, tolerance) is by_the_paper(values, tolerance)


def test_martens_at_zero_does_not_divide_by_it():
    assert progress_is_small([*flat(20), 0.0]) in (True, False)


def test_martens_at_nonfinite_values_goes_on():
    for bad in (NAN, INF):
        assert progress_is_small([*flat(20), bad]) is False


# ---------------------------------------------------------------------------------------------------------------------
# Grid


def test_grid_begins_as_martens_wrote_it():
    assert iteration_grid(40) == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24, 31, 40]
    assert iteration_grid(6) == [1, 2, 3, 4, 5, 6]
    assert iteration_grid(1) == [1]


@PROPERTY
@given(st.integers(1, 600), st.floats(1.05, 3.0))
def test_grid_is_the_unique_powers_and_the_last(last, base):
    powers = {math.ceil(base**j) for j in range(int(math.log(last + 1) / math.log(base)) + 2)}
    assert iteration_grid(last, base) == sorted({p for p in powers if p <= last} | {last})
