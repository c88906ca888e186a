"""What comes out of a tuning: its table, its best settings, and its figures, from trials with known answers."""

import csv
import html
import json
import math
import re
import tomllib

import numpy as np
import pytest
from small_studies import first_order
from test_tune_config import LR, adamqlr, tuning_table

from latephase.records.drawing import house_style
from latephase.study.config import parse_study
from latephase.study.tune.config import parse_tuning
from latephase.study.tune.figures import build, draw_all, importances
from latephase.study.tune.outcome import Outcome, best_of, write_best, write_table
from latephase.study.tune.page import context_of, write_tuning_report

SEARCHED = {
    "options.damping": {"low": 1e-8, "high": 1.0, "log": True},
    "options.amplification": {"low": 0.5, "high": 2.0},
    "batch_size": {"choices": [12, 24, 48]},
}


@pytest.fixture
def tuning():
    sgd = first_order(name="sgd", optimizer="sgd", search=LR)
    return parse_tuning(tuning_table(adamqlr(**SEARCHED), sgd, tune={"trials": 48}), "small")


def outcome(strategy, place, kind, values, value, share=1.0):
    return Outcome(strategy, place, place, kind, values, 2.3, value, share, 0.5, 8, "")


def known(count=48):
    """Only the damping matters, best at 1e-3; the worse half is stopped, a few are lost."""
    random, found = np.random.default_rng(0), []
    for place in range(count):
        values = {
            "options.damping": float(10 ** random.uniform(-8, 0)),
            "options.amplification": float(random.uniform(0.5, 2.0)),
            "batch_size": int(random.choice([12, 24, 48])),
        }
        loss = 0.1 + abs(math.log10(values["options.damping"]) + 3)
        if place % 16 == 5:
            found.append(outcome("qlr", place, "diverged", values, None, 0.0))
        elif loss > 1.5:
            found.append(outcome("qlr", place, "stopped", values, loss, 0.25))
        else:
            found.append(outcome("qlr", place, "finished", values, loss))
    return found


def test_what_matters_is_found(tuning):
    shares = importances(tuning, known(), "qlr")
    assert sum(shares.values()) == pytest.approx(1.0)  # to rounding
    assert next(iter(shares)) == "options.damping"
    assert shares["options.damping"] > 0.6
    assert importances(tuning, known(9), "qlr") == {}


def test_each_panel_has_every_trial_once_and_rings_the_best(tuning):
    found = known()
    with house_style():
        figures = dict(build(tuning, found))
    assert list(figures) == ["sensitivity-qlr", "importance"]
    damping, amplification, batch = figures["sensitivity-qlr"].axes
    titles = [axes.get_title(loc="left") for axes in (damping, amplification, batch)]
    assert titles == ["initial damping", "learning-rate amplification", "batch size"]
    best = best_of(found, "qlr", False, 3)
    for axes, path in ((damping, "options.damping"), (amplification, "options.amplification")):
        drawn = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        rings = drawn.pop("best 3")
        assert sorted(rings.tolist()) == sorted([o.values[path], o.value] for o in best)
        assert sorted(x for points in drawn.values() for x, _ in points) == sorted(o.values[path] for o in found)
        bottom, top = axes.get_ylim()
        assert all(bottom < y < top for points in drawn.values() for _, y in points)
    assert (damping.get_xscale(), amplification.get_xscale(), damping.get_yscale()) == ("log", "linear", "log")
    assert [text.get_text() for text in batch.get_xticklabels()] == ["12", "24", "48"]


def test_the_same_trials_give_the_same_files(tuning, tmp_path):
    found = known()
    first, second = (draw_all(tuning, found, tmp_path / name)[0] for name in "ab")
    assert [path.name for path in first] == [
        "sensitivity-qlr.png",
        "sensitivity-qlr.pdf",
        "importance.png",
        "importance.pdf",
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("kind", ["diverged", "finished"])
def test_a_figure_needs_no_more_than_one_trial(tuning, kind):
    only = [outcome("sgd", 0, kind, {"lr": 0.1}, None if kind == "diverged" else 0.5)]
    with house_style():
        (name, figure), *others = build(tuning, only)
    assert (name, others) == ("sensitivity-sgd", [])
    assert len(figure.axes[0].get_lines()) > 0


def test_the_table_has_a_row_for_each_trial(tuning, tmp_path):
    found = [*known(3), outcome("sgd", 0, "finished", {"lr": 0.25}, 0.5)]
    write_table(found, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["strategy"], row["trial"]) for row in rows] == [("qlr", "0"), ("qlr", "1"), ("qlr", "2"), ("sgd", "0")]
    assert [row["lr"] for row in rows] == ["", "", "", "0.25"]
    assert [float(row["options.damping"]) for row in rows[:3]] == [o.values["options.damping"] for o in found[:3]]


