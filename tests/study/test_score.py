import csv
import importlib.util
import math
from statistics import fmean

import pyarrow.parquet as parquet
import pytest

from latephase.study.page.tables import merge
from latephase.study.results.load import load_results, run_id
from latephase.study.results.measures import Measure
from latephase.study.results.score import Score, relative, score, score_results, summarize, write_scores

COLUMNS = [
    *("problem", "checkpoint_epoch", "strategy", "seed", "status", "best_train_loss", "best_test_accuracy"),
    *("relative_train_loss", "relative_test_accuracy", "budget_seconds", "overshoot_seconds", "steps"),
    *("best_test_loss", "final_train_loss", "final_test_loss", "final_test_accuracy", "final_l2_term"),
    *("warmup_seconds", "scored_seconds", "cold_seconds", "unit", "budget", "overshoot", "samples", "gradients"),
    *("products", "time_to_target_train_loss", "time_to_target_test"),
]
TEXTS = ("problem", "strategy", "status", "unit")


def row(scores, epoch, strategy, seed) -> Score:
    (found,) = [s for s in scores if (s.checkpoint_epoch, s.strategy, s.seed) == (epoch, strategy, seed)]
    return found


def all_finite(score: Score) -> bool:
    numbers = {
        key: value for key, value in score.row().items() if key not in TEXTS and not key.startswith("time_to_target")
    }
    return all(math.isfinite(number) for number in numbers.values())


def break_file(root, name, text="{ not json\n{}\n"):
    path = root / "runs" / run_id(10, "cosine", 0) / name
    path.write_text(text)
    return path


def test_a_score_per_planned_run_in_the_order_of_the_plan(write_study):
    scores = score(write_study(skip=((20, "constant", 1),)))
    strategies = ("constant", "cosine", "hf-64")
    expected = [(epoch, strategy, seed) for epoch in (10, 20) for strategy in strategies for seed in range(3)]
    assert [(s.checkpoint_epoch, s.strategy, s.seed) for s in scores] == expected


def test_known_answers_of_a_finished_run(write_study):
    found = row(score(write_study()), 10, "cosine", 1)
    assert found == Score(
        problem="toy",
        checkpoint_epoch=10,
        strategy="cosine",
        seed=1,
        status="finished",
        best_train_loss=0.52,
        best_test_accuracy=0.71,
        relative_train_loss=pytest.approx((0.94 - 0.52) / (0.94 - 0.50)),  # worst constant, best cosine of epoch 10
        relative_test_accuracy=pytest.approx((0.71 - 0.55) / (0.72 - 0.55)),
        budget_seconds=2.0,
        overshoot_seconds=0.25,
        steps=11,
        best_test_loss=0.72,
        final_train_loss=0.53,
        final_test_loss=0.73,
        final_test_accuracy=pytest.approx(0.70),
        final_l2_term=0.1325,
        warmup_seconds=0.5,
        scored_seconds=2.25,
        cold_seconds=3.25,
        unit="seconds",
        budget=2.0,
        overshoot=0.25,
        samples=352,
        gradients=11.0,
        products=7,
        time_to_target_train_loss=1.0,
        time_to_target_test=1.0,
    )


def test_a_budget_in_steps_has_its_seconds_from_the_clock(write_study):
    found = row(score(write_study(unit="steps")), 10, "cosine", 1)
    assert (found.unit, found.budget, found.overshoot) == ("steps", 2.0, 0.25)
    assert (found.budget_seconds, found.overshoot_seconds) == (2.25, 0.0)


def test_the_checkpoint_itself_counts(write_study):
    found = row(score(write_study()), 20, "constant", 0)
    assert found.best_train_loss == 0.8
    assert found.final_train_loss == 0.81


def test_a_missing_run_has_the_metrics_of_the_checkpoint(write_study):
    found = row(score(write_study(skip=((10, "hf-64", 2),))), 10, "hf-64", 2)
    assert found.status == "missing"
    assert (found.best_train_loss, found.best_test_loss, found.best_test_accuracy) == (1.0, 1.2, 0.5)
    assert (found.final_train_loss, found.steps, found.scored_seconds, found.budget_seconds) == (1.0, 0, 0.0, 2.0)
    assert (found.relative_train_loss, found.time_to_target_test) == (0.0, None)
    assert all_finite(found)


def test_a_missing_run_does_not_move_the_others(write_study):
    whole, partial = score(write_study(name="whole")), score(write_study(skip=((10, "hf-64", 1),)))
    assert row(partial, 10, "hf-64", 2) == row(whole, 10, "hf-64", 2)
    assert row(partial, 10, "constant", 2).relative_train_loss == 0.0


def test_a_diverged_run_keeps_its_last_finite_value(write_study, break_run):
    root = write_study()
    break_run(root)
    diverged = row(score(root), 10, "hf-64", 1)
    assert (diverged.best_train_loss, diverged.final_train_loss, diverged.final_test_accuracy) == (0.61, 0.61, 0.66)


