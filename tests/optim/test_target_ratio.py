"""The walk over dampings within a step, on curves of the reduction ratio that are known."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latephase.optim import Fixed, LevenbergMarquardt, TargetRatio


class Curve:
    """The ratio 1 / (1 + edge / damping), which is one half at the edge; counts what was tried."""

    def __init__(self, edge: float):
        self.edge, self.tried = edge, []

    def __call__(self, damping: float) -> float:
        self.tried.append(damping)
        return 1 / (1 + self.edge / damping)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(start=st.floats(1e-9, 1e9), edge=st.floats(1e-12, 1e12), bisections=st.integers(1, 6))
def test_the_damping_is_bisected_between_a_factor_below_and_above(start, edge, bisections):
    rule, curve = TargetRatio(target=0.5, bisections=bisections), Curve(edge)
    found = rule.walk(start, curve)
    assert found in curve.tried
    assert len(curve.tried) == len(set(curve.tried)) <= 2 + bisections
    step = 9.0 ** (0.5**bisections)
    if edge < start / 9:
        assert found == pytest.approx(start / 9)
    elif edge < 9 * start:
        assert edge / (1 + 1e-9) <= found <= edge * step * (1 + 1e-9)
    else:
        assert found == pytest.approx(9 * start)  # below the target everywhere: the best ratio


def test_no_damping_lowers_the_loss():
    assert TargetRatio().walk(1.0, lambda damping: -1.0) is None
    assert TargetRatio().next(1.0, -1.0) == 9.0
    assert LevenbergMarquardt().walk(1.0, lambda damping: -math.inf) is None


def test_a_ratio_that_says_nothing_ends_the_walk():
    for rule in (TargetRatio(), LevenbergMarquardt(), Fixed(1.0)):
        tried: list[float] = []

        def nothing(damping: float, tried: list[float] = tried) -> float:
            tried.append(damping)
            return math.nan

        assert rule.walk(0.5, nothing) == 0.5
        assert tried == [0.5]
        assert rule.next(0.5, math.nan) == 0.5


def test_the_range_bounds_the_walk():
    rule = TargetRatio(range=(0.1, 10.0))
    assert rule.walk(0.2, Curve(1e-9)) == 0.1
    curve = Curve(1e9)
    rule.walk(5.0, curve)
    assert max(curve.tried) == 10.0
    assert rule.next(10.0, -1.0) == 10.0


def test_levenberg_marquardt_rises_within_a_step_until_the_loss_falls():
    tried = []
    found = LevenbergMarquardt(factors=(0.5, 2.0)).walk(1.0, lambda damping: tried.append(damping) or damping - 7.9)
    assert found == 8.0
    assert tried == [1.0, 2.0, 4.0, 8.0]


def test_the_second_stage_begins_where_the_damping_rises():
    rule = TargetRatio()
    rising = [10 ** (0.01 * k) for k in range(30)]
    assert rule.turns(rising, 80)
    assert not rule.turns(rising, 79)
    assert not rule.turns(rising[::-1], 200)
    assert not rule.turns(rising[:29], 200)
    assert not rule.turns([1.0] * 30, 200)
    noise = [10 ** (0.01 * (-1) ** k) for k in range(30)]
    assert not rule.turns(noise, 200)  # a correlation below 0.1
    assert rule.in_stage(True).target == rule.later
    assert rule.in_stage(False) is rule


@pytest.mark.parametrize(
    ("field", "value"),
    [("target", 0.0), ("target", 1.0), ("later", math.nan), ("factor", 1.0), ("bisections", 0), ("initial", -1.0),
     ("range", (1.0, 0.1)), ("range", (0.0, 1.0)), ("initial", 1e13), ("factor", math.inf), ("target", "0.5")],
)  # fmt: skip
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"TargetRatio.{field}"):
        TargetRatio(**{field: value})
