"""Folders that are too small, read-only or moved, that two commands want at once, or that hold another's checkpoint."""

import itertools
import os
import shutil
import subprocess
import time
from unittest import mock

import pytest
import torch
from filelock import FileLock
from kill_campaign import names_of, study_subject
from rich.console import Console
from small_studies import custom, first_order, hessian_free, performed, rows_of, statuses_of, study_of, training_rows_of
from test_failing_disk import tuning_in

from latephase.records.files import UNFINISHED, read_json, write_json
from latephase.study.config import ConfigError
from latephase.study.performing import conducting as conduct_module
from latephase.study.performing.checkpoint import checkpoint_path, load_checkpoint
from latephase.study.performing.conducting import StudyError
from latephase.study.performing.processes import how_ended
from latephase.study.performing.progress import StudyProgress
from latephase.study.performing.run import perform_run
from latephase.study.performing.runs import Conditions, plan_runs
from latephase.study.performing.train import latest_path, train

pytestmark = pytest.mark.xdist_group("odd_folders")  # what all tests of this file stand on is made once

STRATEGIES = (first_order(), hessian_free())
PLANS = {"seeds": [0]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("whole") / "study"
        assert performed(study_of(*STRATEGIES, **PLANS), directory, patch) == []
    return directory


@pytest.fixture
def trained(whole, tmp_path):
    """A study whose training is finished and none of its runs begun."""
    shutil.copytree(whole, tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "runs")
    return tmp_path / "study"


@pytest.fixture
def mount():
    """A function that mounts; all is undone at the end."""
    mounted = []

    def call(*arguments):
        if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting is for the administrator")
        mounted.append(arguments[-1])

    yield call
    for path in reversed(mounted):
        subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)  # a database may be open


def same(directory, whole):
    assert rows_of(directory) == rows_of(whole)
    assert training_rows_of(directory) == training_rows_of(whole)
    assert {status["status"] for status in statuses_of(directory).values()} == {"finished"}


