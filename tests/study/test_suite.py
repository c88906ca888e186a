"""Suites performed: each problem is the study that it would be alone; one goes on after a stop; damage is told."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import tomli_w
from small_studies import DRIVER, HERE, custom, performed, rows_of, statuses_of, times_of
from small_suites import FIVE, SEVEN, conducted, suite_of, suite_table
from typer.testing import CliRunner

from latephase.cli import app
from latephase.records import DamagedFile, ResultsError
from latephase.study.config import ConfigError
from latephase.study.performing import Conditions, RunKey
from latephase.study.suite import read_scores, write_suite_report
from latephase.study.suite.conduct import interleaved
from latephase.study.suite.page import number_text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "suite"
    with pytest.MonkeyPatch.context() as patch:
        assert conducted(suite_of(), directory, patch) == []
    return directory


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "suite")


def all_rows(directory: Path):
    return {folder: rows_of(directory / folder) for folder in ("five", "seven")}


def test_every_problem_is_the_study_that_it_would_be_alone(whole, tmp_path, monkeypatch):
    for member in suite_of().members:
        assert performed(member.study, tmp_path / member.folder, monkeypatch) == []
        assert rows_of(tmp_path / member.folder) == rows_of(whole / member.folder)
        assert (tmp_path / member.folder / "study.toml").read_text() == (
            whole / member.folder / "study.toml"
        ).read_text()


def test_the_scores_are_the_last_rows_and_the_page_says_them(whole):
    scores = read_scores(whole / "report" / "scores.json")
    page = (whole / "report" / "index.html").read_text(encoding="utf-8")
    assert [(case.folder, case.budget, case.parameters) for case in scores.cases] == [
        ("five", 8.0, 21),
        ("seven", 4.0, 29),
    ]
    for case in scores.cases:
        for name, values in case.values.items():
            last = [rows_of(whole / case.folder)[f"checkpoint-0000_{name}_seed-{v.seed}"][-1] for v in values]
            assert [value.value for value in values] == [row["test_relative_l2_error"] for row in last]
            assert number_text(case.measured, case.median(name)) in page
        assert f'href="../{case.folder}/report.html"' in page
    assert "and best on 2" in page


def test_runs_take_turns_by_seed():
    study = suite_of().members[0].study

    def runs(folder, *seeds):
        shared = Conditions(Path(folder), study, 8.0, 1.0, {}, "code")
        return [(shared, RunKey(0, study.strategies[0], seed)) for seed in seeds]

    order = interleaved([runs("a", 0, 0, 1), runs("b", 5, 5), runs("c", 0, 1, 2)])
    found = [(conditions.directory.name, key.seed) for conditions, key in order]
    assert found == [("a", 0), ("a", 0), ("b", 5), ("b", 5), ("c", 0), ("a", 1), ("c", 1), ("c", 2)]


def test_a_suite_goes_on_with_what_is_missing_and_may_get_another_problem(copy, monkeypatch):
    expected, before = all_rows(copy), {folder: times_of(copy / folder) for folder in ("five", "seven")}
    lost = copy / "seven" / "runs" / "checkpoint-0000_fast_seed-1"
    shutil.rmtree(lost)
    third = FIVE | {"folder": "third", "seeds": [0]}
    assert conducted(suite_of(FIVE, SEVEN, third), copy, monkeypatch) == []
    assert all_rows(copy) == expected
    after = {folder: times_of(copy / folder) for folder in ("five", "seven")}
    changed = {(f, run) for f, times in before.items() for run in times if after[f][run] != times[run]}
    assert changed == {("seven", lost.name)}
    alone = rows_of(copy / "third")
    assert alone == {run: rows for run, rows in expected["five"].items() if run.endswith("seed-0")}
    assert [case.folder for case in read_scores(copy / "report" / "scores.json").cases] == ["five", "seven", "third"]


@pytest.mark.slow
def test_parts_of_a_suite_make_the_whole(whole, tmp_path, monkeypatch):
    for part in (1, 2):
        assert conducted(suite_of(), tmp_path / "suite", monkeypatch, shard=(part, 2)) == []
        found = sum(len(statuses_of(tmp_path / "suite" / folder)) for folder in ("five", "seven"))
        assert found == 4 * part
    assert all_rows(tmp_path / "suite") == all_rows(whole)


def test_a_problem_whose_training_dies_does_not_stop_the_others(tmp_path, monkeypatch):
    dead = {
        "name": "small_problems:mortal",
        "problem_options": {"way": "_exit", "until": str(tmp_path / "never")},
        "score": "test_loss",
    }
    suite = suite_of(dead, SEVEN, seeds=[0], strategies=[custom("Plain", lr=0.1)])
    (broken,) = conducted(suite, tmp_path / "suite", monkeypatch)
    assert broken.startswith("mortal: training was ended with status 0")
    scores = read_scores(tmp_path / "suite" / "report" / "scores.json")
    assert [case.folder for case in scores.cases] == ["seven"]
    assert scores.troubles == {"mortal": "its training is not finished"}


def test_failed_and_diverged_runs_are_said(tmp_path, monkeypatch):
    strategies = [custom("Plain", "good", lr=0.1), custom("Plain", "wild", lr=1e30), custom("Raises", "bad")]
    conducted(suite_of(FIVE, strategies=strategies), tmp_path / "suite", monkeypatch)
    (case,) = read_scores(tmp_path / "suite" / "report" / "scores.json").cases
    ends = {name: [value.status for value in values] for name, values in case.values.items()}
    assert ends == {"good": ["finished"] * 2, "wild": ["diverged"] * 2, "bad": ["failed"] * 2}
    page = (tmp_path / "suite" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Of 6 planned runs, 2 finished, 2" in " ".join(page.split())
    assert "diverged (seeds 0, 1)" in page


def test_a_missing_problem_and_a_damaged_one_are_told_and_the_rest_is_shown(copy):
    shutil.rmtree(copy / "five")
    report_of_one = write_suite_report(copy).read_text(encoding="utf-8")
    assert "<strong>five</strong>: not begun" in report_of_one
    (copy / "seven" / "training" / "status.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"no problem of this suite .* results yet \(five: not begun; seven"):
        write_suite_report(copy)


def test_a_damaged_run_is_left_out_and_named(copy):
    rows = copy / "five" / "runs" / "checkpoint-0000_fast_seed-0" / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("0.", "1.", 1), encoding="utf-8")
    page = " ".join(write_suite_report(copy).read_text(encoding="utf-8").split())
    assert "a damaged file (seed 0)" in page
    assert "1 of 2 runs" in page


def changed_name(text):
    return text.replace('"pair"', '"pear"', 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_name, "its checksum is another"),
        (lambda text: text.rpartition("# check")[0], "it has no checksum in its last line"),
        (lambda text: "", "it has no checksum"),
        (lambda text: "[", r"suite\.toml is damaged"),
    ],
)
def test_a_changed_suite_file_is_refused(change, message, copy, monkeypatch):
    path = copy / "suite.toml"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DamagedFile, match=message):
        write_suite_report(copy)
    with pytest.raises(ConfigError, match="choose another folder"):
        conducted(suite_of(), copy, monkeypatch)


def test_folders_of_something_else_are_refused(whole, copy, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is not empty and holds no suite \(suite\.toml\)"):
        conducted(suite_of(), other, monkeypatch)
    with pytest.raises(ConfigError, match="holds a study, and not a suite"):
        conducted(suite_of(), whole / "five", monkeypatch)
    with pytest.raises(ConfigError, match="is of 'pair', and this is 'pears'"):
        conducted(suite_of(name="pears"), copy, monkeypatch)
    with pytest.raises(ConfigError, match=r"holds another study: budget is .*'amount': 8"):
        conducted(suite_of(budget={"unit": "steps", "amount": 6}), copy, monkeypatch)
    shutil.rmtree(copy / "five")
    (copy / "five").symlink_to(whole / "five")
    for refused in (lambda: conducted(suite_of(), copy, monkeypatch), lambda: write_suite_report(copy)):
        with pytest.raises(DamagedFile, match="a link, and links are not followed"):
            refused()


def test_a_folder_whose_study_is_of_another_problem_is_told(copy):
    toml = copy / "seven" / "study.toml"
    body = toml.read_text(encoding="utf-8").rpartition("# check")[0].replace(":smooth", ":noisy", 1)
    from latephase.records import sealed_toml

    toml.write_text(sealed_toml(body), encoding="utf-8")
    assert "holds a study of small_problems:noisy, not of" in write_suite_report(copy).read_text(encoding="utf-8")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(HERE)
    path = tmp_path / "pair.toml"
    path.write_text(tomli_w.dumps(suite_table()), encoding="utf-8")
    return path


def test_the_command_says_what_a_suite_would_do_and_whose_code_it_would_call(file, tmp_path):
    result = run("study", file, "--out", tmp_path / "out", "--dry-run", "--seeds", 3, "--shard", "1/2")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "would call, and does not now, functions that are not latephase's" in said
    assert said.count("problem: small_problems:smooth") == 1
    assert "Suite pair: 2 problems" in said
    assert said.count("3 runs, 1 at a time, each with a budget of") == 2
    assert not (tmp_path / "out").exists()


def test_the_command_goes_on_with_a_suite_and_tells_medians_and_failures(file, copy, monkeypatch):
    monkeypatch.setattr("latephase.study.suite.conduct.write_report", lambda directory: directory / "report.html")
    result = run("study", file, "--out", copy)
    assert result.exit_code == 0, result.output
    assert "On 2 of 2 problems “fast” has the lowest median" in result.output
    assert f"Report: {copy / 'report' / 'index.html'}" in result.output
    monkeypatch.setattr("latephase.study.suite.command.write_report", lambda directory: directory / "report.html")
    shutil.rmtree(copy / "report")
    assert run("report", copy).exit_code == 0
    assert (copy / "report" / "index.html").exists()
    rows = copy / "five" / "runs" / "checkpoint-0000_fast_seed-0" / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("0.", "1.", 1), encoding="utf-8")
    damaged = run("report", copy)
    assert damaged.exit_code == 1
    assert "five: fast, seed 0 has a damaged file; the same study command runs it again" in damaged.output


def test_the_command_names_an_unknown_problem(file, tmp_path):
    file.write_text(
        file.read_text(encoding="utf-8").replace('"small_problems:smooth"', '"pinn_wafe"'), encoding="utf-8"
    )
    result = run("study", file, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "problems.five: problem: unknown problem 'pinn_wafe'" in result.output
    assert "Did you mean 'pinn_wave'?" in result.output


@pytest.mark.slow
def test_a_suite_that_is_killed_and_started_again_is_the_whole(file, whole, tmp_path):
    """Killed as soon as a run has ended, so with others under way or not begun."""
    directory = tmp_path / "suite"
    command = [*DRIVER, "study", str(file), "--out", str(directory)]
    environment = os.environ | {"REPORT": "no"}
    process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(directory.glob("*/runs/*/status.json")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(list(directory.glob("*/runs/*"))) < 8
    assert subprocess.run(command, cwd=HERE, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    assert all_rows(directory) == all_rows(whole)
