"""What a study refuses, so that its results stay comparable."""

import json
from collections import Counter

import pytest
from filelock import FileLock
from rich.console import Console
from typer.testing import CliRunner

from latephase.cli import app
from latephase.study import conduct as conduct_module
from latephase.study.conduct import claim_machine, conduct, resolve
from latephase.study.config import ConfigError, parse_study
from latephase.study.progress import StudyProgress
from latephase.study.run import plan_runs
from latephase.study.store import read_json, write_json
from latephase.study.train import train

TABLE = {
    "name": "guarded",
    "problem": "digits",
    "seeds": [0, 1],
    "checkpoints": [1, 2],
    "budget_share": 0.2,
    "evaluations": 1,
    "training": {"epochs": 2, "save_every": 1},
    "strategies": [
        {"kind": "sgd", "name": name, "label": name, "schedule": "constant"} for name in ("a", "b", "c", "d", "e")
    ],
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1.0}, "damping must be a finite number >= 0"),
        ({"curvature": "fisher"}, "curvature must be one of ggn, hessian"),
        ({"curvature_dtype": "float64"}, "'curvature_dtype' is no option"),
        ({"cg_max_iter": 2.5}, "cg_max_iter must be an integer"),
    ],
)
def test_option_values_are_checked_before_anything_runs(options, message):
    strategy = {"kind": "hessian_free", "name": "hf", "label": "HF", "batch_size": 8, "options": options}
    with pytest.raises(ConfigError, match=rf"strategies\.0\.options: .*{message}"):
        parse_study(TABLE | {"strategies": [strategy]}, "guarded")


def test_another_version_of_the_problem_is_refused():
    assert parse_study(TABLE, "guarded").problem_version == 1
    with pytest.raises(ConfigError, match="problem_version is 0, but digits is at 1"):
        parse_study(TABLE | {"problem_version": 0}, "guarded")


def test_more_runs_at_a_time_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr(conduct_module.os, "cpu_count", lambda: 2)
    assert resolve(parse_study(TABLE | {"jobs": 2}, "guarded")).jobs == 2
    with pytest.raises(ConfigError, match=r"jobs \(3\) times threads \(1\) exceeds the 2 cores"):
        resolve(parse_study(TABLE | {"jobs": 3}, "guarded"))


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    study = resolve(parse_study(TABLE, "guarded"))
    with (
        FileLock(tmp_path / ".lock"),
        StudyProgress(Console(quiet=True)) as progress,
        pytest.raises(ConfigError, match="another process works on"),
    ):
        conduct(study, tmp_path, progress)
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("key", ["cpu", "torch", "latephase", "threads"])
def test_a_study_does_not_go_on_on_another_machine(tmp_path, key):
    environment = {"cpu": "one", "torch": "2", "latephase": "1", "threads": 1, "git_commit": "abc"}
    claim_machine(tmp_path, environment)
    claim_machine(tmp_path, environment | {"git_commit": "def"})
    with pytest.raises(ConfigError, match=f"was begun with {key} "):
        claim_machine(tmp_path, environment | {key: "other"})
    assert read_json(tmp_path / "environment.json")["git_commit"] == "def"


def test_runs_are_planned_once_each_in_an_order_that_mixes_the_strategies():
    study = parse_study(TABLE, "guarded")
    keys = plan_runs(study)
    assert keys == plan_runs(study)
    assert set(Counter(key.run_id for key in keys).values()) == {1}
    orders = {tuple(key.strategy.name for key in keys[start : start + 5]) for start in range(0, 20, 5)}
    assert len(orders) > 1
    assert all(sorted(order) == ["a", "b", "c", "d", "e"] for order in orders)


def test_a_training_stopped_before_its_first_checkpoint_starts_again_with_one_row_per_epoch(tmp_path):
    study = resolve(parse_study(TABLE, "guarded"))
    train(tmp_path, study)
    folder = tmp_path / "training"
    (folder / "status.json").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        checkpoint.unlink()
    train(tmp_path, study)
    last = (folder / "rows.jsonl").read_text(encoding="utf-8").split('"attempt": 2}\n')[1]
    assert [json.loads(line)["epoch"] for line in last.splitlines()] == [0, 1, 2]


def test_failed_runs_end_the_command_with_status_1_and_their_errors(tmp_path):
    toml = tmp_path / "guarded.toml"
    toml.write_text(parse_study(TABLE | {"seeds": [0], "checkpoints": [2]}, "guarded").toml(), encoding="utf-8")
    directory = tmp_path / "out"
    assert CliRunner().invoke(app, ["study", str(toml), "--out", str(directory)]).exit_code == 0
    status = directory / "runs" / "checkpoint-0002_a_seed-0" / "status.json"
    write_json(status, {"status": "failed", "error": "ArithmeticError: it broke"})
    (directory / "training" / "checkpoints" / "epoch-0002.pt").write_bytes(b"damaged")
    again = CliRunner().invoke(app, ["study", str(toml), "--out", str(directory)])
    assert again.exit_code == 1
    assert "checkpoint-0002_a_seed-0 failed: ValueError" in again.output
    assert "epoch-0002.pt is damaged" in again.output
