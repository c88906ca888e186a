"""The command line: what it prints, what it refuses, and with which exit status."""

import csv
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latephase import problems
from latephase.cli import app
from latephase.problems.summaries import SUMMARIES

COMMANDS = ["finish", "check", "study", "tune", "report", "problems", "bench"]
PAGE = Path(__file__).parent.parent / "docs" / "command_line.md"

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
    reported = run("report", directory, "--json")
    assert reported.exit_code == 0
    assert (directory / "report.html").exists()
    found = json.loads(reported.stdout)
    assert found["page"] == str((directory / "report.html").resolve())
    with (directory / "scores.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [(row["strategy"], str(row["best_test_loss"])) for row in found["scores"]] == [
        (row["strategy"], row["best_test_loss"]) for row in written
    ]
    assert re.search(r"training, epochs: validation loss [\d.]+: 2 of 2 done", first.output)
    assert re.search(r"seed-0 finished, validation loss [\d.]+: 2 of 2 done", first.output)


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


def test_without_a_command_it_says_what_to_do_first():
    result = run()
    assert result.exit_code == 0
    examples = re.findall(r"^    latephase (\w+) (.+)$", result.output, flags=re.MULTILINE)
    assert [command for command, _ in examples] == ["finish", "check", "study"]
    for command, arguments in examples:  # each option is one that the command has
        shown = run(command, "--help").output
        assert all(option in shown for option in re.findall(r"--\w+", arguments))
    assert max(map(len, result.output.splitlines())) <= 80


def test_problems_are_listed_without_torch_and_by_python_m(tmp_path):
    code = (
        "import atexit, runpy, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
        "sys.argv = ['latephase', 'problems']; runpy.run_module('latephase', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "38,282" in done.stdout
    assert done.stderr.split()[-1] == "False"


def test_what_the_list_says_of_a_problem_is_true():
    for name, summary in SUMMARIES.items():
        problem = problems.get(name)
        parameters = sum(parameter.numel() for parameter in problem.model().parameters())
        assert (parameters, problem.dataset, problem.title) == summary[1:], name


def test_problems_as_json():
    rows = json.loads(run("problems", "--json").stdout)
    assert [row["name"] for row in rows] == problems.names()
    assert rows[0] == {
        "name": "digits", "title": "CNN on digits", "parameters": 38_282, "dataset": None, "missing_megabytes": 0,
    }  # fmt: skip
    one = json.loads(run("problems", "rosenbrock", "--json").stdout)
    assert (one["parameters"], one["options"], one["missing"]) == (2, {"a": 1.0, "b": 100.0}, [])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_breaks_no_line_by_itself(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert max(map(len, lines)) <= 80
    text = [line.removeprefix(" ") for line in lines if line.startswith(" ") and not line.startswith("  ")]
    text = [line for line in text if not line.startswith("Usage")]
    for line, following in itertools.pairwise(text):
        if lines.index(f" {following}") == lines.index(f" {line}") + 1:  # of one paragraph
            assert len(line) + 1 + len(following.split()[0]) > 78, (line, following)


def test_the_exit_statuses_are_those_that_help_and_page_say(small, tmp_path, monkeypatch):
    (tmp_path / "stopped.py").write_text("def make():\n    raise KeyboardInterrupt\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    statuses = {
        0: run("problems"),
        1: run("report", tmp_path / "nothing"),
        2: run("finsh"),
        130: run("check", "stopped:make"),
    }
    said, page = run("--help").output, PAGE.read_text(encoding="utf-8")
    for status, result in statuses.items():
        assert result.exit_code == status
        assert re.search(rf"\b{status}:", said)
        assert f"| {status} |" in page
    assert run("study", small, "--out", tmp_path / "out", "--no-such-option").exit_code == 2


def test_a_shell_completes_commands(monkeypatch):
    monkeypatch.setenv("_LATEPHASE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "latephase fin")
    monkeypatch.setenv("COMP_CWORD", "1")
    result = CliRunner().invoke(app, [], prog_name="latephase")
    assert result.output.split() == ["finish"]
