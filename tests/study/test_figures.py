import json

import matplotlib
import numpy as np
import pytest

from latephase.records.drawing import DPI, house_style
from latephase.study.page import figures
from latephase.study.page import of_runs as figures_of_runs
from latephase.study.page import of_scores as figures_of_scores
from latephase.study.page import over_time as figures_over_time
from latephase.study.page.style import styles
from latephase.study.results.load import load_results, run_id
from latephase.study.results.profiles import Standing
from latephase.study.results.score import score_results
from latephase.study.results.statistics import SpeedUp

EVERY = tuple((e, s, seed) for e in (10, 20) for s in ("constant", "cosine", "hf-64") for seed in range(3))


@pytest.fixture
def house():
    """The settings under which `build` is used: titles stand at the left."""
    with house_style():
        yield


def curve(axes, label):
    """The line of a label: the one with the legend entry."""
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return line


def settings():
    return {
        name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"
    }  # reading it chooses one


def add_strategies(root, count, kind):
    text = (root / "study.toml").read_text()
    for number in range(count):
        text += f'\n[[strategies]]\nname = "{kind}-{number}"\nkind = "{kind}"\nlabel = "{kind} {number}"\n'
    (root / "study.toml").write_text(text)
    return load_results(root)


def relative(results, **options):
    scores = score_results(results)
    return figures_of_scores.relative_performance(results, scores, results.plan.strategies, **options)


@pytest.mark.slow
def test_draw_depends_on_the_results_alone_and_leaves_the_users_settings_alone(write_study, reported):
    root = write_study()
    with matplotlib.rc_context({"font.size": 23, "axes.facecolor": "yellow", "savefig.bbox": "tight"}):
        before = settings()
        paths = figures.draw(root)
        assert settings() == before
    names = ["training", "relative", "relative-second-order"]
    names += [f"{name}-{epoch}" for epoch in ("0010", "0020") for name in ("budget", "time-to-target", "steps")]
    names += ["learning-rates", "profile"]
    assert paths == [root / "figures" / f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
        assert path.read_bytes() == (reported / "figures" / path.name).read_bytes()


def test_figures_of_a_study_without_any_run(write_study):
    results = load_results(write_study(skip=EVERY))
    assert list(figures.render(results, narrow=True)) == ["training", "relative", "relative-second-order"]


def test_training_curve_marks_saved_and_studied_checkpoints(write_study):
    figure = figures_over_time.training_curve(load_results(write_study()))
    loss, accuracy = figure.axes
    train = curve(loss, "train")
    assert train.get_xdata().tolist() == list(range(21))
    assert train.get_ydata()[10] == 1.0
    assert curve(accuracy, "test").get_ydata()[20] == 0.6
    marked = [line.get_xdata().tolist() for line in loss.get_lines() if line.get_linestyle() == "None"]
    assert [5, 10, 15, 20] in marked
    assert [10, 20] in marked


def test_training_curve_of_a_metric_without_train_values(house, write_study):
    root = write_study(metric="rmse")
    path = root / "training" / "rows.jsonl"
    path.write_text(path.read_text().replace('"train_rmse"', '"other"'))
    _, error = figures_over_time.training_curve(load_results(root)).axes
    assert error.get_title(loc="left") == "RMSE (logarithmic)"
    assert curve(error, "test").get_ydata()[20] == 0.6
    assert "train" not in [line.get_label() for line in error.get_lines()]


def test_relative_performance_has_a_marker_per_run_and_the_mean(write_study):
    results = load_results(write_study(skip=((10, "cosine", 0),)))
    loss = relative(results).axes[0]
    place = styles(results.plan)["cosine"].colour
    markers = next(line for line in loss.get_lines() if line.get_markeredgecolor() == place)
    assert len(markers.get_xdata()) == 5  # six runs, one of them missing
    worst, best = 0.94, 0.52  # of the runs that are there
    expected = np.mean([(worst - 0.52) / (worst - best), (worst - 0.54) / (worst - best)])
    assert curve(loss, "SGD, cosine").get_ydata()[0] == pytest.approx(expected)


def test_relative_performance_of_some_strategies_is_among_these(write_study):
    results = load_results(write_study())
    pair = [results.plan.strategies[0], results.plan.strategies[2]]
    axes = figures_of_scores.relative_performance(results, score_results(results), pair).axes[0]
    values = np.concatenate([line.get_ydata() for line in axes.get_lines() if line.get_linestyle() == "None"])
    assert (values.min(), values.max()) == (0.0, 1.0)
    assert "SGD, cosine" not in [line.get_label() for line in axes.get_lines()]


@pytest.mark.parametrize("more", [0, 9])
def test_strategies_are_shifted_apart_but_stay_with_their_checkpoint(write_study, more):
    results = add_strategies(write_study(), more, "first_order")
    loss = relative(results).axes[0]
    centres = [curve(loss, strategy.label).get_xdata() for strategy in results.plan.strategies]
    first, second = (np.array([x[place] for x in centres]) for place in (0, 1))
    assert (np.diff(first) > 0).all()
    assert np.abs(first).max() < 0.5  # nearer to their own checkpoint than to the next
    assert first.max() < second.min()


def test_budget_curve_is_the_mean_and_the_quartile_band(write_study):
    results = load_results(write_study())
    loss, _, accuracy = figures_over_time.over_budget(results, 10).axes
    line = curve(loss, "SGD, cosine")
    assert list(line.get_xdata()) == [0.0, 1.0, 2.0]
    assert line.get_ydata() == pytest.approx([1.0, 0.52, 0.53])
    assert curve(accuracy, "HF, m = 64").get_ydata() == pytest.approx([0.5, 0.66, 0.65])
    bands = [band.get_paths()[0].vertices for band in loss.collections]
    halfway = [band[np.isclose(band[:, 0], 1.0), 1] for band in bands][1]  # the second strategy
    assert (halfway.min(), halfway.max()) == pytest.approx((0.51, 0.53))  # quartiles of 0.50, 0.52, 0.54


def test_medians_have_bootstrap_bands_and_a_run_that_diverged_counts_as_worst(write_study, break_run):
    root = write_study()
    (root / "study.toml").write_text('curves = "median"\n' + (root / "study.toml").read_text(encoding="utf-8"))
    whole = figures_over_time.over_budget(load_results(root), 10).axes
    assert [axes.get_yscale() for axes in whole] == ["log", "log", "linear"]
    assert all(axes.get_ylim()[0] > 0 for axes in whole[:2])
    line = curve(whole[0], "SGD, cosine")
    assert line.get_ydata() == pytest.approx([1.0, 0.52, 0.53])
    vertices = whole[0].collections[1].get_paths()[0].vertices
    halfway = vertices[np.isclose(vertices[:, 0], 1.0), 1]
    assert (halfway.min(), halfway.max()) == pytest.approx((0.50, 0.54))  # of three values, the least and the largest
    break_run(root)
    broken = figures_over_time.over_budget(load_results(root), 10).axes[0]
    assert curve(broken, "SGD, cosine").get_ydata()[-1] == pytest.approx(0.53)  # median of 0.51, 0.53 and infinity
    vertices = broken.collections[1].get_paths()[0].vertices
    assert vertices[np.isclose(vertices[:, 0], 2.0), 1].max() > broken.get_ylim()[1]  # the band goes off the edge


def test_budget_curves_of_a_problem_without_accuracy_in_gradients(house, write_study):
    results = load_results(write_study(metric="rmse", unit="gradients"))
    figure = figures_over_time.over_budget(results, 10)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Train loss", "Test loss", "Test RMSE"]
    assert figure.axes[0].get_xlabel() == "gradient-equivalents of the budget"


def test_a_run_that_ends_early_is_marked_and_leaves_the_mean(write_study, break_run):
    root = write_study()
    break_run(root)
    loss = figures_over_time.over_budget(load_results(root), 10).axes[0]
    lines = [line for line in loss.get_lines() if line.get_marker() == "x"]
    crosses = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines}
    assert crosses == {(1.0, 0.61), (1.0, 0.54)}
    assert curve(loss, "SGD, cosine").get_ydata()[-1] == pytest.approx(0.52)  # mean of 0.51 and 0.53


