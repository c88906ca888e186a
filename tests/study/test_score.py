import csv
import dataclasses
import math
import subprocess
import sys
from statistics import fmean

import pytest

from latephase.study.results import load_results, run_id
from latephase.study.score import Score, relative, score, summarize, write_scores

COLUMNS = [
    "problem",
    "checkpoint_epoch",
    "strategy",
    "seed",
    "status",
    "best_train_loss",
    "best_test_accuracy",
    "relative_train_loss",
    "relative_test_accuracy",
    "budget_seconds",
    "overshoot_seconds",
    "steps",
    "best_test_loss",
    "final_train_loss",
    "final_test_loss",
    "final_test_accuracy",
    "warmup_seconds",
    "seconds",
    "final_l2_term",
]


def row(scores, epoch, strategy, seed) -> Score:
    (found,) = [s for s in scores if (s.checkpoint_epoch, s.strategy, s.seed) == (epoch, strategy, seed)]
    return found


def all_finite(score: Score) -> bool:
    numbers = [value for value in dataclasses.astuple(score) if isinstance(value, int | float)]
    return len(numbers) == len(COLUMNS) - 3 and all(math.isfinite(number) for number in numbers)


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
        final_test_accuracy=0.70,
        warmup_seconds=0.5,
        seconds=2.25,
        final_l2_term=0.1325,
    )


def test_the_checkpoint_itself_counts(write_study):
    found = row(score(write_study()), 20, "constant", 0)
    assert found.best_train_loss == 0.8
    assert found.final_train_loss == 0.81


def test_a_missing_run_has_the_metrics_of_the_checkpoint(write_study):
    found = row(score(write_study(skip=((10, "hf-64", 2),))), 10, "hf-64", 2)
    assert found.status == "missing"
    assert (found.best_train_loss, found.best_test_loss, found.best_test_accuracy) == (1.0, 1.2, 0.5)
    assert (found.final_train_loss, found.steps, found.seconds, found.budget_seconds) == (1.0, 0, 0.0, 2.0)
    assert found.relative_train_loss == 0.0
    assert all_finite(found)


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
    assert all(all_finite(s) for s in score(root))


def test_a_run_killed_without_status_is_running_and_keeps_out_of_summaries(write_study):
    root = write_study()
    (root / "runs" / run_id(10, "cosine", 0) / "status.json").unlink()
    scores = score(root)
    assert row(scores, 10, "cosine", 0).status == "running"
    assert row(scores, 10, "cosine", 0).best_train_loss == 0.50
    assert summarize(scores, "best_train_loss")[10, "cosine"].n == 2


def test_only_the_last_attempt_counts(write_study):
    root = write_study()
    path = root / "runs" / run_id(10, "cosine", 0) / "rows.jsonl"
    earlier = '{"event": "start"}\n{"event": "evaluation", "seconds": 0.0, "train_loss": 0.001}\n'
    path.write_text(earlier + path.read_text() + '{"event": "evalu')
    assert row(score(root), 10, "cosine", 0).best_train_loss == 0.50


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


def test_summary_has_mean_quartiles_and_extremes(write_study):
    found = summarize(score(write_study()), "best_test_accuracy")[10, "constant"]
    assert found.mean == pytest.approx(fmean([0.55, 0.56, 0.57]))
    assert (found.lower_quartile, found.upper_quartile) == pytest.approx((0.555, 0.565))  # linear between the ranks
    assert (found.minimum, found.maximum, found.n) == (0.55, 0.57, 3)
    assert found.range == pytest.approx(0.02)


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
        assert written == {key: str(value) for key, value in dataclasses.asdict(expected).items()}
        assert float(written["relative_train_loss"]) == expected.relative_train_loss


def test_an_unfinished_training_is_an_error(write_study):
    root = write_study()
    (root / "training" / "status.json").write_text('{"status": "running", "seconds": 3.0}')
    with pytest.raises(ValueError, match="training is not finished"):
        score(root)


def test_a_checkpoint_without_evaluation_is_an_error(write_study):
    root = write_study()
    text = (root / "study.toml").read_text().replace("[10, 20]", "[10, 30]")
    (root / "study.toml").write_text(text)
    with pytest.raises(ValueError, match="checkpoint of epoch 30"):
        score(root)


def test_a_folder_without_plan_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study\.toml"):
        score(tmp_path)


def test_options_may_stand_beside_the_name_or_in_their_own_table(write_study):
    root = write_study()
    text = (root / "study.toml").read_text().replace('name = "cosine"\n', 'name = "cosine"\nschedule = "cosine"\n')
    (root / "study.toml").write_text(text)
    assert load_results(root).plan.strategies[1].options == {"schedule": "cosine", "size": 64}


@pytest.mark.parametrize("module", ["results", "score", "style", "figures", "reading", "report", "store"])
def test_reading_modules_import_neither_torch_nor_pyplot(module):
    code = f"import sys, latephase.study.{module}; sys.exit(bool({{'torch', 'matplotlib.pyplot'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
