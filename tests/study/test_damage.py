"""What breaks costs no more than itself: damaged files, broken strategies, dead workers, a full disk."""

import errno
import functools
import os
import resource
import shutil
import subprocess

import pytest
from small_studies import (
    DRIVER,
    custom,
    first_order,
    hessian_free,
    performed,
    rows_of,
    statuses_of,
    study_of,
    times_of,
    toml_of,
    training_rows_of,
)

from latephase.records import files as store_module
from latephase.records.files import Journal, read_json, set_aside, write_json
from latephase.study.config import ConfigError
from latephase.study.performing import checkpoint as checkpoint_module
from latephase.study.performing import identity, runs
from latephase.study.performing.run import perform_run
from latephase.study.performing.runs import Conditions
from latephase.study.performing.train import train

STRATEGIES = (first_order(), hessian_free())
LAST = "checkpoint-0003_constant_seed-0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("finished") / "study"
        assert performed(study_of(*STRATEGIES, seeds=[0]), directory, patch) == []
    return directory


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "study")


@pytest.fixture
def trained(finished, tmp_path):
    shutil.copytree(finished / "training", tmp_path / "study" / "training")
    return tmp_path / "study"


DAMAGES = [
    ("status.json", b'{"status": "fini'),
    ("status.json", b"\xff\xfe"),
    ("status.json", b"[]"),
    ("run.json", b"{"),
    ("rows.jsonl", b"garbage\n" * 3),
    ("rows.jsonl", b""),
    ("rows.jsonl", b"3\n"),
    ("clocks.jsonl", b"{}}\n{}\n"),
]


def test_damaged_runs_are_set_aside_by_name_and_repeated(finished, copy, monkeypatch):
    names = sorted(rows_of(finished))
    for damages in (DAMAGES[:4], DAMAGES[4:]):
        untouched = times_of(copy)
        for name, (file, content) in zip(names, damages, strict=True):
            (copy / "runs" / name / file).write_bytes(content)
        assert performed(study_of(*STRATEGIES, seeds=[0]), copy, monkeypatch) == []
        assert rows_of(copy) == rows_of(finished)
        assert all(times_of(copy)[name] != time for name, time in untouched.items())
    for name, (file, content) in zip(names * 2, DAMAGES, strict=True):
        asides = [path.read_bytes() for path in (copy / "runs" / name).glob(f"{file}.damaged*")]
        assert content in asides


def test_a_lost_line_is_noticed_and_a_torn_one_of_a_broken_run_is_gone(finished, copy, monkeypatch):
    lost, torn, *others = sorted(rows_of(finished))
    untouched = times_of(copy)
    path = copy / "runs" / lost / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    write_json(copy / "runs" / torn / "status.json", {"status": "running"})
    with (copy / "runs" / torn / "rows.jsonl").open("a") as file:
        file.write('{"event": "evaluation", "sp')
    performed(study_of(*STRATEGIES, seeds=[0]), copy, monkeypatch)
    assert rows_of(copy) == rows_of(finished)
    assert {name: times_of(copy)[name] for name in others} == {name: untouched[name] for name in others}
    assert (copy / "runs" / torn / "rows.jsonl").read_text().count('"event": "start"') == 2


def test_a_broken_run_with_a_damaged_journal_starts_a_new_one(finished, trained, monkeypatch):
    study = study_of(*STRATEGIES, seeds=[0])
    folder = trained / "runs" / LAST
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_bytes(b"not JSON\n")
    key = next(key for key in runs.plan_runs(study) if key.run_id == LAST)
    assert perform_run(Conditions(trained, study, 8.0, 0.5, {}), key) == "finished"
    assert rows_of(trained)[LAST] == rows_of(finished)[LAST]
    assert (folder / "rows.jsonl.damaged").read_bytes() == b"not JSON\n"


def test_looking_at_a_run_writes_nothing(copy):
    study = study_of(*STRATEGIES, seeds=[0])
    (copy / "runs" / LAST / "status.json").write_bytes(b"{")
    states = {key.run_id: runs.status_of(copy, study, key) for key in runs.plan_runs(study)}
    assert states.pop(LAST) == "damaged"
    assert set(states.values()) == {"finished"}
    assert not list(copy.rglob("*.damaged"))


