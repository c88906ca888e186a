"""What the README prints runs as printed."""

import csv
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latephase.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_run_as_printed_one_after_the_other_and_lower_the_loss():
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert all(len([line for line in example.splitlines() if line.strip()]) <= 15 for example in examples)
    code = "\n".join(examples).replace("seconds=5", "seconds=1")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout
    losses = [float(loss) for loss in re.findall(r"loss ([\d.e+-]+) ->", done.stdout)]
    assert len(losses) == 5
    assert losses[-1] <= losses[0]


def test_its_numbers_are_those_of_committed_results():
    runs = json.loads((ROOT / "benchmarks" / "results" / "gauss_newton.json").read_text(encoding="utf-8"))["runs"]
    errors = {
        method: statistics.median(run["end"]["error"] for run in runs if run["method"] == method)
        for method in ("gauss_newton", "lbfgs", "adam")
    }
    told = (
        f"`GaussNewton` is at an error of {errors['gauss_newton']:.1e}, torch's L-BFGS at {errors['lbfgs']:.1e}, Adam "
    )
    text = " ".join(README.split())
    assert f"{told}under a cosine at {errors['adam']:.1e}" in text
    table = (ROOT / "docs" / "studies" / "fashion-mnist" / "scores.csv").read_text(encoding="utf-8")
    scores = [row for row in csv.DictReader(table.splitlines()) if row["checkpoint_epoch"] == "18"]
    losses = {
        name: statistics.fmean(float(row["best_test_loss"]) for row in scores if row["strategy"] == name)
        for name in ("sgd-cosine", "hf-late-2048")
    }
    told = f"a test loss of {losses['sgd-cosine']:.4f} and our late-phase steps at {losses['hf-late-2048']:.4f}"
    assert told in text


@pytest.mark.parametrize("command", ["finish", "check", "study", "tune", "report", "problems", "bench"])
def test_the_commands_it_names_exist_and_explain_themselves(command):
    assert f"latephase {command}" in README
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("finish", "study", "test", "test-all", "lint", "docs", "bench", "clean"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_files_it_links_to_exist():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
