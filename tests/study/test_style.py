"""The style of the figures: told apart by anybody, limits that show what matters."""

import itertools

import matplotlib
import numpy as np
import pytest

from latephase.records.drawing import logarithmic
from latephase.study.page.style import limit, styles
from latephase.study.results.load import load_results
from latephase.study.results.measures import TEST_ACCURACY, TRAIN_LOSS


def add_strategies(root, count, kind):
    text = (root / "study.toml").read_text()
    for number in range(count):
        text += f'\n[[strategies]]\nname = "{kind}-{number}"\nkind = "{kind}"\nlabel = "{kind} {number}"\n'
    (root / "study.toml").write_text(text)
    return load_results(root)


def test_styles_tell_strategies_apart_without_colour(write_study):
    root = write_study()
    add_strategies(root, 10, "first_order")
    table = styles(add_strategies(root, 10, "hessian_free").plan)
    assert len(table) == 23
    assert len({(str(style.line), style.marker, style.filled) for style in table.values()}) == len(table)


# Machado, Oliveira and Fernandes (2009), "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# severity 1, for linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, deficiency):
    """CIELAB of a colour as it is seen with a deficiency (D65)."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_stay_apart_for_the_colour_blind(write_study, deficiency):
    root = write_study()
    add_strategies(root, 3, "first_order")
    table = styles(add_strategies(root, 2, "hessian_free").plan)
    assert len(table) == 8
    seen = [lab(style.colour, deficiency) for style in table.values()]
    # a difference of 2.3 is just noticeable side by side; apart, on thin lines, several times that is needed
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 9


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_eight_of_second_order_stay_apart_as_well(write_study, deficiency):
    table = styles(add_strategies(write_study(), 7, "hessian_free").plan)
    assert len(table) == 10
    seen = [lab(style.colour, deficiency) for style in table.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 6  # of reds alone: 5.0


def test_hessian_free_reds_darken_in_the_order_of_the_plan(write_study):
    table = styles(add_strategies(write_study(), 2, "hessian_free").plan)
    channels = [matplotlib.colors.to_rgb(table[n].colour) for n in ("hf-64", "hessian_free-0", "hessian_free-1")]
    assert [sum(c) for c in channels] == sorted((sum(c) for c in channels), reverse=True)
    assert all(red > max(green, blue) for red, green, blue in channels)


@pytest.mark.parametrize(
    ("measure", "values", "low", "high"),
    [
        (TRAIN_LOSS, [0.9, 0.5, 1e6], 0.5, 1.0 + 3 * 0.5),  # a divergence: cut at three times the gain
        (TRAIN_LOSS, [0.9, 0.5, 1.2], 0.5, 1.2),
        (TEST_ACCURACY, [0.9, 1.1, 1.5], 0.9, 1.5),
        (TEST_ACCURACY, [-50.0, 1.1, 1.2], 1.0 - 3 * 0.2, 1.2),
    ],
)
def test_limits_show_all_that_is_good_and_cut_off_divergence(measure, values, low, high):
    axes = matplotlib.figure.Figure().subplots()
    limit(axes, values, 1.0, measure)
    bottom, top = axes.get_ylim()
    margin = 0.05 * (high - low)
    assert (bottom, top) == pytest.approx((low - margin, high + margin))


def test_a_logarithmic_axis_takes_positive_values_only():
    axes = matplotlib.figure.Figure().subplots()
    for values in ([], [0.0, 1.0]):
        logarithmic(axes, values)
        assert axes.get_yscale() == "linear"
    logarithmic(axes, [0.1, 1.0])
    assert axes.get_yscale() == "log"