def test_a_run_under_way_is_not_drawn(write_study):
    root = write_study()
    for seed in range(3):
        (root / "runs" / run_id(10, "cosine", seed) / "status.json").write_text('{"status": "running"}')
    axes = figures_over_time.over_budget(load_results(root), 10).axes[0]
    assert len(curve(axes, "SGD, cosine").get_xdata()) == 0


def test_target_bars_are_medians_and_misses_are_hatched(house, write_study):
    results = load_results(write_study())
    loss, accuracy = figures_of_scores.target_bars(results, score_results(results), 20).axes
    assert loss.get_title(loc="left") == "Target in train loss"
    bars = loss.patches
    assert [bar.get_width() for bar in bars] == [2.0, 1.0, 1.0]  # a miss is as long as the budget
    assert [bool(bar.get_hatch()) for bar in bars] == [True, False, False]
    assert [text.get_text() for text in loss.texts] == ["3 of 3 missed", "1.00, 1 of 3 missed", "1.00, 1 of 3 missed"]
    assert accuracy.texts[2].get_text() == "1.00"  # Hessian-free reaches it with every seed
    assert [text.get_text() for text in loss.get_yticklabels()] == ["SGD, constant", "SGD, cosine", "HF, m = 64"]


def test_target_bars_of_a_strategy_without_runs_say_so(write_study):
    results = load_results(write_study(skip=tuple((20, "hf-64", seed) for seed in range(3))))
    axes = figures_of_scores.target_bars(results, score_results(results), 20).axes[0]
    assert [text.get_text() for text in axes.texts][-1] == "no run yet"


