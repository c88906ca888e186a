"""The size of a study that should end within some minutes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from latephase.cli import app
from latephase.study.config import read_study
from latephase.study.outline import fitted_text
from latephase.study.performing.fitting import AIM, SCALES, sized
from latephase.study.results import read_plan

SMALL = """
name = "small"
problem = "digits"
seeds = [0, 1, 2]
checkpoints = [20, 40]
evaluations = 2

[training]
epochs = 40

[[strategies]]
kind = "first_order"
name = "constant"
label = "SGD, constant"
schedule = "constant"
"""
seconds = st.floats(min_value=1e-4, max_value=100)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def expected(study, epoch, run):
    """As by hand: the training, and of two runs at a time each with its budget of a tenth."""
    training = epoch * study.training.epochs
    runs = len(study.seeds) * len(study.checkpoints) * len(study.strategies)
    return training + math.ceil(runs / 2) * (0.1 * training + run)


@pytest.fixture(scope="module")
def digits():
    return read_study("digits")


def test_a_fast_machine_has_the_whole_study(digits):
    chosen = sized(digits, 5, 10.0, 0.05, 1.0)
    assert chosen.model_copy(update={"fitted": None}) == digits
    assert chosen.fitted.expected_minutes == pytest.approx((10 + expected(digits, 0.05, 1.0)) / 60)


def test_seeds_are_left_out_first(digits):
    chosen = sized(digits, 5, 15.0, 0.11, 2.0)
    assert (chosen.seeds, chosen.checkpoints, chosen.training.epochs, chosen.scale) == (
        [0, 1], digits.checkpoints, 400, 1.0)  # fmt: skip
    assert "2 of 3 seeds, 3 of 3 checkpoints and 400 of 400 epochs" in fitted_text(chosen)


def test_then_epochs_and_checkpoints(digits):
    chosen = sized(digits, 5, 30.0, 0.3, 5.0)
    assert len(chosen.seeds) == 2
    assert chosen.training.epochs == round(400 * chosen.scale) < 400
    assert max(chosen.checkpoints) == chosen.training.epochs


@given(minutes=st.floats(0.01, 1000), trial=seconds, epoch=seconds, run=seconds)
def test_the_size_fits_or_is_the_smallest(digits, minutes, trial, epoch, run):
    chosen = sized(digits, minutes, trial, epoch, run)
    takes = trial + expected(chosen, epoch, run)
    assert chosen.fitted.expected_minutes == pytest.approx(takes / 60)
    assert takes <= AIM * 60 * minutes * (1 + 1e-9) or chosen.scale == SCALES[-1]
    assert sized(digits, minutes, trial, epoch, run) == chosen
    more = sized(digits, 2 * minutes, trial, epoch, run)
    assert (more.scale, len(more.seeds)) >= (chosen.scale, len(chosen.seeds))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scale", "0.5"), "give one of --minutes and --scale"),
        (("--shard", "1/2"), "neither --shard nor --executor"),
        (("--minutes", "0"), "minutes must be a finite number above 0"),
    ],
)
def test_what_does_not_go_with_it_is_refused(arguments, message, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    result = invoke("study", tmp_path / "small.toml", "--out", tmp_path / "out", "--minutes", 5, *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_a_budget_in_steps_and_a_suite_are_refused(tmp_path):
    in_steps = SMALL.replace("[training]", '[budget]\nunit = "steps"\namount = 3\n\n[training]')
    (tmp_path / "small.toml").write_text(in_steps, encoding="utf-8")
    result = invoke("study", tmp_path / "small.toml", "--out", tmp_path / "out", "--minutes", 5)
    assert "needs a budget in seconds" in " ".join(result.output.split())
    result = invoke("study", "physics", "--out", tmp_path / "out", "--minutes", 5)
    assert "this is a suite" in " ".join(result.output.split())


@pytest.mark.slow
def test_a_study_says_what_was_chosen_and_keeps_it(tmp_path):
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    command = ("study", tmp_path / "small.toml", "--out", tmp_path / "out", "--minutes", 0.01)  # less than it can be
    first = invoke(*command)
    assert first.exit_code == 0, first.output
    plan = read_plan(tmp_path / "out" / "study.toml")
    assert (len(plan.seeds), plan.training.epochs, plan.scale) == (2, 2, SCALES[-1])
    text = " ".join(fitted_text(plan).split())
    assert "2 of 3 seeds, 1 of 2 checkpoints and 2 of 40 epochs" in text
    assert text in " ".join(first.output.split())
    assert text in " ".join((tmp_path / "out" / "report.html").read_text(encoding="utf-8").split())
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "runs").rglob("rows.jsonl")}
    again = invoke(*command)  # whatever a trial would say now
    assert again.exit_code == 0, again.output
    assert read_plan(tmp_path / "out" / "study.toml").fitted == plan.fitted
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "runs").rglob("rows.jsonl")} == before
