"""Searches with their processes: what breaks is recorded and ends nothing; exactly the trials asked for are done."""

import csv
import os
import signal
import subprocess
import sys
import time
import tomllib

import optuna
import pytest
import tomli_w
from rich.console import Console
from small_studies import DRIVER, custom, first_order
from test_tune_config import LR, adamqlr, tuning_table
from typer.testing import CliRunner

from latephase.cli import app
from latephase.study.config import read_study
from latephase.study.performing.progress import StudyProgress
from latephase.study.tune.conduct import tune
from latephase.study.tune.config import parse_tuning
from latephase.study.tune.outcome import best_of

ENDED = ("finished", "stopped")
OWN_LR = {"search": {"options.lr": {"low": 0.01, "high": 0.5, "log": True}}}


def plain(name="own", factory="Plain", **options):
    return custom(factory, name, **options) | OWN_LR


def searched(table, directory, **options):
    with StudyProgress(Console(quiet=True)) as progress:
        return tune(parse_tuning(table, "small"), directory, progress, **options)


def csv_of(directory):
    with (directory / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(directory):
    """Every trial that the storage has ever seen: strategy, place, outcome."""
    url = f"sqlite:///{directory / 'tune.db'}"
    found = []
    for summary in optuna.get_all_study_summaries(url):
        for trial in optuna.load_study(study_name=summary.study_name, storage=url).get_trials():
            found.append((summary.study_name, trial.user_attrs["place"], trial.user_attrs.get("outcome")))
    return found


def command(path, directory, **environment):
    """`latephase tune` in a process group of its own."""
    return subprocess.Popen(
        [*DRIVER, "tune", str(path), "--out", str(directory)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.fixture
def slow_search(tmp_path):
    """A tuning of two strategies with four trials each, of about a second; its file."""
    table = tuning_table(
        plain("a", "Slow"), plain("b", "Slow"), tune={"budget": {"unit": "steps", "amount": 16}}, jobs=1
    )
    path = tmp_path / "slow.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def test_what_raises_dies_or_diverges_is_recorded_and_the_rest_goes_on(tmp_path):
    raising = plain("raises", "Raises")
    never = [str(tmp_path / name) for name in ("never", "nowhere")]
    killed = custom("Dies", "dies", way="kill") | {"search": {"options.until": {"choices": never}}}
    wild = first_order(name="wild", optimizer="sgd", search={"lr": {"choices": [0.05, 1e30]}})
    table = tuning_table(raising, killed, wild, tune={"trials": 3, "halving": {"rungs": 0}})
    found = searched(table, tmp_path / "out")
    by = {name: [o for o in found if o.strategy == name] for name in ("raises", "dies", "wild")}
    assert [o.outcome for o in by["raises"]] == ["failed"] * 3
    assert by["raises"][0].error == "ArithmeticError: the strategy broke"
    assert "in step\n    raise ArithmeticError" in (
        tmp_path / "out" / "runs" / "raises_trial-0000" / "error.txt"
    ).read_text(encoding="utf-8")
    assert [o.error for o in by["dies"]] == [
        "killed by SIGKILL (by the system where memory ran out, or by somebody)"
    ] * 3
    assert {(o.values["lr"], o.outcome) for o in by["wild"]} == {(0.05, "finished"), (1e30, "diverged")}
    rows = csv_of(tmp_path / "out")
    assert [(row["strategy"], int(row["trial"])) for row in rows] == [(n, i) for n in by for i in range(3)]
    study = read_study(str(tmp_path / "out" / "best.toml"))
    assert [strategy.name for strategy in study.strategies] == ["wild"]
    assert study.strategies[0].lr == 0.05
    again = searched(table, tmp_path / "out")
    assert again == found
    assert len(numbers_of(tmp_path / "out")) == 9


@pytest.mark.slow
def test_a_search_feeds_a_study(tmp_path):
    qlr = adamqlr(**{"batch_size": {"choices": [24, 48]}, "options.damping.factors.0": {"low": 0.5, "high": 1.0}})
    fixed = first_order(name="fixed", search={})
    path, out = tmp_path / "small.toml", tmp_path / "out"
    adam = first_order(name="adam", optimizer="adam", search=LR)
    table = tuning_table(adam, qlr, fixed, tune={"trials": 10}, baseline="fixed")
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    result = CliRunner().invoke(app, ["tune", str(path), "--out", str(out), "--jobs", "2"])
    assert result.exit_code == 0, result.output
    assert "Next: latephase study" in result.output
    tuning = parse_tuning(table, "small")
    rows = csv_of(out)
    assert len(rows) == 20
    assert {row["outcome"] for row in rows} == {"finished", "stopped"}
    # Equal budgets: a stopped trial has its value from a rung, a finished one from the end.
    for row in rows:
        shares = {"finished": {1.0}, "stopped": {0.25, 0.5}}[row["outcome"]]
        assert float(row["share"]) in shares
        assert int(row["steps"]) == 8 * float(row["share"])
    text = (out / "best.toml").read_text(encoding="utf-8")
    best = {table["name"]: table for table in tomllib.loads(text)["strategies"]}
    for name, key in (("adam", "lr"), ("qlr", "batch_size")):
        whole = [row for row in rows if row["strategy"] == name and row["outcome"] == "finished"]
        chosen = min(whole, key=lambda row: (float(row["value"]), int(row["trial"])))
        assert best[name][key] == float(chosen[key])
        assert f"# {name}: valid_loss {float(chosen['value']):.6g}, trial {chosen['trial']} of 10" in text
    assert best["qlr"]["options"]["damping"]["factors"][1] == 1.1
    assert best["fixed"] == tuning.table["strategies"][2]
    figures = {file.name for file in (out / "figures").iterdir()}
    names = ("sensitivity-adam", "sensitivity-qlr", "importance")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    fewer = CliRunner().invoke(app, ["tune", str(path), "--out", str(out), "--trials", "3"])
    assert fewer.exit_code == 1
    assert "holds 10 trials of a strategy, more than the 3 asked for" in " ".join(fewer.output.split())
    assert csv_of(out) == rows
    dry = CliRunner().invoke(app, ["study", str(out / "best.toml"), "--out", str(tmp_path / "study"), "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "6 runs, 1 at a time, each with a budget of 8 steps" in dry.output


def test_settings_that_a_strategy_refuses_together_are_failed_trials(tmp_path):
    sizes = {"batch_size": {"choices": [24]}, "curvature_batch_size": {"choices": [12, 48]}}
    steps = {"kind": "hessian_free", "name": "hf", "label": "HF", "evaluation_batch_size": 12, "batch_size": 48}
    table = tuning_table(
        steps | {"search": sizes}, tune={"halving": {"rungs": 0}, "budget": {"unit": "steps", "amount": 1}}
    )
    found = searched(table, tmp_path / "out")
    assert {(o.values["curvature_batch_size"], o.outcome) for o in found} == {(12, "finished"), (48, "failed")}
    assert "curvature_batch_size 48 exceeds the batch of 24" in next(o.error for o in found if o.outcome == "failed")


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_search_that_is_killed_goes_on_with_nothing_lost(slow_search, tmp_path, whole_group):
    out, finished = tmp_path / "out", []
    for kills in range(3):
        process = command(slow_search, out)
        while process.poll() is None and sum(o in ENDED for _, _, o in counted(out)) < 2 * kills + 1:
            time.sleep(0.05)
        time.sleep(0.2 * kills)  # in the middle of the next one
        assert process.poll() is None, process.communicate()
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        finished.append({(name, place) for name, place, o in counted(out) if o in ENDED})
        assert finished[-1] >= finished[max(0, kills - 1)]
    process = command(slow_search, out)
    assert process.wait() == 0, process.stderr.read().decode()
    process.communicate()
    seen = numbers_of(out)
    done = [(name, place) for name, place, o in seen if o in ENDED]
    assert sorted(done) == [(f"small/{name}", place) for name in "ab" for place in range(4)]
    assert len(done) == len(set(done))
    assert finished[-1] <= set(done)
    assert 1 <= sum(o == "lost" for _, _, o in seen) <= 3
    undisturbed = searched(tomllib.loads(slow_search.read_text(encoding="utf-8")), tmp_path / "undisturbed")
    assert [row["options.lr"] for row in csv_of(out)] == [str(o.values["options.lr"]) for o in undisturbed]


def counted(directory):
    try:
        return numbers_of(directory) if (directory / "tune.db").exists() else []
    except Exception:  # its tables are being made
        return []


@pytest.mark.slow
def test_two_workers_share_the_trials_of_one_storage(slow_search, tmp_path):
    out = tmp_path / "out"
    workers = [command(slow_search, out) for _ in range(2)]
    said = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    seen = numbers_of(out)
    done = [(name, place) for name, place, o in seen if o in ENDED]
    assert sorted(done) == [(f"small/{name}", place) for name in "ab" for place in range(4)]
    url = f"sqlite:///{out / 'tune.db'}"
    by = {t.user_attrs["worker"] for n in "ab" for t in optuna.load_study(study_name=f"small/{n}", storage=url).trials}
    assert len(by) == 2
    assert all("8 of 8 done" in output.decode() for output, _ in said)


@pytest.mark.slow
def test_an_interrupt_stops_at_once_and_says_how_to_go_on(slow_search, tmp_path):
    out = tmp_path / "out"
    process = command(slow_search, out)
    while not list(out.glob("runs/*/rows.jsonl")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped. The same command goes on from here" in error.decode()
    assert not [o for _, _, o in numbers_of(out) if o is None]  # what was under way is left to the next one
    assert not (out / "best.toml").exists()


@pytest.mark.slow
def test_tpe_searches_with_processes(tmp_path):
    adam = first_order(name="adam", optimizer="adam", search={"lr": {"low": 1e-6, "high": 0.1, "log": True}})
    found = searched(tuning_table(adam, tune={"trials": 14, "sampler": "tpe"}, jobs=2), tmp_path / "out")
    assert len(found) == 14
    assert best_of(found, "adam", False)[0].value < min(o.start for o in found)


def test_without_optuna_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = CliRunner().invoke(app, ["tune", "digits", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "pip install 'latephase[tune]'" in result.output
