"""Choosing points by their residuals, beside the published formula, and drawing them in boxes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latephase import RAD, Box

RESIDUALS = torch.tensor([0.1, -2.0, 0.0, 0.5, 1.0, -0.3], dtype=torch.float64)
UNLIKELY = 1e-3
"""Draws come from fixed seeds: the p-value of a right program is a number, which was looked at once."""


def published(residuals: torch.Tensor, k: float, c: float) -> np.ndarray:
    """The formula as it is printed, normalised over the candidates."""
    eps = np.sqrt(np.square(residuals.numpy()).reshape(len(residuals), -1).sum(1))
    density = eps**k / np.mean(eps**k) + c
    return density / np.sum(density)


@pytest.mark.parametrize(("k", "c"), [(1.0, 1.0), (2.0, 0.0), (0.5, 2.0), (0.0, 1.0), (3, 1)])
@pytest.mark.parametrize("columns", [None, 1, 3])
def test_probabilities_are_the_published_ones(k, c, columns):
    residuals = RESIDUALS if columns is None else torch.outer(RESIDUALS, torch.arange(1.0, columns + 1)).double()
    expected = published(residuals, k, c)
    np.testing.assert_allclose(RAD(k=k, c=c).probabilities(residuals).numpy(), expected, rtol=1e-14)


def test_the_defaults_are_the_published_ones():
    assert (RAD().k, RAD().c) == (1.0, 1.0)


def test_the_size_of_all_residuals_does_not_count():
    for factor in (1e-200, 1e200):
        found = RAD(k=3.0).probabilities(RESIDUALS * factor)
        torch.testing.assert_close(found, RAD(k=3.0).probabilities(RESIDUALS), rtol=1e-13, atol=0)
    assert RAD(c=0.0).probabilities(0 * RESIDUALS).tolist() == [1 / 6] * 6


@pytest.mark.parametrize("right", [True, False])
def test_pairs_are_drawn_as_one_after_the_other_without_replacement(right):
    """Against the probabilities of all pairs; the same test tells them from those of a uniform draw."""
    rule, generator, draws = RAD(k=2.0, c=0.5), torch.Generator().manual_seed(0), 3000
    p = published(RESIDUALS, 2.0, 0.5) if right else np.full(6, 1 / 6)
    pairs = list(itertools.combinations(range(6), 2))
    expected = [draws * p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in pairs]
    found = dict.fromkeys(pairs, 0)
    for _ in range(draws):
        found[tuple(rule.choose(RESIDUALS, 2, generator).tolist())] += 1
    assert (stats.chisquare(list(found.values()), expected).pvalue > UNLIKELY) == right


def test_single_points_are_drawn_by_the_probabilities():
    residuals, generator = torch.arange(20.0).double(), torch.Generator().manual_seed(1)
    counts = np.zeros(20)
    for _ in range(4000):
        counts[RAD().choose(residuals, 1, generator)] += 1
    assert stats.chisquare(counts, 4000 * published(residuals, 1, 1)).pvalue > UNLIKELY


def test_points_without_residual_are_taken_where_there_are_no_others():
    residuals = torch.tensor([0.0, 1.0, 0.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert RAD(c=0.0).choose(residuals, 2, generator).tolist() == [1, 3]
        assert {1, 3} < set(RAD(c=0.0).choose(residuals, 3, generator).tolist())
    assert RAD().choose(residuals, 4, generator).tolist() == [0, 1, 2, 3]
    assert RAD().choose(residuals[:0], 0, generator).tolist() == []


def test_points_go_into_a_boundary_layer():
    """A layer of width 0.02 at the right end gets the share that the published density has there."""
    generator, box = torch.Generator().manual_seed(2), Box(0.0, 1.0)
    x = box(20_000, generator)
    layer = torch.exp((x - 1) / 0.02)
    taken = x[RAD().choose(layer, 400, generator)].squeeze(1)
    # Half of the points are uniform, half by exp((x - 1) / 0.02), of which 1 - e^-3 are within three widths.
    expected = 0.5 * 0.06 + 0.5 * (1 - math.exp(-3))
    deviation = math.sqrt(expected * (1 - expected) / 400)
    assert float((taken > 0.94).double().mean()) == pytest.approx(expected, abs=4 * deviation)
    assert float((x > 0.94).double().mean()) < 0.07


def test_a_box_is_filled_uniformly():
    box = Box((-1.0, 2.0), (1.0, 2.5))
    points = box(4000, torch.Generator().manual_seed(3))
    assert points.shape == (4000, 2)
    assert points.dtype == torch.float64
    for axis, (low, side) in enumerate([(-1.0, 2.0), (2.0, 0.5)]):
        assert stats.kstest(points[:, axis].numpy(), "uniform", (low, side)).pvalue > UNLIKELY
    assert abs(stats.pearsonr(*points.T.numpy()).statistic) < 4 / math.sqrt(4000)


def test_a_surface_is_filled_by_area():
    low, high = torch.tensor([0.0, 0.0, -1.0]).double(), torch.tensor([1.0, 2.0, 2.0]).double()
    points = Box(low, high).surface(6000, torch.Generator().manual_seed(4))
    on_faces = torch.cat([points == low, points == high], 1)
    assert on_faces.sum(1).tolist() == [1] * 6000
    areas = np.array([6.0, 3.0, 2.0] * 2)
    assert stats.chisquare(on_faces.sum(0).numpy(), 6000 * areas / areas.sum()).pvalue > UNLIKELY
    inner = points[points[:, 0] == 1.0]
    assert stats.kstest(inner[:, 2].numpy(), "uniform", (-1.0, 3.0)).pvalue > UNLIKELY
    ends = Box(0, 1).surface(50, torch.Generator().manual_seed(5))
    assert sorted(set(ends.flatten().tolist())) == [0.0, 1.0]
    assert Box(0, 1).surface(0).shape == (0, 1)


@pytest.mark.parametrize(
    ("low", "high", "kind", "words"),
    [
        ("a", 1.0, TypeError, "low of a Box must be a number"),
        ((), (), TypeError, "low of a Box"),
        ((0.0, True), (1.0, 1.0), TypeError, "low of a Box"),
        (0.0, math.inf, ValueError, "high of a Box must be finite"),
        ((0.0, math.nan), (1.0, 1.0), ValueError, "low of a Box must be finite"),
        ((0.0, 0.0), 1.0, ValueError, "2 and 1 coordinates"),
        ((0.0, 1.0), (1.0, 1.0), ValueError, "low must be below high .* got 1.0 and 1.0 in 1"),
        (np.zeros((2, 2)), np.ones((2, 2)), TypeError, "low of a Box"),
    ],
)
def test_bad_corners(low, high, kind, words):
    with pytest.raises(kind, match=words):
        Box(low, high)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(["candidates", "k", "c"]), value=st.none() | st.booleans() | st.floats() | st.text())
def test_bad_fields_are_named(name, value):
    good = isinstance(value, float) and math.isfinite(value) and value >= 0 and name != "candidates"
    if good:
        assert RAD(**{name: value}).probabilities(RESIDUALS).sum() == pytest.approx(1)
    else:
        with pytest.raises(ValueError, match=f"{name} of RAD"):
            RAD(**{name: value})
