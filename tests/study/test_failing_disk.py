"""A disk that is full, broken or read-only at any moment: the command stops with clear words, and then goes on.

Each test writes everything below one folder and refuses the k-th of the system calls that write, for many k.
"""

import errno
import os
import sys
from dataclasses import replace

import pytest
from failing_disk import FailingDisk
from kill_campaign import names_of
from rich.console import Console
from small_studies import custom, first_order, performed, rows_of, statuses_of, study_of, training_rows_of

from latephase.records.files import read_journal, read_json
from latephase.study.performing.conducting import StudyError
from latephase.study.performing.progress import StudyProgress
from latephase.study.tune.conduct import tune
from latephase.study.tune.config import parse_tuning

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the files of handles in /proc")

STRATEGIES = (first_order(), custom("Warns", "warns"), custom("Raises", "raises"))
PLANS = {"seeds": [0], "checkpoints": [1], "training": {"epochs": 2, "save_every": 1}, "evaluations": 2}
PLANS |= {"budget": {"unit": "steps", "amount": 2}}
TUNING = {
    "name": "small",
    "problem": "small_problems:noisy",
    "seeds": [0],
    "tune": {"trials": 2, "budget": {"unit": "steps", "amount": 2}, "halving": {"factor": 2, "rungs": 1}},
    "strategies": [
        custom(factory, factory.lower()) | {"search": {"options.lr": {"low": 0.01, "high": 0.5, "log": True}}}
        for factory in ("Warns", "Raises")
    ],
}
FULL = {"number": errno.ENOSPC, "lasting": True}
QUOTA = {"number": errno.EDQUOT, "lasting": True}
BROKEN = {"number": errno.EIO, "lasting": False}
READ_ONLY = {"number": errno.EROFS, "lasting": True}
CLOSED = {"number": errno.EACCES, "lasting": False}


def study_in(directory, monkeypatch):
    """Perform the study; what it comes to, clocks aside."""
    assert performed(study_of(*STRATEGIES, **PLANS), directory, monkeypatch) == []
    statuses = {name: (status["status"], status.get("error")) for name, status in statuses_of(directory).items()}
    return statuses, rows_of(directory), training_rows_of(directory), names_of(directory)


def tuning_in(directory, monkeypatch):
    """Perform the tuning; what it comes to, clocks and numbers aside."""
    monkeypatch.setattr("latephase.study.tune.page.draw_all", lambda *arguments: ([], {}))
    with StudyProgress(Console(quiet=True)) as progress:
        found = tune(parse_tuning(TUNING, "small"), directory, progress)
    clocks = {"number": 0, "seconds": 0.0}
    folders = [directory / "runs" / f"{o.strategy}_trial-{o.number:04d}" for o in found]
    return [replace(o, **clocks) for o in found], [read_journal(folder / "rows.jsonl") for folder in folders]


SUBJECTS = {"study": study_in, "tuning": tuning_in}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """For each subject what it comes to, and how many system calls write it."""
    found = {}
    for name, perform in SUBJECTS.items():
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch, FailingDisk(folder / "out", folder / "log").installed() as disk:
            found[name] = perform(folder / "out", patch), disk.count
    return found


def whole_files(directory):
    """Every file is one that a reader takes, and nothing half written lies about."""
    for path in directory.rglob("*"):
        if path.suffix == ".json":
            assert read_json(path)
        if path.suffix == ".jsonl":
            read_journal(path)
    assert not [name for name in names_of(directory) if "/." in f"/{name}" or name.endswith(".damaged")]


def refused_then_performed(name, undisturbed, folder, monkeypatch, at, refusal):
    """Refuse the call, look at the words and the files, and go on elsewhere with a disk that works."""
    directory, perform = folder / f"{at}-{refusal['number']}", SUBJECTS[name]
    disk = FailingDisk(directory, folder / f"log-{at}-{refusal['number']}", at, **refusal)
    with disk.installed(), pytest.raises((StudyError, OSError)) as raised:
        perform(directory, monkeypatch)
    said = str(raised.value)
    assert disk.count >= at
    assert os.strerror(refusal["number"]) in said
    assert str(directory) in said  # which file
    if isinstance(raised.value, StudyError):
        full = refusal["number"] in (errno.ENOSPC, errno.EDQUOT)
        assert ("the disk is full: nothing that was written is damaged" in said) == full
        assert ("nothing that was written is lost; mend it and give the same command" in said) != full
    else:
        assert not directory.exists()  # refused before there was anything
    if directory.exists():
        whole_files(directory)
        directory = directory.rename(folder / f"moved-{at}-{refusal['number']}")
    assert perform(directory, monkeypatch) == undisturbed[name][0]


@pytest.mark.parametrize(("name", "refusal", "share"), [
    ("study", FULL, 0.2),
    ("study", BROKEN, 0.5),
    ("study", CLOSED, 0.8),
    ("study", READ_ONLY, 0.0),
    ("tuning", FULL, 0.3),
    ("tuning", BROKEN, 0.6),
    ("tuning", READ_ONLY, 0.0),
])  # fmt: skip
def test_a_disk_that_refuses_a_write_stops_the_command_which_then_goes_on(
    undisturbed, tmp_path, monkeypatch, name, refusal, share
):
    at = max(1, round(share * undisturbed[name][1]))
    refused_then_performed(name, undisturbed, tmp_path, monkeypatch, at, refusal)


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [FULL, QUOTA, BROKEN], ids=["full", "quota", "broken"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_disk_that_refuses_any_write_costs_nothing(undisturbed, tmp_path, monkeypatch, name, refusal):
    failed = []
    for at in range(1, undisturbed[name][1] + 1, 5 if refusal is QUOTA else 1):
        try:
            refused_then_performed(name, undisturbed, tmp_path, monkeypatch, at, refusal)
        except (Exception, pytest.fail.Exception) as error:
            failed.append(f"{at} of {undisturbed[name][1]}: {str(error)[:500]}")
    assert not failed, "\n".join(failed)
