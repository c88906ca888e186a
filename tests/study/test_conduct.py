"""A small study from end to end: what is written, what is undone, and going on after an end at any moment."""

import csv
import json

import pytest
import torch
from rich.console import Console

from latephase.problems import get
from latephase.study import run as run_module
from latephase.study.checkpoint import checkpoint_path, load_checkpoint
from latephase.study.conduct import conduct, resolve
from latephase.study.config import ConfigError, parse_study
from latephase.study.evaluate import Evaluator
from latephase.study.progress import StudyProgress
from latephase.study.results import load_results
from latephase.study.run import RunKey, perform_run, plan_runs
from latephase.study.store import read_journal, read_json
from latephase.study.strategies import start_strategy
from latephase.study.train import train

TABLE = {
    "name": "small",
    "problem": "digits",
    "seeds": [0, 1],
    "jobs": 2,
    "budget_share": 0.5,
    "evaluations": 4,
    "checkpoints": [2, 4],
    "training": {"epochs": 4, "save_every": 2},
    "strategies": [
        {"kind": "sgd", "name": schedule, "label": schedule, "schedule": schedule}
        for schedule in ("constant", "tenth", "cosine", "plateau")
    ]
    + [
        {
            "kind": "hessian_free",
            "name": "hf",
            "label": "HF",
            "batch_size": 32,
            "evaluation_batch_size": 32,
            "options": {"cg_max_iter": 3},
        }
    ],
}
ENVIRONMENT = {"cpu": "some"}


@pytest.fixture(scope="module")
def study():
    return resolve(parse_study(TABLE, "small"))


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(directory, study)
    return directory


@pytest.fixture(scope="module")
def conducted(study, tmp_path_factory):
    directory = tmp_path_factory.mktemp("conducted") / "out"
    with StudyProgress(Console(quiet=True)) as progress:
        conduct(study, directory, progress)
    return directory


