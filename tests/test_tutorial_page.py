"""The tutorial says what its own study decided: its numbers are those of the scores that are kept of it."""

import csv
import re
import statistics
import tomllib
from pathlib import Path

from latephase.study.results.statistics import sign_flip_test, smallest_p

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
KEPT = ROOT / "docs" / "studies" / "tutorial"


def scores():
    with (KEPT / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def median(strategy, epoch, what="final_test_loss"):
    found = [float(row[what]) for row in scores() if row["strategy"] == strategy and row["checkpoint_epoch"] == epoch]
    return statistics.median(found)


def test_the_study_that_ran_is_the_one_on_the_page():
    told = tomllib.loads(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0])
    ran = tomllib.loads((KEPT / "study.toml").read_text(encoding="utf-8"))
    for key in ("seeds", "checkpoints", "clock", "jobs"):
        assert ran[key] == told[key]
    assert {name: ran["budget"][name] for name in told["budget"]} == told["budget"]
    assert [each["name"] for each in ran["strategies"]] == [each["name"] for each in told["strategies"]]
    assert f"epochs={ran['training']['epochs']}" in PAGE


def test_its_table_is_that_of_the_scores():
    rows = re.findall(r"^\| (\w[^|]*) \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    labels = {each["label"]: each["name"] for each in tomllib.loads((KEPT / "study.toml").read_text())["strategies"]}
    assert [label for label, *_ in rows] == list(labels)
    for label, early, late, steps in rows:
        name = labels[label]
        assert early == f"{median(name, '100'):.4f}"
        assert late == f"{median(name, '400'):.4f}"
        assert steps == f"{median(name, '400', 'steps'):,.0f}"
    assert {row["status"] for row in scores()} == {"finished"}


def ends():
    """Test losses at the end, from epoch 400, by strategy in the order of the seeds."""
    rows = sorted((row for row in scores() if row["checkpoint_epoch"] == "400"), key=lambda row: int(row["seed"]))
    names = ("constant", "cosine", "average", "hf")
    return {name: [float(row["final_test_loss"]) for row in rows if row["strategy"] == name] for name in names}


def compared(one, other):
    """How many seeds are lower, and how likely that is by chance."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    return sum(d < 0 for d in differences), sign_flip_test(differences)


def test_what_it_decided():
    text, at = " ".join(PAGE.split()), ends()
    wins, chances = zip(*(compared(at[name], at["constant"]) for name in ("cosine", "average", "hf")), strict=True)
    told = "cosine beats the constant rate with {} of 7 seeds, averaged weights with {}, Hessian-free with {} "
    assert told.format(*wins) + "(p = {:.3f}, {:.3f} and {:.3f}".format(*chances) in text
    best = [compared(at["cosine"], at[name]) for name in ("average", "hf")]
    assert best == [(7, smallest_p(7))] * 2
    assert f"with every seed (p = {smallest_p(7):.3f}" in text
