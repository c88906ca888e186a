"""`benchmarks/finish.py`: what it foretells, what a kill leaves, and its tables beside numbers by hand."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import finish  # noqa: E402
from finish_problems import PROBLEMS, Setting, shorter  # noqa: E402
from finish_table import best_in_hindsight, median_interval, paired, regrets, table  # noqa: E402

from latephase.optim.late_phase import OWN  # noqa: E402

sys.path.remove(str(BENCHMARKS))


def line(problem, seed, run, loss, start=1.0, **more):
    return {
        "problem": problem,
        "seed": seed,
        "run": run,
        "loss": loss,
        "start": start,
        "setting": {"deterministic": False},
        "winners": ["base"],
        "test": {},
    } | more


def test_the_suite_has_ten_problems_and_stays_below_160_minutes_of_a_core():
    assert len(PROBLEMS) >= 10
    assert sum(name.startswith("pinn_") for name in PROBLEMS) >= 3
    assert sum(finish.foretold(PROBLEMS, 3, PROBLEMS).values()) < 160 * 60


def test_what_is_foretold_is_every_run_at_its_budget():
    setting = Setting(10, 5, deterministic=True)
    alone = finish.rivals(setting)
    assert alone[0] == "cosine"
    assert "ema" not in alone
    assert set(alone) | set(finish.FOR_NOISE) | set(finish.FOR_MODES) == set(OWN)
    itself = sum(own.by_itself for own in OWN.values())
    one = 1 + len(alone)
    found = finish.foretold(["p"], 3, {"p": setting})["p"]
    assert found == pytest.approx(1.1 * (3 * 10 + 5 * (one + 2 * (2 + itself + finish.BEST_OF_REST))))


def test_later_seeds_have_the_base_those_of_the_race_and_the_best_of_the_rest(tmp_path):
    path, setting = tmp_path / "p.jsonl", Setting(1, 1)
    losses = {"race": 0.1, "cosine": 0.2, "base": 0.3, "kfac": 0.1, "soap": 0.4, "muon": 0.2, "ema": 0.3}
    for run, loss in losses.items():
        more = {"contestants": ["base", "kfac"]} if run == "race" else {}
        finish.append(path, line("p", 0, run, loss, setting=setting.told, **more))
    finish.append(path, {"problem": "p", "seed": 0, "run": "lbfgs", "setting": setting.told, "excluded": "too long"})
    told = finish.runs("p", 1, 0, path, setting)
    assert next(told) == "race"
    finish.append(path, line("p", 1, "race", 0.1, setting=setting.told, contestants=["base", "kfac"]))
    finish.append(path, line("p", 1, "base", 0.1, setting=setting.told))
    assert list(told) == ["cosine", "kfac", "muon", "ema"]
    assert "lbfgs" not in list(finish.runs("p", 0, 0, path, setting))


def test_a_line_that_a_kill_cut_is_left_out_and_the_next_is_whole(tmp_path):
    path, setting = tmp_path / "p.jsonl", Setting(1, 1)
    finish.append(path, line("p", 0, "race", 0.1, setting=setting.told))
    with path.open("a") as file:
        file.write('{"problem": "p", "se')
    finish.append(path, line("p", 0, "cosine", 0.2, setting=setting.told))
    finish.append(path, line("p", 0, "base", 0.2, setting=shorter(setting, 2.0).told))
    assert [each["run"] for each in finish.lines_of(path, setting)] == ["race", "cosine"]


def test_regret_is_measured_against_one_contestant_of_all_seeds():
    losses = {
        0: {"race": 0.22, "cosine": 0.3, "a": 0.2, "b": 0.1, "start": 1.0},
        1: {"race": 0.21, "cosine": 0.3, "a": 0.2, "b": 0.9, "start": 1.0},
    }
    assert best_in_hindsight(losses) == "a"
    assert regrets(losses, False) == ([pytest.approx(0.1), pytest.approx(0.05)], "a")
    steep = {0: {"race": 1e-8, "cosine": 1e-2, "a": 1e-10, "start": 1.0}}
    assert regrets(steep, True) == ([pytest.approx(0.2)], "a")


def test_intervals_are_those_of_a_paired_t_test():
    middle, low, high = paired([1.0, 2.0, 4.0], [2.0, 2.0, 2.0])  # logarithms -log 2, 0, log 2
    width = 4.303 * math.log(2) / math.sqrt(3)
    assert (middle, low, high) == (
        pytest.approx(0.0, abs=1e-15),
        pytest.approx(math.exp(-width) - 1),
        pytest.approx(math.exp(width) - 1),
    )
    assert paired([1.0], [2.0]) == (pytest.approx(-0.5), -math.inf, math.inf)
    assert median_interval([[0.1, 0.1], [0.1]]) == (0.1, 0.1, 0.1)


def test_the_table_says_what_the_goals_ask():
    physics = {"setting": {"deterministic": True}}
    lines = [
        *(line("digits", seed, run, loss) for seed in (0, 1) for run, loss in (("race", 0.103), ("cosine", 0.1))),
        line("pinn", 0, "race", 1e-9, test={"test_relative_l2_error": 1e-5}, **physics),
        line("pinn", 0, "cosine", 1e-3, test={"test_relative_l2_error": 1e-2}, **physics),
        line("pinn", 0, "gauss_newton", 1e-10, **physics),
        line("other", 0, "race", 0.1),
    ]
    said = table(lines)
    assert "| digits | 2 | base | cosine | +3.0 %, +3.0 % | +3.0 % (+3.0 % to +3.0 %) |  |" in said
    assert "| pinn | 1 | base | gauss_newton | +10.0 % | -100.0 % | 1e+03 |" in said
    assert "Regret: median +3.0 %" in said
    assert "worst +10.0 %" in said
    assert "Behind the cosine at most: +3.0 % (digits)" in said
    assert "at least 1e+03 times (pinn)" in said
    assert "other" not in said
    assert table([]).startswith("no problem")


@pytest.mark.slow
def test_killed_it_goes_on_and_repeats_nothing(tmp_path):
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "finish.py"), "--out", str(tmp_path)]
    command += ["--problems", "digits", "--seeds", "0", "--scale", "0.05"]
    path = tmp_path / "digits.jsonl"
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(path.read_text().splitlines() if path.is_file() else []) < 3:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = path.read_text().splitlines()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    after = [json.loads(text) for text in path.read_text().splitlines()]
    assert path.read_text().splitlines()[:3] == before[:3]
    runs = [each["run"] for each in after]
    assert len(set(runs)) == len(runs)
    assert {"race", "cosine", "ema", "soap"} <= set(runs)
