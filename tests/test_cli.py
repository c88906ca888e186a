"""The command line: what it prints, what it refuses, and with which exit status."""

import pytest
from typer.testing import CliRunner

from latephase.cli import app

SMALL = """
name = "small"
problem = "digits"
seeds = [0]
checkpoints = [2]
evaluations = 2

[budget]
share = 0.2

[training]
epochs = 2

[[strategies]]
kind = "first_order"
name = "constant"
label = "SGD, constant"
schedule = "constant"

[[strategies]]
kind = "hessian_free"
name = "hf"
label = "Hessian-free"
batch_size = 32
evaluation_batch_size = 32
options = { solver = { max_iter = 2 } }
"""


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def test_problems_are_listed_with_their_size():
    result = run("problems")
    assert result.exit_code == 0
    assert "digits" in result.output
    assert "38,282" in result.output


def test_a_study_runs_resumes_and_is_reported(small, tmp_path):
    directory = tmp_path / "out"
    first = run("study", small, "--out", directory)
    assert first.exit_code == 0, first.output
    assert "Hessian-free" in first.output
    assert f"Report: {directory / 'report.html'}" in first.output
    assert (directory / "report.html").stat().st_size > 100_000
    rows = (directory / "runs" / "checkpoint-0002_hf_seed-0" / "rows.jsonl").read_text(encoding="utf-8")
    again = run("study", small, "--out", directory)
    assert again.exit_code == 0
    assert (directory / "runs" / "checkpoint-0002_hf_seed-0" / "rows.jsonl").read_text(encoding="utf-8") == rows
    (directory / "report.html").unlink()
    assert run("report", directory).exit_code == 0
    assert (directory / "report.html").exists()


def test_a_dry_run_says_what_would_run_and_writes_nothing(small, tmp_path):
    result = run("study", small, "--out", tmp_path / "out", "--dry-run", "--seeds", 2)
    assert result.exit_code == 0
    assert result.output.count("2 to run") == 2
    said = " ".join(result.output.split())
    assert "Training: 2 epochs of sgd at 0.2, batches of 32." in said
    assert "4 runs, 1 at a time, each with a budget of 20% of the training's seconds and 2 evaluations." in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--shard", "3/2"), ("--executor", "slurm"), ("--scale", "0")])
def test_options_that_mean_nothing_are_refused(small, tmp_path, option):
    result = run("study", small, "--out", tmp_path / "out", *option)
    assert result.exit_code == 1
    assert option[0].strip("-") in result.output
    assert not (tmp_path / "out").exists()


def test_all_of_one_problem_is_said():
    result = run("problems", "svhn_wrn164")
    assert result.exit_code == 0
    assert "bn_momentum=0.9" in result.output
    assert "sgd at 0.0253782, batches of 128, 160 epochs" in result.output
    assert run("problems", "svhn_wrn").exit_code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("evaluations", "evaluation"), "unknown key evaluation (did you mean 'evaluations'?)"),
        (("share = 0.2", "share = -0.2"), "budget.share: Input should be greater than 0"),
        (("batch_size = 32\n", "batch_size = 2000\n"), "exceed the 1197 training rows"),
        (('"digits"', '"digit"'), "unknown problem 'digit'"),
    ],
)
def test_a_wrong_study_ends_with_status_1_and_a_message_before_anything_runs(small, tmp_path, change, message):
    small.write_text(SMALL.replace(*change), encoding="utf-8")
    result = run("study", small, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_study_cannot_be_reported(tmp_path):
    result = run("report", tmp_path)
    assert result.exit_code == 1
    assert "study.toml" in result.output
