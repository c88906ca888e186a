import json

import matplotlib
import numpy as np
import pytest

from latephase.study import figures
from latephase.study.results import load_results, run_id
from latephase.study.score import score_results
from latephase.study.style import limit, styles


def curve(axes, label):
    """The line of a label: the one with the legend entry."""
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return line


def settings():
    return {
        name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"
    }  # reading it chooses one


def test_draw_depends_on_the_results_alone_and_leaves_the_users_settings_alone(write_study, reported):
    root = write_study()
    with matplotlib.rc_context({"font.size": 23, "axes.facecolor": "yellow", "savefig.bbox": "tight"}):
        before = settings()
        paths = figures.draw(root)
        assert settings() == before
    names = ["training", "relative", "budget-0010", "budget-0020", "learning_rates"]
    assert paths == [root / "figures" / f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
        assert path.read_bytes() == (reported / "figures" / path.name).read_bytes()


def test_training_curve_marks_saved_and_studied_checkpoints(write_study):
    figure = figures.training_curve(load_results(write_study()))
    loss, accuracy = figure.axes
    train = curve(loss, "train")
    assert train.get_xdata().tolist() == list(range(21))
    assert train.get_ydata()[10] == 1.0
    assert curve(accuracy, "test").get_ydata()[20] == 0.6
    marked = [line.get_xdata().tolist() for line in loss.get_lines() if line.get_linestyle() == "None"]
    assert [5, 10, 15, 20] in marked
    assert [10, 20] in marked


def test_relative_performance_has_a_marker_per_run_and_the_mean(write_study):
    results = load_results(write_study(skip=((10, "cosine", 0),)))
    figure = figures.relative_performance(results, score_results(results))
    loss = figure.axes[0]
    place = styles(results.plan)["cosine"].colour
    markers = next(line for line in loss.get_lines() if line.get_markeredgecolor() == place)
    assert len(markers.get_xdata()) == 5  # six runs, one of them missing
    worst, best = 1.0, 0.52  # the missing run stands at the checkpoint; the best that is left
    expected = np.mean([(worst - 0.52) / (worst - best), (worst - 0.54) / (worst - best)])
    assert curve(loss, "SGD, cosine").get_ydata()[0] == pytest.approx(expected)


def test_strategies_are_shifted_apart(write_study):
    results = load_results(write_study())
    loss = figures.relative_performance(results, score_results(results)).axes[0]
    labels = [strategy.label for strategy in results.plan.strategies]
    first = [curve(loss, label).get_xdata()[0] for label in labels]
    assert first == sorted(set(first))
    assert max(map(abs, first)) < 0.5  # nearer to their own checkpoint than to the next


def test_budget_curve_is_the_mean_and_the_quartile_band(write_study):
    results = load_results(write_study())
    loss, _, accuracy = figures.over_budget(results, 10).axes
    line = curve(loss, "SGD, cosine")
    assert list(line.get_xdata()) == [0.0, 1.0, 2.0]
    assert line.get_ydata() == pytest.approx([1.0, 0.52, 0.53])
    assert curve(accuracy, "HF, m = 64").get_ydata() == pytest.approx([0.5, 0.66, 0.65])
    bands = [band.get_paths()[0].vertices for band in loss.collections]
    halfway = [band[np.isclose(band[:, 0], 1.0), 1] for band in bands][1]  # the second strategy
    assert (halfway.min(), halfway.max()) == pytest.approx((0.51, 0.53))  # quartiles of 0.50, 0.52, 0.54


def test_a_run_that_ends_early_is_marked_and_leaves_the_mean(write_study, break_run):
    root = write_study()
    break_run(root)
    loss = figures.over_budget(load_results(root), 10).axes[0]
    lines = [line for line in loss.get_lines() if line.get_marker() == "x"]
    crosses = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines}
    assert crosses == {(1.0, 0.61), (1.0, 0.54)}
    assert curve(loss, "SGD, cosine").get_ydata()[-1] == pytest.approx(0.52)  # mean of 0.51 and 0.53


