"""Going on after an end at any moment: nothing lost, nothing doubled, and the same numbers bit for bit."""

import os
import random
import signal
import time

import pytest
import torch
from kill_campaign import campaign, killed_until_finished, study_subject, tuning_subject, written
from small_studies import (
    first_order,
    hessian_free,
    performed,
    statuses_of,
    study_of,
    times_of,
    training_rows_of,
)

from latephase.records.files import read_json
from latephase.study.performing import train as train_module
from latephase.study.performing.checkpoint import checkpoint_path, load_checkpoint
from latephase.study.performing.train import is_whole, latest_path, train


@pytest.mark.slow
def test_a_study_that_is_killed_twice_is_as_one_that_is_not(tmp_path, monkeypatch):
    strategies = (first_order(), hessian_free())
    subject = study_subject(tmp_path, *strategies, seeds=[0])
    performed(study_of(*strategies, seeds=[0]), tmp_path / "whole", monkeypatch)
    size = written(tmp_path / "whole")
    assert killed_until_finished(subject, tmp_path / "killed", 2, size, random.Random(4)) >= 1
    subject.same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_study_of_digits_that_is_killed_is_as_one_that_is_not(tmp_path):
    plans = {"problem": "digits", "training": {"epochs": 4}, "checkpoints": [2, 4], "jobs": 2}
    strategies = [first_order(), first_order("averaging"), hessian_free()]
    budget = {"budget": {"unit": "steps", "amount": 40}, "evaluations": 8}
    subject = study_subject(tmp_path, *strategies, report=True, **budget, **plans)
    assert campaign([subject], 10, tmp_path / "out", seed=1)["finished"] >= 12


@pytest.mark.slow
def test_a_tuning_that_is_killed_is_as_one_that_is_not(tmp_path):
    assert campaign([tuning_subject(tmp_path)], 3, tmp_path / "out", seed=2)["finished"] >= 10


def test_an_interrupt_stops_the_study_and_says_how_to_go_on(tmp_path):
    plans = {"seeds": [0], "training": {"epochs": 2000}, "checkpoints": [2000]}
    process = study_subject(tmp_path, first_order(), **plans).start(tmp_path / "out")
    journal = tmp_path / "out" / "training" / "rows.jsonl"
    while not (journal.exists() and journal.stat().st_size > 1000):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.decode().split("\n") == ["", "Stopped. The same command goes on from here.", ""]


class Stopped(Exception):
    """Ends a training as a kill would, in the same process."""


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("save_every", [1, 2])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch, optimizer, save_every):
    options = {"optimizer": optimizer}
    setting = {"epochs": 5, "save_every": save_every, "evaluate_every": 2}
    study = study_of(problem_options=options, training=setting, checkpoints=[1, 3])
    train(tmp_path / "whole", study)
    train_epoch = train_module._Training.train_epoch
    for stop in (3, 4):

        def stopping(self, epoch, stop=stop):
            train_epoch(self, epoch)
            if epoch == stop:
                raise Stopped

        monkeypatch.setattr(train_module._Training, "train_epoch", stopping)
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", study)
        with (tmp_path / "stopped" / "training" / "rows.jsonl").open("a") as file:
            file.write('{"event": "eval')
    monkeypatch.setattr(train_module._Training, "train_epoch", train_epoch)
    train(tmp_path / "stopped", study)
    assert training_rows_of(tmp_path / "stopped") == training_rows_of(tmp_path / "whole")
    assert [row["epoch"] for row in training_rows_of(tmp_path / "whole")] == [0, 1, 2, 3, 4, 5]
    for name in ("checkpoints/epoch-0001.pt", "checkpoints/epoch-0003.pt", "latest.pt"):
        ours, theirs = (load_checkpoint(tmp_path / which / "training" / name) for which in ("stopped", "whole"))
        assert (ours["epoch"], ours["steps"]) == (theirs["epoch"], theirs["steps"])
        for part in ("model", "optimizer", "random"):
            torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


@pytest.mark.parametrize("what", ["deleted", "damaged", "flipped"])
def test_checkpoints_that_are_lost_are_made_again_and_the_rest_stays(tmp_path, what):
    study = study_of()
    train(tmp_path, study)
    folder = tmp_path / "training"
    status, rows = (folder / "status.json").read_bytes(), (folder / "rows.jsonl").read_bytes()
    path, other = checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 3)
    before, other_time = load_checkpoint(path), other.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    if what == "deleted":
        path.unlink()
    elif what == "damaged":
        path.write_bytes(b"not a checkpoint")
    else:
        weights = before["model"]["0.weight"].numpy().tobytes()
        content[content.index(weights)] ^= 1  # one bit of one weight
        path.write_bytes(content)
    assert not is_whole(tmp_path, study)
    train(tmp_path, study)
    assert is_whole(tmp_path, study)
    assert (folder / "status.json").read_bytes() == status
    assert (folder / "rows.jsonl").read_bytes() == rows
    assert other.stat().st_mtime_ns == other_time
    torch.testing.assert_close(load_checkpoint(path)["model"], before["model"], rtol=0, atol=0)
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.exists() == (what != "deleted")


@pytest.mark.parametrize("name", ["rows.jsonl", "status.json", "latest.pt"])
def test_other_files_of_a_training_are_set_aside_and_made_again(tmp_path, name):
    study = study_of(training={"epochs": 5, "save_every": 2})
    train(tmp_path, study)
    path, seconds = tmp_path / "training" / name, read_json(tmp_path / "training" / "status.json")["seconds"]
    rows = training_rows_of(tmp_path)
    path.write_bytes(b"\xff not this\n")
    train(tmp_path, study)
    assert read_json(tmp_path / "training" / "status.json")["seconds"] == seconds
    assert training_rows_of(tmp_path) == rows
    if name != "latest.pt":  # which a finished training does not need
        assert path.with_name(f"{name}.damaged").read_bytes() == b"\xff not this\n"
    assert is_whole(tmp_path, study)


def test_a_training_without_its_latest_state_goes_on_from_the_last_checkpoint(tmp_path):
    study = study_of()
    train(tmp_path, study)
    rows = training_rows_of(tmp_path)
    latest_path(tmp_path).write_bytes(b"damaged")
    (tmp_path / "training" / "status.json").unlink()
    train(tmp_path, study)
    assert training_rows_of(tmp_path) == rows
    assert latest_path(tmp_path).with_name("latest.pt.damaged").exists()


def test_strategies_and_seeds_that_are_added_are_all_that_runs(tmp_path, monkeypatch):
    performed(study_of(seeds=[0]), tmp_path, monkeypatch)
    before = times_of(tmp_path)
    assert len(before) == 4
    assert performed(study_of(seeds=[0]), tmp_path, monkeypatch) == []
    assert times_of(tmp_path) == before
    performed(study_of(first_order(), hessian_free(), first_order("tenth"), seeds=[0, 1]), tmp_path, monkeypatch)
    after = times_of(tmp_path)
    assert len(after) == 12
    assert {name: after[name] for name in before} == before
    assert {status["status"] for status in statuses_of(tmp_path).values()} == {"finished"}