def test_a_failed_run_counts_with_its_best_and_steps_so_far(write_study, break_run):
    root = write_study()
    break_run(root)
    failed = row(score(root), 10, "cosine", 2)
    assert (failed.status, failed.best_train_loss, failed.steps, failed.warmup_seconds) == ("failed", 0.54, 5, 0.0)


def test_every_score_is_finite_whatever_happened(write_study, break_run):
    root = write_study(skip=((20, "hf-64", 0),))
    break_run(root)
    break_file(root, "rows.jsonl")
    assert all(all_finite(s) for s in score(root))


@pytest.mark.parametrize(
    ("values", "smaller_is_better", "expected"),
    [
        ([1.0, 3.0, 2.0], True, [1.0, 0.0, 0.5]),
        ([1.0, 3.0, 2.0], False, [0.0, 1.0, 0.5]),
        ([0.7, 0.7], True, [1.0, 1.0]),
        ([-4.0], False, [1.0]),
    ],
)
def test_relative_maps_worst_to_zero_and_best_to_one(values, smaller_is_better, expected):
    assert relative(values, smaller_is_better=smaller_is_better) == expected


def test_relative_has_no_negative_zero():
    assert all(math.copysign(1, value) == 1 for value in relative([1.0, 2.0], smaller_is_better=False))


def test_relative_performance_is_per_checkpoint(write_study):
    scores = score(write_study())
    for epoch in (10, 20):
        for metric in ("relative_train_loss", "relative_test_accuracy"):
            values = [getattr(s, metric) for s in scores if s.checkpoint_epoch == epoch]
            assert (min(values), max(values)) == (0.0, 1.0)


def test_a_problem_without_accuracy_has_its_own_metric(write_study, tmp_path):
    results = load_results(write_study(metric="rmse"))
    assert results.measures[2] == Measure("test_rmse", False)
    scores = score_results(results)
    found = row(scores, 10, "cosine", 1)
    assert (found.best_test_accuracy, found.relative_test_accuracy, found.final_test_accuracy) == (None, None, None)
    # smaller is better, and the checkpoint's 0.5 is the smallest of all
    assert found.metrics == {"best_test_rmse": 0.5, "relative_test_rmse": 1.0}
    assert found.time_to_target_test == 1.0  # the target is in the test loss then
    write_scores(scores, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        written = next(csv.DictReader(file))
    assert list(written) == [*COLUMNS, "best_test_rmse", "relative_test_rmse"]
    assert written["best_test_accuracy"] == ""


def test_summary_has_mean_median_quartiles_and_extremes(write_study):
    found = summarize(score(write_study()), "best_test_accuracy")[10, "constant"]
    assert found.mean == pytest.approx(fmean([0.55, 0.56, 0.57]))
    assert (found.lower_quartile, found.upper_quartile) == pytest.approx((0.555, 0.565))  # linear between the ranks
    assert (found.minimum, found.median, found.maximum, found.n) == (0.55, 0.56, 0.57, 3)


def test_summary_leaves_out_what_has_no_run(write_study):
    scores = score(write_study(skip=tuple((20, "hf-64", seed) for seed in range(3))))
    assert (20, "hf-64") not in summarize(scores, "best_train_loss")


def test_csv_has_the_columns_in_order_and_reads_back_exactly(write_study, tmp_path):
    scores = score(write_study())
    write_scores(scores, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert len(rows) == 18
    for written, expected in zip(rows, scores, strict=True):
        assert written == {key: str(value) for key, value in expected.row().items()}
        assert float(written["relative_train_loss"]) == expected.relative_train_loss


def test_without_pyarrow_the_scores_are_written_and_nothing_of_an_earlier_call_stays(write_study, monkeypatch):
    root = write_study()
    assert len(merge(root)) == 3
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else find(name, *rest)
    )
    assert [path.name for path in merge(root)] == ["scores.csv"]
    assert (root / "scores.csv").is_file()
    assert not list(root.glob("*.parquet"))


def test_merge_writes_scores_and_all_evaluations(write_study, break_run):
    root = write_study(skip=((20, "constant", 1),))
    break_run(root)
    paths = merge(root)
    assert [path.name for path in paths] == ["scores.csv", "scores.parquet", "rows.parquet"]
    assert sorted(path.name for path in root.glob(".*")) == []
    scores = parquet.read_table(paths[1])
    assert scores.column_names == COLUMNS
    assert scores.to_pylist() == [s.row() for s in score(root)]
    rows = parquet.read_table(paths[2]).to_pylist()
    assert len(rows) == 16 * 3 + 2  # sixteen whole runs and the two evaluations of the failed one
    wanted = {"checkpoint_epoch": 10, "strategy": "hf-64", "seed": 1, "spent": 2.0}
    (diverged,) = [r for r in rows if r.items() >= wanted.items()]
    assert (diverged["train_loss"], diverged["test_accuracy"]) == (None, None)
    assert (diverged["scored_seconds"], diverged["evaluation_seconds"], diverged["kind"]) == (3.0, 0.1, "hessian_free")