def test_the_best_setting_is_that_of_the_best_finished_trial(tuning, tmp_path):
    found = [
        outcome("qlr", 0, "finished", {"batch_size": 12}, 0.5),
        outcome("qlr", 1, "stopped", {"batch_size": 24}, 0.1, 0.5),
        outcome("qlr", 2, "finished", {"batch_size": 48}, 0.4),
        outcome("qlr", 3, "finished", {"batch_size": 12}, 0.4),
        outcome("sgd", 0, "diverged", {"lr": 1.0}, None, 0.0),
    ]
    assert [o.place for o in best_of(found, "qlr", False, 3)] == [2, 3, 0]
    assert [o.place for o in best_of(found, "qlr", True, 1)] == [0]
    assert write_best(tuning, found, tmp_path / "best.toml")
    text = (tmp_path / "best.toml").read_text(encoding="utf-8")
    assert "# sgd: left out, as none of its trials finished" in text
    study = parse_study(tomllib.loads(text), "best")
    assert [(strategy.name, strategy.batch_size) for strategy in study.strategies] == [("qlr", 48)]
    assert (study.seeds, study.budget.amount, study.name) == ([0, 1], 8, "small-best")
    assert not write_best(tuning, found[-1:], tmp_path / "none.toml")
    assert not (tmp_path / "none.toml").exists()


def test_the_page_has_a_verdict_a_row_for_each_strategy_and_every_trial(tuning, tmp_path):
    found = [*known(), *(outcome("sgd", n, "finished", {"lr": 0.1 * (n + 1)}, 0.5 + n / 10) for n in range(4))]
    found.append(outcome("sgd", 4, "failed", {"lr": 0.7}, None))
    page = write_tuning_report(tuning, found, tmp_path).read_text(encoding="utf-8")
    best = best_of(found, "qlr", False, 3)
    label = {strategy.name: strategy.label for strategy in tuning.study.strategies}
    assert context_of(tuning, found)["sentence"] == (
        f"After 48 trials of each, “{label['qlr']}” has the lowest valid loss, {best[0].value:#.4g}; "
        f"next is “{label['sgd']}” with 0.5000."
    )
    rows = context_of(tuning, found)["rows"]
    assert [(row.strategy.name, row.counts["finished"], row.counts["failed"]) for row in rows][1] == ("sgd", 4, 1)
    assert rows[1].setting == {"learning rate": "0.1"}
    data = [json.loads(html.unescape(text)) for text in re.findall(r'data-chart="([^"]*)"', page)]
    assert len(data) == 3
    panel = next(panel for panel in data[0]["panels"] if panel["title"] == "initial damping")
    shown = [
        note for mark in panel["marks"] for note in mark["notes"] if data[0]["keys"][mark["of"]]["key"] != "best 3"
    ]
    assert len(shown) == len(known())
    for text in (label["sgd"], f"{best[-1].value:#.4g}", "Failed trials", "best.toml"):
        assert text in page


def test_strategies_whose_best_trials_overlap_are_not_told_apart(tuning):
    values = {"options.damping": 0.1, "options.amplification": 1.0, "batch_size": 12}
    found = [outcome("qlr", n, "finished", values, 0.1 + n / 10) for n in range(3)]
    found += [outcome("sgd", n, "finished", {"lr": 0.1}, 0.25) for n in range(2)]
    assert "within the 3 best trials of the first and so cannot be told apart" in context_of(tuning, found)["sentence"]
    assert context_of(tuning, [])["sentence"] == "No trial has finished yet."