def scores(directory):
    with (directory / "scores.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def modification_times(directory):
    return {path: path.stat().st_mtime_ns for path in directory.glob("runs/*/rows.jsonl")}


def test_every_run_has_one_finite_row_and_the_page_is_there(study, conducted):
    rows = scores(conducted)
    keys = [(int(row["checkpoint_epoch"]), row["strategy"], int(row["seed"])) for row in rows]
    assert sorted(keys) == sorted((k.checkpoint_epoch, k.strategy.name, k.seed) for k in plan_runs(study))
    assert {row["status"] for row in rows} == {"finished"}
    assert all(0 <= float(row["relative_train_loss"]) <= 1 for row in rows)
    assert all(int(row["steps"]) > 0 and float(row["overshoot_seconds"]) >= 0 for row in rows)
    page = (conducted / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 4
    assert {path.suffix for path in (conducted / "figures").iterdir()} == {".png", ".pdf"}


def test_all_strategies_are_evaluated_at_the_same_seconds(conducted):
    results = load_results(conducted)
    grids = {tuple(row["seconds"] for row in run.evaluations) for run in results.runs}
    assert len(grids) == 1
    (grid,) = grids
    assert len(grid) == 5
    assert grid[0] == 0
    assert grid[-1] == pytest.approx(0.5 * results.training_status["seconds"])


def test_running_again_redoes_nothing_and_a_lost_run_only(study, conducted):
    before = modification_times(conducted)
    lost = conducted / "runs" / "checkpoint-0002_hf_seed-1"
    (lost / "status.json").unlink()
    with (lost / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "evaluation", "sec')  # torn by the kill
    with StudyProgress(Console(quiet=True)) as progress:
        conduct(study, conducted, progress)
    changed = {path for path, time in modification_times(conducted).items() if time != before[path]}
    assert changed == {lost / "rows.jsonl"}
    assert len([row for row in read_journal(lost / "rows.jsonl") if row["event"] == "evaluation"]) == 5
    assert len(scores(conducted)) == 20


def test_a_folder_with_another_study_is_refused(conducted):
    other = resolve(parse_study(TABLE | {"budget_share": 0.25}, "other"))
    with (
        StudyProgress(Console(quiet=True)) as progress,
        pytest.raises(ConfigError, match=r"budget_share is 0\.5 there and 0\.25 here"),
    ):
        conduct(other, conducted, progress)


def test_a_folder_with_other_things_is_refused(study, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious", encoding="utf-8")
    with (
        StudyProgress(Console(quiet=True)) as progress,
        pytest.raises(ConfigError, match="is not empty and holds no study"),
    ):
        conduct(study, tmp_path, progress)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_training_that_was_stopped_goes_on_bit_for_bit(study, trained, tmp_path):
    (tmp_path / "training" / "checkpoints").mkdir(parents=True)
    rows = (trained / "training" / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in rows if json.loads(line).get("epoch", 0) <= 3]
    (tmp_path / "training" / "rows.jsonl").write_text("".join(kept) + '{"event": "eval', encoding="utf-8")
    checkpoint_path(tmp_path, 2).write_bytes(checkpoint_path(trained, 2).read_bytes())
    train(tmp_path, study)
    ours, theirs = (load_checkpoint(checkpoint_path(directory, 4)) for directory in (tmp_path, trained))
    assert all(torch.equal(ours["model"][name], tensor) for name, tensor in theirs["model"].items())
    assert ours["steps"] == theirs["steps"]
    assert ours["seconds"] > load_checkpoint(checkpoint_path(trained, 2))["seconds"]
    logged = [
        [(row["epoch"], row["train_loss"]) for row in read_journal(directory / "training" / "rows.jsonl")]
        for directory in (tmp_path, trained)
    ]
    assert logged[0] == logged[1]
    assert [epoch for epoch, _ in logged[0]] == [0, 1, 2, 3, 4]


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "epoch-0002.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"epoch-0002\.pt is damaged"):
        load_checkpoint(tmp_path / "epoch-0002.pt")


@pytest.mark.parametrize("index", range(5), ids=["constant", "tenth", "cosine", "plateau", "hf"])
def test_warm_up_and_evaluation_change_no_trajectory(study, trained, index):
    """The same ten steps, bit for bit, with a warm-up before and evaluations between, and without."""
    problem = get("digits")
    splits = problem.load()
    checkpoint = load_checkpoint(checkpoint_path(trained, 2))
    model = problem.model()
    arguments = (study.strategies[index], study, problem, model, splits, checkpoint, 7)
    states = []
    for disturbed in (False, True):
        if disturbed:
            warm = start_strategy(*arguments)
            for _ in range(3):
                warm.step(0.0)
        strategy = start_strategy(*arguments)
        evaluate = Evaluator(problem, model, splits)
        start = {name: tensor.clone() for name, tensor in strategy.model.state_dict().items()}
        assert all(torch.equal(start[name], tensor) for name, tensor in checkpoint["model"].items())
        for step in range(10):
            strategy.step(step / 10)
            if disturbed:
                evaluate(strategy.model.state_dict())
        states.append(strategy.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], start[name]) for name in start)


def test_the_clock_stands_still_during_evaluation(study, trained, tmp_path, monkeypatch):
    slept = []

    class SlowEvaluator(Evaluator):
        def __call__(self, state):
            import time

            time.sleep(0.8)
            slept.append(0.8)
            return super().__call__(state)

    monkeypatch.setattr(run_module, "Evaluator", SlowEvaluator)
    (tmp_path / "training").symlink_to(trained / "training")
    key = RunKey(4, study.strategies[0], 0)
    assert perform_run(tmp_path, study, key, 0.2, ENVIRONMENT) == "finished"
    status = read_json(tmp_path / "runs" / key.run_id / "status.json")
    assert len(slept) >= 2  # five where the machine has nothing else to do
    assert status["seconds"] == pytest.approx(0.2 + status["overshoot_seconds"])
    assert status["seconds"] < 0.8  # less than a single evaluation


def test_a_row_holds_the_state_of_its_second(study, trained, tmp_path, monkeypatch):
    """One step longer than the whole budget: every row is the checkpoint, and the step is overshoot."""
    (tmp_path / "training").symlink_to(trained / "training")
    key = RunKey(4, study.strategies[4], 0)
    assert perform_run(tmp_path, study, key, 1e-4, ENVIRONMENT) == "finished"
    rows = read_journal(tmp_path / "runs" / key.run_id / "rows.jsonl")
    evaluations = [row for row in rows if row["event"] == "evaluation"]
    assert len(evaluations) == 5
    assert len({(row["train_loss"], row["step"]) for row in evaluations}) == 1
    status = read_json(tmp_path / "runs" / key.run_id / "status.json")
    assert status["steps"] == 0  # it did not end within the budget
    assert status["overshoot_seconds"] > 0
    assert len([row for row in rows if row["event"] == "step"]) == 1


def test_a_run_that_fails_says_why_and_keeps_its_rows(study, trained, tmp_path, monkeypatch):
    calls = []

    def failing(*arguments):
        strategy = start_strategy(*arguments)
        if calls:  # the warm-up works

            def step(share):
                raise ArithmeticError("the strategy broke")

            strategy.step = step
        calls.append(None)
        return strategy

    monkeypatch.setattr(run_module, "start_strategy", failing)
    (tmp_path / "training").symlink_to(trained / "training")
    key = RunKey(4, study.strategies[0], 0)
    assert perform_run(tmp_path, study, key, 0.2, ENVIRONMENT) == "failed"
    folder = tmp_path / "runs" / key.run_id
    assert read_json(folder / "status.json")["error"] == "ArithmeticError: the strategy broke"
    assert "test_conduct.py" in (folder / "error.txt").read_text(encoding="utf-8")
    assert [row["seconds"] for row in read_journal(folder / "rows.jsonl")] == [0.0]


def test_learning_rates_follow_their_schedules(study, trained):
    problem = get("digits")
    splits = problem.load()
    checkpoint = load_checkpoint(checkpoint_path(trained, 2))
    lr = study.training.lr
    rates = {}
    for config in study.strategies[:3]:
        strategy = start_strategy(config, study, problem, problem.model(), splits, checkpoint, 0)
        rates[config.name] = [(strategy.step(share), strategy.lr)[1] for share in (0.0, 0.5, 1.0)]
    assert rates["constant"] == [lr, lr, lr]
    assert rates["tenth"] == [lr / 10] * 3
    assert rates["cosine"] == pytest.approx([lr, lr / 2, 0.0])