def said_by(study, directory, monkeypatch):
    """Perform a study; all that was said on the way."""
    monkeypatch.setattr(conduct_module, "write_report", lambda directory: directory / "report.html")
    console = Console(record=True, width=500, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file, StudyProgress(console) as progress:
        assert conduct_module.conduct(study, directory, progress)[1] == []
    return console.export_text()


def checkpoint_of_another(tmp_path, epoch, **changes):
    """A checkpoint of a study like ours with another training."""
    other = study_of(*STRATEGIES, **PLANS, **changes)
    train(tmp_path / "other", other)
    return tmp_path / "other" / "training" / "checkpoints" / f"epoch-{epoch:04d}.pt"


@pytest.mark.parametrize("foreign", ["seed", "epoch", "shapes", "no state"])
def test_a_foreign_checkpoint_is_named_set_aside_and_made_again(whole, trained, tmp_path, monkeypatch, foreign):
    path = checkpoint_path(trained, 1)
    if foreign == "seed":
        shutil.copy(checkpoint_of_another(tmp_path, 1, training={"epochs": 4, "seed": 9}), path)
    elif foreign == "shapes":
        shutil.copy(checkpoint_of_another(tmp_path, 1, problem="small_problems:draws_in_eval"), path)
    elif foreign == "epoch":
        shutil.copy(checkpoint_path(trained, 3), path)
    else:
        torch.save([torch.zeros(2)], path)
    said = said_by(study_of(*STRATEGIES, **PLANS), trained, monkeypatch)
    same(trained, whole)
    what = {"epoch": "the checkpoint of another epoch", "no state": "damaged"}
    assert f"epoch-0001.pt is {what.get(foreign, 'the checkpoint of another training')}" in said
    assert f"it is {path}.damaged now" in said
    assert load_checkpoint(path)["epoch"] == 1


def test_a_training_does_not_go_on_from_the_state_of_another(whole, trained, tmp_path):
    checkpoint_of_another(tmp_path, 1, training={"epochs": 4, "seed": 9})
    shutil.copy(latest_path(tmp_path / "other"), latest_path(trained))
    (trained / "training" / "status.json").unlink()
    train(trained, study_of(*STRATEGIES, **PLANS))
    assert training_rows_of(trained) == training_rows_of(whole)
    assert torch.equal(*(load_checkpoint(latest_path(d))["model"]["0.weight"] for d in (trained, whole)))
    assert latest_path(trained).with_name("latest.pt.damaged").exists()


def test_the_status_of_another_training_does_not_set_the_budget(whole, trained, tmp_path, monkeypatch):
    checkpoint_of_another(tmp_path, 1, training={"epochs": 4, "seed": 9})
    path = trained / "training" / "status.json"
    shutil.copy(tmp_path / "other" / "training" / "status.json", path)
    assert performed(study_of(*STRATEGIES, **PLANS), trained, monkeypatch) == []
    same(trained, whole)
    assert read_json(path)["identity"] == read_json(whole / "training" / "status.json")["identity"]
    assert path.with_name("status.json.damaged").exists()


def test_a_checkpoint_that_is_exchanged_under_a_study_fails_the_run_and_is_said(trained, tmp_path):
    shutil.copy(checkpoint_of_another(tmp_path, 1, training={"epochs": 4, "seed": 9}), checkpoint_path(trained, 1))
    study = study_of(*STRATEGIES, **PLANS)
    key = next(key for key in plan_runs(study) if key.checkpoint_epoch == 1)
    assert perform_run(Conditions(trained, study, 8.0, 0.5, {}), key) == "failed"
    error = statuses_of(trained)[key.run_id]["error"]
    assert "is the checkpoint of another training" in error
    assert "run the study again, which sets it aside and makes its own" in error


@pytest.mark.parametrize("way", ["kill", "_exit"])
def test_a_training_whose_process_dies_says_how_and_goes_on(tmp_path, monkeypatch, way):
    until = tmp_path / "until"
    options = {"problem": "small_problems:mortal", "problem_options": {"way": way, "until": str(until)}}
    study = study_of(first_order(), seeds=[0], checkpoints=[1], **options)
    how = {"kill": r"killed by SIGKILL \(by the system where memory ran out", "_exit": "ended with status 0"}[way]
    with pytest.raises(StudyError, match=rf"training was {how}.*; nothing that was written is lost, and the same"):
        performed(study, tmp_path / "study", monkeypatch)
    until.touch()
    assert performed(study, tmp_path / "study", monkeypatch) == []
    performed(study, tmp_path / "whole", monkeypatch)
    same(tmp_path / "study", tmp_path / "whole")


def test_every_end_of_a_process_has_words():
    assert how_ended(3) == "ended with status 3"
    assert how_ended(-11) == "killed by SIGSEGV"
    assert how_ended(-40) == "killed by signal 40"  # a real-time signal without a name


def test_a_folder_that_is_moved_under_a_study_stops_it_and_goes_on_elsewhere(tmp_path, monkeypatch):
    moves = custom("Moves", "moves", source=str(tmp_path / "study"), target=str(tmp_path / "moved"))
    study = study_of(first_order(), moves, seeds=[0], checkpoints=[1, 3])
    with pytest.raises(StudyError, match=r"No such file or directory: '.*epoch-.*': nothing that was written is lost"):
        performed(study, tmp_path / "study", monkeypatch)
    assert performed(study, tmp_path / "moved", monkeypatch) == []
    performed(study, tmp_path / "whole", monkeypatch)
    same(tmp_path / "moved", tmp_path / "whole")


def test_files_from_the_future_do_no_harm_when_a_clock_was_set_back(whole, tmp_path, monkeypatch):
    directory = shutil.copytree(whole, tmp_path / "study")
    unfinished = next(iter(sorted(rows_of(whole))))
    write_json(directory / "runs" / unfinished / "status.json", {"status": "running"})
    (directory / "training" / "status.json").unlink()
    for path in directory.rglob("*"):
        os.utime(path, (time.time() + 4e7, time.time() + 4e7))
    assert performed(study_of(*STRATEGIES, **PLANS), directory, monkeypatch) == []
    same(directory, whole)
    assert names_of(directory) == names_of(whole)


def test_what_a_killed_process_had_not_written_to_its_end_is_removed_and_nothing_else(trained, tmp_path, monkeypatch):
    for folder in (trained, trained / "training"):
        (folder / f".status.json.x1y2z3w4{UNFINISHED}").write_text("{")
    own = trained / ".settings.original"  # a user's
    own.touch()
    performed(study_of(*STRATEGIES, **PLANS), trained, monkeypatch)
    assert [path for path in trained.rglob(".*") if not path.name.startswith(".lock")] == [own]
    tuning_in(tmp_path / "tuning", monkeypatch)
    left = tmp_path / "tuning" / f".best.toml.x1y2z3w4{UNFINISHED}"
    left.touch()
    with FileLock(tmp_path / "tuning" / "workers" / "another"):  # which may be writing it
        tuning_in(tmp_path / "tuning", monkeypatch)
        assert left.exists()
    tuning_in(tmp_path / "tuning", monkeypatch)
    assert not left.exists()


@pytest.mark.parametrize("unit", ["steps", "seconds"])
def test_a_clock_that_is_set_back_between_rows_moves_nothing(whole, tmp_path, unit):
    """Each look at the wall clock finds it an hour earlier; budgets and durations do not look at it."""
    amount = {"steps": 8, "seconds": 0.2}[unit]
    study = study_of(*STRATEGIES, **PLANS, budget={"unit": unit, "amount": amount})
    with mock.patch.object(time, "time", side_effect=itertools.count(2e9, -3600.0)):
        train(tmp_path, study)
        for key in plan_runs(study):
            assert perform_run(Conditions(tmp_path, study, amount, 0.5, {}), key) == "finished"
    if unit == "steps":
        same(tmp_path, whole)
    for name, rows in rows_of(tmp_path).items():
        spent = [row["spent"] for row in rows if row["event"] == "evaluation"]
        assert spent == pytest.approx([amount * i / 4 for i in range(5)])
        status = statuses_of(tmp_path)[name]
        assert 0 < status["scored_seconds"] < 600
        assert status["evaluation_seconds"] > 0


@pytest.mark.parametrize("perform", ["study", "tuning"])
def test_a_folder_that_is_read_only_is_named_and_goes_on_when_it_is_not(whole, trained, tmp_path, mount, perform):
    directory = trained
    with pytest.MonkeyPatch.context() as patch:
        if perform == "tuning":
            directory = tmp_path / "tuning"
            before = tuning_in(directory, patch)

        def again():
            if perform == "tuning":
                return tuning_in(directory, patch)
            return performed(study_of(*STRATEGIES, **PLANS), directory, patch)

        mount("--bind", str(directory), str(directory))
        mount("-o", "remount,ro,bind", str(directory))
        with pytest.raises(StudyError, match=rf"(?s)[Rr]ead-only.*{directory}.*nothing .* is lost"):
            again()
        subprocess.run(["umount", str(directory)], check=True)
        assert again() == ([] if perform == "study" else before)
    if perform == "study":
        same(directory, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("perform", "share"),
    [*itertools.product(["study"], [0.3, 0.6, 0.8, 0.95]), *itertools.product(["tuning"], [0.3, 0.45])],
)
def test_a_small_disk_that_is_full_and_then_enlarged(whole, tmp_path, mount, monkeypatch, perform, share):
    """A file system of its own, for the storage of trials as well, which the database's own code writes."""
    if perform == "tuning":
        before = tuning_in(tmp_path / "before", monkeypatch)
        used = tmp_path / "before"
    else:
        used = whole
    # A tmpfs has pages for what is in files, and none for folders.
    blocks = sum(-(-path.stat().st_size // 4096) * 4096 for path in used.rglob("*") if path.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={int(share * blocks) // 4096 * 4096}", "tmpfs", str(disk))

    def again():
        if perform == "tuning":
            return tuning_in(disk / "study", monkeypatch)
        return performed(study_of(*STRATEGIES, **PLANS), disk / "study", monkeypatch)

    full = r"the disk is full|is full.*nothing in it is lost|cannot open the storage.*disk is full"
    with pytest.raises((StudyError, ConfigError), match=full):
        again()
    assert not [name for name in names_of(disk / "study") if name.endswith(".damaged") or "/." in f"/{name}"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert again() == ([] if perform == "study" else before)
    if perform == "study":
        same(disk / "study", whole)


@pytest.mark.slow
def test_of_two_commands_on_one_folder_one_performs_and_the_other_says_so(whole, tmp_path):
    subject = study_subject(tmp_path, *STRATEGIES, **PLANS)
    processes = [subject.start(tmp_path / "study") for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1], errors
    assert f"another process works on {tmp_path / 'study'}; wait for it, or stop it" in errors[codes.index(1)]
    same(tmp_path / "study", whole)
    attempts = [path.read_text().count('"event": "start"') for path in tmp_path.glob("study/runs/*/rows.jsonl")]
    assert attempts == [1] * 4