def test_files_set_aside_do_not_replace_each_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    names = []
    for content in ("a", "b", "c"):
        path.write_text(content)
        names.append(set_aside(path).name)
    assert names == ["rows.jsonl.damaged", "rows.jsonl.damaged-2", "rows.jsonl.damaged-3"]
    assert set_aside(path) is None


def test_damaged_records_of_the_study_are_made_again(copy, monkeypatch):
    problem = (copy / "problem.json").read_bytes()
    for name in ("problem.json", "environment.json", "training/run.json"):
        (copy / name).write_bytes(b"{")
    before = times_of(copy)
    performed(study_of(*STRATEGIES, seeds=[0]), copy, monkeypatch)
    assert (copy / "problem.json").read_bytes() == problem
    assert read_json(copy / "environment.json")["threads"] == 1
    assert times_of(copy) == before


def test_a_damaged_study_file_is_named_and_left_alone(copy, monkeypatch):
    (copy / "study.toml").write_text("name = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"study\.toml is damaged .* restore it, or choose another folder"):
        performed(study_of(*STRATEGIES, seeds=[0]), copy, monkeypatch)
    assert (copy / "study.toml").read_text(encoding="utf-8") == "name = "


def test_another_configuration_of_a_strategy_or_other_code_is_refused(copy, monkeypatch):
    before = times_of(copy)
    changed = study_of(first_order(), hessian_free(options={"solver": {"max_iter": 5}}), seeds=[0])
    with pytest.raises(ConfigError, match=r"runs/checkpoint-000\d_hf_seed-0 was made by another configuration"):
        performed(changed, copy, monkeypatch)
    labelled = study_of(first_order(label="Another label"), hessian_free(), seeds=[0])
    assert performed(labelled, copy, monkeypatch) == []
    monkeypatch.setattr(identity, "code_version", lambda: "other")
    with pytest.raises(ConfigError, match="training was trained by other versions of latephase or torch"):
        performed(labelled, copy, monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(Conditions, "__init__", functools.partialmethod(Conditions.__init__, code="other"))
    with pytest.raises(ConfigError, match=r"runs/checkpoint-.* or by other versions of latephase or torch"):
        performed(labelled, copy, monkeypatch)
    assert times_of(copy) == before


BROKEN = [
    first_order(),
    custom("Plain", "plain"),
    custom("Raises", "raises"),
    custom("no_strategy", "wrong"),
    custom("nothing", "absent"),
    custom("Plain", "no-option", lrate=1.0),
    custom("anything", "no-import", module="broken_strategies"),
    custom("Dies", "exit", way="exit", until="never"),
]


def test_a_strategy_that_raises_fails_its_run_only_with_a_traceback(tmp_path, monkeypatch):
    study = study_of(*BROKEN, seeds=[0], checkpoints=[1])
    assert performed(study, tmp_path, monkeypatch) == []
    statuses = {name.split("_")[1]: status for name, status in statuses_of(tmp_path).items()}
    errors = {name: status.get("error") for name, status in statuses.items()}
    assert {name for name, status in statuses.items() if status["status"] == "finished"} == {"constant", "plain"}
    assert errors["raises"] == "ArithmeticError: the strategy broke"
    assert "Strategy, got str" in errors["wrong"]
    assert "small_strategies has no function 'nothing'" in errors["absent"]
    assert "unexpected keyword argument 'lrate'" in errors["no-option"]
    assert "importing broken_strategies fails: RuntimeError: the user's module is broken" in errors["no-import"]
    assert errors["exit"] == "SystemExit: 0"
    trace = (tmp_path / "runs" / "checkpoint-0001_raises_seed-0" / "error.txt").read_text(encoding="utf-8")
    assert "small_strategies.py" in trace
    assert "in step" in trace
    assert len([row for row in rows_of(tmp_path)["checkpoint-0001_raises_seed-0"] if "test_loss" in row]) == 3


def test_a_worker_that_dies_costs_its_run_only_is_named_and_tried_again(tmp_path, monkeypatch):
    until = tmp_path / "until"
    ways = [custom("Dies", way.strip("_"), way=way, until=str(until)) for way in ("kill", "_exit")]
    study = study_of(first_order(), *ways, seeds=[0], checkpoints=[1])
    broken = performed(study, tmp_path / "study", monkeypatch)
    killed = "killed by SIGKILL (by the system where memory ran out, or by somebody)"
    assert sorted(broken) == [
        "checkpoint-0001_exit_seed-0: its worker was ended with status 0; the same command tries it again",
        f"checkpoint-0001_kill_seed-0: its worker was {killed}; the same command tries it again",
    ]
    statuses = [status["status"] for status in statuses_of(tmp_path / "study").values()]
    assert sorted(statuses) == ["failed", "failed", "finished"]
    until.touch()
    whole = times_of(tmp_path / "study")["checkpoint-0001_constant_seed-0"]
    assert performed(study, tmp_path / "study", monkeypatch) == []
    assert {status["status"] for status in statuses_of(tmp_path / "study").values()} == {"finished"}
    assert times_of(tmp_path / "study")["checkpoint-0001_constant_seed-0"] == whole


def limited_to(size):
    """What a child process does first: no file may become larger."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "where"), [(3000, "training"), (13_000, "runs")])
def test_a_full_disk_stops_the_study_with_a_message_and_nothing_is_damaged(tmp_path, monkeypatch, size, where):
    """Checkpoints take 8 kB, rows of a run with 64 evaluations 18 kB."""
    plans = {"seeds": [0], "evaluations": 64, "checkpoints": [1]}
    toml, directory = toml_of(tmp_path, first_order(), **plans), tmp_path / "study"
    done = subprocess.run(
        [*DRIVER, "study", str(toml), "--out", str(directory)],
        env=os.environ | {"REPORT": "no"},
        preexec_fn=limited_to(size),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the disk is full: nothing that was written is damaged; make room, and the same command" in done.stderr
    assert "Traceback" not in done.stderr
    assert (directory / "runs").exists() == (where == "runs")
    study = study_of(first_order(), **plans)
    assert performed(study, directory, monkeypatch) == []
    performed(study, tmp_path / "whole", monkeypatch)
    assert rows_of(directory) == rows_of(tmp_path / "whole")
    assert training_rows_of(directory) == training_rows_of(tmp_path / "whole")
    assert not list(directory.rglob("*.damaged*")) + list(directory.rglob("*.tmp"))


def no_room(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_without_room_for_a_row_leaves_whole_rows_and_goes_on(finished, trained, monkeypatch):
    study = study_of(*STRATEGIES, seeds=[0])
    key = next(key for key in runs.plan_runs(study) if key.run_id == LAST)
    conditions = Conditions(trained, study, 8.0, 0.5, {})
    append, written = Journal._append, []

    def until_full(self, rows):
        written.append(rows)
        if len(written) > 5:
            self._file.write('{"event": "eval')  # as much as fits
            self._file.flush()
            no_room()
        append(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_append", until_full)
        with pytest.raises(OSError, match="No space left"):
            perform_run(conditions, key)
    assert runs.status_of(trained, study, key) == "running"
    assert 0 < len(rows_of(trained)[LAST]) < 5
    assert perform_run(conditions, key) == "finished"
    assert rows_of(trained)[LAST] == rows_of(finished)[LAST]


def test_a_training_without_room_for_a_checkpoint_keeps_the_old_one(tmp_path, monkeypatch):
    study, calls = study_of(), []
    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "fsync", lambda handle: no_room() if len(calls) > 3 else calls.append(1))
        with pytest.raises(OSError, match="No space left"):
            train(tmp_path, study)
    assert not list(tmp_path.rglob("*.tmp"))
    train(tmp_path, study)
    train(tmp_path / "whole", study)
    assert training_rows_of(tmp_path) == training_rows_of(tmp_path / "whole")


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "epoch-0001.pt"
    checkpoint_module.save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()
    monkeypatch.setattr(store_module.os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        checkpoint_module.save_checkpoint(path, {"epoch": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