def test_profiles_are_shares_of_the_cases(write_study):
    results = load_results(write_study())
    loss, _ = figures_of_scores.performance_profile(results, score_results(results)).axes
    assert set(curve(loss, "SGD, cosine").get_ydata()) == {1.0}
    assert set(curve(loss, "HF, m = 64").get_ydata()) == {0.5}


def test_a_profile_steps_at_its_ratios(write_study):
    rows = [Standing("cosine", [1.0, 2.0], 0.0, SpeedUp(None, 0, 0, 0))]
    table = styles(load_results(write_study()).plan)
    (axes,) = figures_of_scores.draw_profile([("x", rows)], {"cosine": "SGD"}, table, narrow=True).axes
    x, y = curve(axes, "SGD").get_data()
    assert y[x < 1.99].tolist() == [0.5] * 99
    assert y[x > 2.01].tolist() == [1.0] * 199


def test_step_reports_show_damping_and_the_longest_block(write_study):
    damping, iterations = figures_of_runs.step_reports(load_results(write_study()), 10).axes
    assert curve(damping, "HF, m = 64").get_xydata().tolist() == [[0.5, 1.0], [1.5, 1.5]]
    assert curve(iterations, "HF, m = 64").get_ydata().tolist() == [9.0, 20.0]
    assert len(damping.get_lines()) == 3  # a line per seed


def test_overfitting_shows_both_ways_of_judging_on_one_scale(house, write_study, judge_both_ways):
    root = write_study()
    assert figures_of_runs.judged_strategies(load_results(root), 20) == []
    judge_both_ways(root)
    results = load_results(root)
    assert "overfitting" in dict(figures.build(results))
    own, disjoint = figures_of_runs.overfitting(results, 20).axes
    assert own.get_title(loc="left") == "HF, own batch\n(same batch)"
    assert disjoint.get_title(loc="left") == "HF, m = 64\n(disjoint batch)"
    assert own.get_ylim() == disjoint.get_ylim()
    assert curve(own, "before the step").get_ydata().tolist() == [0.8, 0.8]
    assert curve(own, "after the step").get_ydata().tolist() == [0.39, 0.39]
    assert len(disjoint.get_lines()) == 6  # two lines per seed


def test_learning_rates_reach_zero_on_the_axis(write_study):
    axes = figures_of_runs.learning_rates(load_results(write_study()), (10, 20)).axes[0]
    cosine = curve(axes, "SGD, cosine")
    assert cosine.get_ydata()[-1] == 0.0
    places = axes.transData.transform([(2.0, value) for value in (0.0, 1e-4, 1e-3, 1e-2)])[:, 1]
    assert np.isfinite(places).all()
    assert (np.diff(places) > 0).all()
    assert axes.get_ylim()[0] == 0.0
    assert not [line for line in axes.get_lines() if line.get_label() == "HF, m = 64"]


@pytest.mark.parametrize(("kind", "is_drawn"), [("adamqlr", True), ("kfac", True), ("hessian_free", False)])
def test_computed_learning_rates_are_drawn_and_those_of_a_line_search_are_not(write_study, kind, is_drawn):
    root = write_study()
    text = (root / "study.toml").read_text(encoding="utf-8")
    (root / "study.toml").write_text(text.replace('kind = "hessian_free"', f'kind = "{kind}"'), encoding="utf-8")
    results = load_results(root)
    assert (
        any(rates for run in results.runs if run.strategy.kind == kind and (rates := figures_of_runs.rates_of(run)))
        == is_drawn
    )
    assert "learning-rates" in dict(figures.build(results))


def test_steps_without_conjugate_gradients_have_one_panel_and_zero_damping_no_place(write_study):
    root = write_study()
    for path in root.glob("runs/*hf-64*/rows.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [{key: value for key, value in row.items() if "iterations" not in key} for row in rows]
        for row in kept[:2]:
            row |= {"damping": 0.0} if row["event"] == "step" else {}
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    (damping,) = figures_of_runs.step_reports(load_results(root), 10).axes
    assert damping.get_yscale() == "log"


def test_null_learning_rates_are_left_out(write_study):
    root = write_study()
    path = root / "runs" / run_id(10, "cosine", 0) / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["lr"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    axes = figures_of_runs.learning_rates(load_results(root), (10,)).axes[0]
    assert list(curve(axes, "SGD, cosine").get_xdata()) == [0.0, 2.0]


def test_narrow_figures_are_narrower_and_taller(write_study):
    results = load_results(write_study())
    wide, narrow = (figures_over_time.over_budget(results, 10, narrow=flag).get_size_inches() for flag in (False, True))
    assert narrow[0] < wide[0] / 2
    assert narrow[0] * DPI > 390  # sharp at the width of a phone
    assert narrow[1] > wide[1]
