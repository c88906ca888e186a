"""What a study refuses, so that its results stay comparable."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console
from typer.testing import CliRunner

from latephase.cli import app
from latephase.records.files import read_json, write_text_atomic
from latephase.study.config import ConfigError, parse_study
from latephase.study.performing import conducting as conduct_module
from latephase.study.performing import identity
from latephase.study.performing.claiming import check_folder, claim_machine
from latephase.study.performing.conducting import conduct, resolve
from latephase.study.performing.identity import MODULES
from latephase.study.performing.progress import StudyProgress
from latephase.study.performing.runs import plan_runs

TABLE = {
    "name": "guarded",
    "problem": "digits",
    "seeds": [0, 1],
    "checkpoints": [1, 2],
    "budget": {"unit": "steps", "amount": 2},
    "evaluations": 1,
    "training": {"epochs": 2, "save_every": 1},
    "strategies": [
        {"kind": "first_order", "name": name, "label": name, "schedule": "constant"}
        for name in ("a", "b", "c", "d", "e")
    ],
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1.0}, "damping must be a finite number >= 0"),
        ({"curvature": "fisher"}, "curvature must be one of ggn, hessian"),
        ({"curvature_dtype": "float64"}, 'options.curvature_dtype is curvature.dtype = "float64"'),
        ({"solver": {"max_iter": 2.5}}, "CG.max_iter must be an integer"),
        ({"cg_max_iter": 3}, "options.cg_max_iter is solver.max_iter = 3"),
        ({"adapt_damping": False}, 'options.adapt_damping is damping.kind = "fixed"'),
        ({"solver": {"maxiter": 3}}, "CG has no 'maxiter' .did you mean 'max_iter'"),
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


def test_a_folder_is_taken_where_a_process_died_while_it_claimed_it(tmp_path):
    study = resolve(parse_study(TABLE, "guarded"))
    for name in (".lock", ".lock-1-of-2", ".study.toml.x1y2"):
        (tmp_path / name).touch()
    check_folder(study, tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no study"):
        check_folder(study, tmp_path)


def test_a_folder_that_another_shard_claims_meanwhile_is_the_same_study(tmp_path, monkeypatch):
    study, listed = resolve(parse_study(TABLE, "guarded")), Path.iterdir

    def claimed_before_it_is_listed(path):
        write_text_atomic(tmp_path / "study.toml", study.toml())
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", claimed_before_it_is_listed)
    check_folder(study, tmp_path)


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    study = resolve(parse_study(TABLE, "guarded"))
    with (
        FileLock(tmp_path / ".lock-1-of-1"),
        StudyProgress(Console(quiet=True)) as progress,
        pytest.raises(ConfigError, match="another process works on"),
    ):
        conduct(study, tmp_path, progress)
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("key", ["cpu", "torch", "latephase", "threads", "device"])
def test_a_study_in_seconds_does_not_go_on_on_another_machine(tmp_path, key):
    seconds = parse_study(TABLE | {"budget": {"share": 0.1}}, "guarded")
    environment = {"cpu": "one", "torch": "2", "latephase": "1", "threads": 1, "device": "cpu", "git_commit": "abc"}
    claim_machine(tmp_path, environment, seconds)
    claim_machine(tmp_path, environment | {"git_commit": "def"}, seconds)
    with pytest.raises(ConfigError, match=f"was begun with {key} "):
        claim_machine(tmp_path, environment | {key: "other"}, seconds)
    assert read_json(tmp_path / "environment.json")["git_commit"] == "def"
    claim_machine(tmp_path, environment | {key: "other"}, parse_study(TABLE, "guarded"))  # in steps


def test_runs_are_planned_once_each_in_an_order_that_mixes_the_strategies():
    study = parse_study(TABLE, "guarded")
    keys = plan_runs(study)
    assert keys == plan_runs(study)
    assert set(Counter(key.run_id for key in keys).values()) == {1}
    orders = {tuple(key.strategy.name for key in keys[start : start + 5]) for start in range(0, 20, 5)}
    assert len(orders) > 1
    assert all(sorted(order) == ["a", "b", "c", "d", "e"] for order in orders)


def command(*arguments):
    return CliRunner().invoke(app, ["study", *(str(argument) for argument in arguments)])


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """No data folder, an empty cache, and no network."""
    monkeypatch.delenv("LATEPHASE_DATA", raising=False)
    monkeypatch.setenv("LATEPHASE_CACHE", str(tmp_path / "cache"))

    def refused(data, absent, cache):
        raise OSError("no network")

    monkeypatch.setattr("latephase.problems.data.download.download", refused)
    toml = tmp_path / "mnist.toml"
    table = TABLE | {"problem": "mnist_mlp"}
    toml.write_text(parse_study(table, "mnist").toml(), encoding="utf-8")
    return toml


def test_missing_data_is_named_with_sizes_and_places_before_anything_is_written(no_data, tmp_path):
    result = command(no_data, "--out", tmp_path / "out")
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "LATEPHASE_DATA is not set" in said
    assert "train-images-idx3-ubyte.gz (9,912,422 bytes)" in said
    assert "https://" in said
    assert "set LATEPHASE_DATA to a folder that holds these files" in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_missing_data_runs_and_budget_and_ends_well(no_data, tmp_path):
    result = command(no_data, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        assert name in said
    assert "9,912,422 bytes" in said
    assert "20 runs, 1 at a time, each with a budget of 2 steps" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "3/2"], "--shard must be i/N with i from 1 to N"),
        (["--shard", "0/2"], "--shard must be i/N"),
        (["--executor", "rya"], "--executor must be local or ray; got 'rya' (did you mean 'ray'?)"),
        (["--scale", "0"], "scale must be above 0 and at most 1, got 0"),
        (["--device", "cuda"], "torch sees no GPU"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    toml = tmp_path / "guarded.toml"
    toml.write_text(parse_study(TABLE, "guarded").toml(), encoding="utf-8")
    result = command(toml, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_the_code_that_moves_results_is_in_a_runs_identity():
    """Every file of the room that the training and the runs import, but for those that only name things."""
    room = Path(identity.__file__).parent
    reached, waiting = set(), ["run", "train"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            tree = ast.parse((room / f"{name}.py").read_text(encoding="utf-8"))
            waiting += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module]
    assert reached - {"identity", "source", "runs"} == set(MODULES)