def test_a_run_under_way_is_not_drawn(write_study):
    root = write_study()
    for seed in range(3):
        (root / "runs" / run_id(10, "cosine", seed) / "status.json").write_text('{"status": "running"}')
    assert len(curve(figures.over_budget(load_results(root), 10).axes[0], "SGD, cosine").get_xdata()) == 0


def test_figures_of_a_study_without_any_run(write_study):
    every = tuple((e, s, seed) for e in (10, 20) for s in ("constant", "cosine", "hf-64") for seed in range(3))
    names = list(figures.render(load_results(write_study(skip=every)), narrow=True))
    assert names == ["training", "relative", "budget-0010", "budget-0020"]


def test_learning_rates_reach_zero_on_the_axis(write_study):
    figure = figures.learning_rates(load_results(write_study()))
    axes = figure.axes[0]
    cosine = curve(axes, "SGD, cosine")
    assert cosine.get_ydata()[-1] == 0.0
    places = axes.transData.transform([(2.0, value) for value in (0.0, 1e-4, 1e-3, 1e-2)])[:, 1]
    assert np.isfinite(places).all()
    assert (np.diff(places) > 0).all()
    assert axes.get_ylim()[0] == 0.0
    assert not [line for line in axes.get_lines() if line.get_label() == "HF, m = 64"]


def test_styles_tell_strategies_apart_without_colour(write_study):
    table = styles(load_results(write_study()).plan)
    assert len({(str(style.line), style.marker, style.filled) for style in table.values()}) == len(table)
    assert len({style.colour for style in table.values()}) == len(table)


def test_hessian_free_reds_darken_in_the_order_of_the_plan(write_study):
    root = write_study()
    text = (root / "study.toml").read_text()
    for size in (128, 256):
        text += f'\n[[strategies]]\nname = "hf-{size}"\nkind = "hessian_free"\nlabel = "HF {size}"\n'
    (root / "study.toml").write_text(text)
    table = styles(load_results(root).plan)
    channels = [matplotlib.colors.to_rgb(table[name].colour) for name in ("hf-64", "hf-128", "hf-256")]
    assert [sum(c) for c in channels] == sorted((sum(c) for c in channels), reverse=True)
    assert all(red > max(green, blue) for red, green, blue in channels)


@pytest.mark.parametrize(
    ("metric", "values", "low", "high"),
    [
        ("train_loss", [0.9, 0.5, 1e6], 0.5, 1.0 + 3 * 0.5),  # a divergence: cut at three times the gain
        ("train_loss", [0.9, 0.5, 1.2], 0.5, 1.2),
        ("test_accuracy", [0.9, 1.1, 1.5], 0.9, 1.5),
        ("test_accuracy", [-50.0, 1.1, 1.2], 1.0 - 3 * 0.2, 1.2),
    ],
)
def test_limits_show_all_that_is_good_and_cut_off_divergence(metric, values, low, high):
    axes = matplotlib.figure.Figure().subplots()
    limit(axes, values, 1.0, metric)
    bottom, top = axes.get_ylim()
    margin = 0.05 * (high - low)
    assert (bottom, top) == pytest.approx((low - margin, high + margin))


def test_narrow_figures_are_narrower_and_taller(write_study):
    results = load_results(write_study())
    wide, narrow = (figures.over_budget(results, 10, narrow=flag).get_size_inches() for flag in (False, True))
    assert narrow[0] < wide[0] / 2
    assert narrow[1] > wide[1]


def test_null_learning_rates_are_left_out(write_study):
    root = write_study()
    path = root / "runs" / run_id(10, "cosine", 0) / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["lr"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    axes = figures.learning_rates(load_results(root)).axes[0]
    assert list(curve(axes, "SGD, cosine").get_xdata()) == [0.0, 2.0]
