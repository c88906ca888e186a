"""The strategies against the baseline, and their times to target, against answers known by hand."""

import math
from statistics import fmean

import pytest

from latephase.study.results.comparison import compare_at, compare_overall
from latephase.study.results.load import load_results, run_id
from latephase.study.results.measures import TEST_ACCURACY, TRAIN_LOSS
from latephase.study.results.profiles import combine, standings, target_times
from latephase.study.results.reached import targets
from latephase.study.results.score import Score, score, score_results

INF = math.inf


def row(scores, epoch, strategy, seed) -> Score:
    (found,) = [s for s in scores if (s.checkpoint_epoch, s.strategy, s.seed) == (epoch, strategy, seed)]
    return found


def test_the_target_is_the_median_of_the_target_strategy(write_study):
    found = targets(load_results(write_study(skip=((20, "cosine", 2),))))
    assert found == {
        (10, TRAIN_LOSS): 0.52,
        (10, TEST_ACCURACY): 0.71,
        (20, TRAIN_LOSS): pytest.approx(0.41),  # the mean of the middle two, 0.40 and 0.42
        (20, TEST_ACCURACY): pytest.approx(0.795),
    }


def test_a_run_that_misses_the_target_counts_as_infinite(write_study):
    scores = score(write_study())
    at_20 = {s: [row(scores, 20, s, seed).time_to_target_train_loss for seed in range(3)] for s in ("cosine", "hf-64")}
    assert at_20 == {"cosine": [1.0, 1.0, INF], "hf-64": [1.0, 1.0, INF]}  # target 0.42; best 0.44 and 0.43 of seed 2
    assert [row(scores, 20, "hf-64", seed).time_to_target_test for seed in range(3)] == [1.0, 1.0, 1.0]
    assert row(scores, 20, "constant", 0).time_to_target_train_loss == INF


def test_without_a_run_of_the_target_strategy_there_is_no_time(write_study):
    scores = score(write_study(skip=tuple((10, "cosine", seed) for seed in range(3))))
    assert row(scores, 10, "hf-64", 0).time_to_target_train_loss is None
    assert row(scores, 20, "hf-64", 0).time_to_target_train_loss == 1.0


def test_paired_comparison_has_known_numbers(write_study):
    results = load_results(write_study())
    cosine, hf = compare_at(results, score_results(results), TRAIN_LOSS, 10)
    assert (cosine.strategy.name, cosine.pairs, cosine.ahead) == ("cosine", 3, 3)
    assert cosine.lead == pytest.approx(0.40)  # 0.90 - 0.50, 0.92 - 0.52, 0.94 - 0.54
    assert cosine.interval == pytest.approx((0.40, 0.40))
    assert (cosine.p, cosine.adjusted_p, cosine.smallest, cosine.verdict) == (0.25, 0.5, 0.5, "not decided")
    assert hf.lead == pytest.approx(fmean([0.30, 0.31, 0.32]))
    accuracy, _ = compare_at(results, score_results(results), TEST_ACCURACY, 10)
    assert accuracy.lead == pytest.approx(0.15)


def test_pairs_need_both_runs(write_study):
    results = load_results(write_study(skip=((10, "constant", 0), (10, "hf-64", 1))))
    cosine, hf = compare_at(results, score_results(results), TRAIN_LOSS, 10)
    assert (cosine.pairs, hf.pairs) == (2, 1)
    assert hf.interval is None
    assert compare_at(results, [], TRAIN_LOSS, 10) == []


def test_comparison_over_all_checkpoints_counts_every_pair(write_study):
    results = load_results(write_study())
    cosine, hf = compare_overall(results, score_results(results), TRAIN_LOSS)
    assert (cosine.pairs, cosine.ahead, cosine.p) == (6, 6, 2 / 64)
    assert (cosine.adjusted_p, hf.adjusted_p, cosine.verdict) == (4 / 64, 4 / 64, "not decided")
    assert cosine.lead == pytest.approx((0.40 / 0.44 + fmean([0.40, 0.38, 0.36]) / 0.41) / 2)  # relative to the range


def test_the_same_strategy_under_two_names_is_not_decided(write_study):
    root = write_study()
    for epoch in (10, 20):
        for seed in range(3):
            source = root / "runs" / run_id(epoch, "constant", seed) / "rows.jsonl"
            (root / "runs" / run_id(epoch, "cosine", seed) / "rows.jsonl").write_text(source.read_text())
    results = load_results(root)
    cosine, _ = compare_overall(results, score_results(results), TRAIN_LOSS)
    assert (cosine.lead, cosine.p, cosine.ahead, cosine.verdict) == (0.0, 1.0, 0, "not decided")


def test_times_to_target_are_medians_over_the_seeds(write_study):
    results = load_results(write_study())
    times = target_times(results, score_results(results), "time_to_target_train_loss")
    assert times == {
        ("toy", 10): {"constant": INF, "cosine": 1.0, "hf-64": INF},
        ("toy", 20): {"constant": INF, "cosine": 1.0, "hf-64": 1.0},
    }
    cosine, hf = standings(times, "cosine")[1:]
    assert (cosine.score, hf.score, hf.speed_up.factor, hf.speed_up.only_baseline) == (1.0, 0.5, 1.0, 1)


def test_a_checkpoint_without_runs_is_no_case(write_study):
    results = load_results(write_study(skip=tuple((10, "hf-64", seed) for seed in range(3))))
    assert list(target_times(results, score_results(results), "time_to_target_test")) == [("toy", 20)]


def rename(root, old, new):
    for name in ("study.toml",):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))
    return root


def test_studies_are_combined_over_problems(write_study):
    first = write_study(name="first")
    second = rename(write_study(name="second"), 'problem = "toy"', 'problem = "other"')
    times = combine([first, second], "time_to_target_train_loss")
    assert list(times) == [("toy", 10), ("toy", 20), ("other", 10), ("other", 20)]
    assert times["other", 20] == {"constant": INF, "cosine": 1.0, "hf-64": 1.0}


def test_studies_keep_the_strategies_they_have_in_common(write_study):
    first = write_study(name="first")
    second = rename(write_study(name="second"), 'problem = "toy"', 'problem = "other"')
    text = (second / "study.toml").read_text()
    (second / "study.toml").write_text(text[: text.index('\n[[strategies]]\nname = "hf-64"')])
    times = combine([first, second], "time_to_target_train_loss")
    assert {tuple(case) for case in times.values()} == {("constant", "cosine")}


def test_studies_that_do_not_belong_together_are_refused(write_study):
    first, again = write_study(name="first"), write_study(name="again")
    with pytest.raises(ValueError, match="give each study once"):
        combine([first, again], "time_to_target_test")
    rename(again, "problem_version = 3", "problem_version = 4")
    with pytest.raises(ValueError, match="has version 4 of toy, another study has 3"):
        combine([first, again], "time_to_target_test")
    rename(again, 'problem = "toy"', 'problem = "other"')
    rename(again, '"cosine"', '"x"')
    rename(again, 'name = "hf-64"', 'name = "y"')
    with pytest.raises(ValueError, match="1 strategies of the same name"):
        combine([first, again], "time_to_target_test")
