"""The reading of a study in words, and how numbers are written."""

import shutil

import pytest

from latephase.study.results.findings import Reading
from latephase.study.results.load import load_results
from latephase.study.results.measures import (
    TEST_ACCURACY,
    TEST_LOSS,
    TRAIN_LOSS,
    amount_text,
    duration_text,
    number_text,
    p_text,
)
from latephase.study.results.score import score_results
from latephase.study.results.steps import summarize_steps


def read(root):
    results = load_results(root)
    return Reading(results, score_results(results))


def texts(findings):
    return {finding.title: finding.text.replace("\u00a0", " ") for finding in findings}


def edit(root, *pairs):
    text = (root / "study.toml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (root / "study.toml").write_text(text)
    return root


def test_headlines_name_the_leaders_and_say_that_nothing_is_decided(write_study):
    found = texts(read(write_study()).headlines())
    assert found["Lowest mean train loss"] == (
        "“SGD, cosine” (epoch 10); “HF, m = 64” (epoch 20). At epoch 20 “HF, m = 64” is ahead of the baseline by 0.39 "
        "(95% interval +0.37 to +0.41). Against the baseline “SGD, constant”, all checkpoints taken together (6 pairs "
        "of runs), nothing is decided: so few pairs cannot give a p below 0.062, however large the differences are."
    )
    assert found["Highest mean test accuracy"].startswith("“SGD, cosine” (epoch 10); “HF, m = 64” (epoch 20).")
    assert found["Second-order strategies against the best of the others"] == (
        "the best second-order strategy has the better mean in train loss at 1 of 2 checkpoints and in test accuracy "
        "at 1 of 2 checkpoints (a count of means, not a test)."
    )


def test_headlines_name_what_is_better_once_the_pairs_allow_it(write_study):
    root = write_study()
    text = (root / "study.toml").read_text()  # two strategies: six pairs and no correction
    (root / "study.toml").write_text(text[: text.index('\n[[strategies]]\nname = "hf-64"')])
    found = texts(read(root).headlines())["Lowest mean train loss"]
    assert found.endswith("(6 pairs of runs): better: “SGD, cosine” (p = 0.031).")
    edit(root, ('baseline = "constant"', 'baseline = "cosine"'))
    found = texts(read(root).headlines())["Lowest mean train loss"]
    assert found.endswith("(6 pairs of runs): worse: “SGD, constant” (p = 0.031).")


def test_strategies_that_all_win_are_told_in_short(write_study):
    root = write_study()
    text = (root / "study.toml").read_text().replace("[0, 1, 2]", "[0, 1, 2, 3, 4]")
    for number in range(2):  # four others with ten pairs each: p = 2 / 2^10, four times that after correction
        text += f'\n[[strategies]]\nname = "more-{number}"\nkind = "hessian_free"\nlabel = "More {number}"\n'
    (root / "study.toml").write_text(text)
    for source in sorted((root / "runs").iterdir()):
        epoch, name, seed = source.name.split("_")
        copies = [f"{epoch}_more-{n}_{seed}" for n in range(2)] if name == "cosine" else []
        copies += [f"{epoch}_{name}_{s}" for s in ("seed-3", "seed-4") if seed == "seed-0"]
        for copy in copies:
            shutil.copytree(source, root / "runs" / copy)
    for source in sorted((root / "runs").glob("*_cosine_seed-[34]")):
        for n in range(2):
            shutil.copytree(source, root / "runs" / source.name.replace("cosine", f"more-{n}"))
    found = texts(read(root).headlines())["Lowest mean train loss"]
    assert found.endswith("(10 pairs of runs): better: all 4 other strategies (each p at most 0.0078).")


def test_enough_pairs_without_a_steady_difference_decide_nothing(write_study):
    root = edit(write_study(), ('baseline = "constant"', 'baseline = "cosine"'))
    text = (root / "study.toml").read_text().replace('name = "constant"', 'name = "hf-64"', 1)
    (root / "study.toml").write_text(text[: text.rindex("\n[[strategies]]")])  # hf-64 against cosine
    found = texts(read(root).headlines())["Lowest mean train loss"]
    # worse at three pairs of epoch 10, better at three of epoch 20 by less: 12 of the 64 flips are as far from zero
    assert "nothing is decided: no difference is significant (the least corrected p = " in found


def test_comparison_says_how_far_ahead_and_how_sure(write_study):
    reading = read(write_study())
    early, late = texts(reading.compare(10)), texts(reading.compare(20))
    assert early["Lowest mean train loss"] == (
        "“SGD, cosine”, 0.5200 (the checkpoint itself: 1.000). Next: “HF, m = 64”, behind by 0.090, and behind in 3 of "
        "3 pairs of runs. Against the baseline “SGD, constant” it is ahead by 0.40 (95% interval +0.40 to +0.40), p = "
        "0.5: not decided."
    )
    assert late["Lowest mean train loss"] == (
        "“HF, m = 64”, 0.4100 (the checkpoint itself: 0.8000). Next: “SGD, cosine”, behind by 0.010, and behind in 3 "
        "of 3 pairs of runs. Against the baseline “SGD, constant” it is ahead by 0.39 (95% interval +0.37 to +0.41), "
        "p = 0.5: not decided."
    )
    assert "behind by 6.00 percentage points, and behind in 3 of 3" in late["Highest mean test accuracy"]


def test_a_leading_baseline_is_said(write_study):
    root = edit(write_study(), ('baseline = "constant"', 'baseline = "cosine"'))
    found = texts(read(root).compare(10))["Lowest mean train loss"]
    assert found.endswith("The leader is the baseline: no change of strategy paid off here.")


def test_one_seed_gives_no_spread(write_study):
    root = edit(write_study(), ("[0, 1, 2]", "[0]"))
    found = texts(read(root).compare(10))["Lowest mean train loss"]
    assert "behind by 0.10. Against" in found
    assert found.endswith("ahead by 0.40; one pair of runs, so nothing is known of the spread.")


def test_no_improvement_is_said(write_study):
    root = edit(write_study(), ('target = "cosine"', 'target = "constant"'))
    text = (root / "study.toml").read_text()
    (root / "study.toml").write_text(text[: text.index('\n[[strategies]]\nname = "cosine"')])
    assert texts(read(root).compare(20))["Lowest mean train loss"].endswith("No strategy improved on the checkpoint.")


def test_step_summary_has_known_numbers(write_study):
    results = load_results(write_study())
    strategy = results.plan.strategies[2]
    found = summarize_steps(strategy, results.concluded(10, strategy))
    assert (found.steps, found.accepted, found.damping) == (2.0, 0.5, (1.0, 1.5))
    assert found.cg_iterations == 14.5  # the longest block of each step: 9 and 20
    assert found.stopped_by == "progress 75%, max iterations 25%"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.50 s"), (15.32, "15.3 s"), (153.2, "2 min 33 s"), (7260.0, "2 h 1 min")]
)
def test_durations_read_well(seconds, text):
    assert duration_text(seconds).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (15.32, "seconds", "15.3 s"),
        (1, "steps", "1 step"),
        (1200, "steps", "1,200 steps"),
        (7.5, "gradients", "7.5 gradient-equivalents"),
    ],
)
def test_amounts_read_well(amount, unit, text):
    assert amount_text(amount, unit).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.5, "0.5000"), (12.0, "12.00"), (1234.4, "1234"), (0.00123456, "0.001235")]
)
def test_losses_have_four_significant_digits(number, text):
    assert number_text(number) == text


@pytest.mark.parametrize(
    ("measure", "difference", "text"),
    [
        (TRAIN_LOSS, -0.03, "−0.030"),
        (TEST_LOSS, 0.0, "0"),
        (TRAIN_LOSS, 250.4, "+250"),
        (TRAIN_LOSS, 3.2e-7, "+3.2e-07"),
        (TEST_ACCURACY, 0.01, "+1.00"),
    ],
)
def test_differences_have_two_significant_digits(measure, difference, text):
    assert measure.signed(difference) == text


@pytest.mark.parametrize(("p", "text"), [(0.0004, "p < 0.001"), (0.03125, "p = 0.031"), (1.0, "p = 1")])
def test_p_values_read_well(p, text):
    assert p_text(p).replace("\u00a0", " ") == text
