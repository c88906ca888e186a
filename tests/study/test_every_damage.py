"""Every kind of file of a study's and a tuning's folder, damaged in every way: refused or named, and no score moves.

What a folder holds is found by looking, so that a new kind of file is tried without being listed here.
"""

import contextlib
import csv
import html
import re
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
import tomli_w
from damages import FILES, FOLDERS
from small_studies import first_order, hessian_free, performed, rows_of, study_of, training_rows_of
from test_failing_disk import TUNING
from typer.testing import CliRunner

from latephase.cli import app
from latephase.records.files import read_json, write_json

SECONDS = 60
"""After which a command counts as hung; each takes less than one, or some where trials are repeated."""
SECRET = "nobody's business, 0.125\n"
STUDY = {"seeds": [0], "checkpoints": [1]}
STRATEGIES = (first_order(), hessian_free())


def small_study(**changes):
    return study_of(*STRATEGIES, **STUDY | changes)


def tuning_table(seed=0):
    strategy = first_order(lr=0.1, optimizer="sgd") | {"search": {"lr": {"low": 0.01, "high": 0.5, "log": True}}}
    return TUNING | {"strategies": [strategy], "tune": TUNING["tune"] | {"seed": seed}}


def command(*arguments):
    """A command's exit status and all that it said; a hang, a traceback and another error are this test's failures."""

    def hung(*_):
        raise AssertionError(f"latephase {' '.join(map(str, arguments))} hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    try:
        with contextlib.chdir(arguments[-1].parent):
            found = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "2000"})
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise AssertionError(f"{type(found.exception).__name__} reaches the user") from found.exception
    assert "Traceback" not in found.output
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def no_figures():
    """Figures take seconds each time, have tests of their own, and no score rests on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latephase.study.page.page.draw_results", lambda results: ([], {}))
        patch.setattr("latephase.study.page.page.render", lambda results, narrow: {})
        patch.setattr("latephase.study.tune.page.draw_all", lambda *arguments: ([], {}))
        yield


@pytest.fixture(scope="module")
def studies(tmp_path_factory, no_figures):
    """A finished study with its report, and another of the same runs whose numbers are others."""
    root = tmp_path_factory.mktemp("studies")
    for name, changes in {"study": {}, "other": {"training": {"epochs": 4, "seed": 9}, "evaluations": 2}}.items():
        with pytest.MonkeyPatch.context() as patch:
            assert performed(small_study(**changes), root / name, patch) == []
        assert command("report", root / name)[0] == 0
        (root / name / "figures").mkdir(exist_ok=True)
        (root / name / "figures" / "relative.png").write_bytes(b"a picture")
    return root / "study", root / "other"


@pytest.fixture(scope="module")
def tunings(tmp_path_factory, no_figures):
    root = tmp_path_factory.mktemp("tunings")
    for seed, name in enumerate(("tuning", "other")):
        (root / f"{name}.toml").write_text(tomli_w.dumps(tuning_table(seed)), encoding="utf-8")
        assert command("tune", root / f"{name}.toml", "--out", root / name)[0] == 0
    return root / "tuning", root / "other"


def kinds(folder):
    """One path of each kind that the folder holds: names of runs, workers, epochs and figures tell no kinds apart."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        kind = re.sub(r"(runs|workers)/[^/]+|\d+|figures/[^.]+", r"\1", name)
        found.setdefault(kind, name)
    return list(found.values())


def cases(whole):
    """Every kind of path with every damage."""
    return [(name, damage) for name in kinds(whole) for damage in (FOLDERS if (whole / name).is_dir() else FILES)]


def damaged(whole, other, name, damage, tmp_path):
    """A copy with the damage; None where that changes nothing, as another's file may be equal."""
    root = tmp_path / "damaged"
    root.mkdir()
    (root / "victim").write_text(SECRET)
    copy = shutil.copytree(whole, root / whole.name)
    apply = (FOLDERS if (copy / name).is_dir() else FILES)[damage]
    return None if apply(copy / name, other / name) is False else copy


def table_of(path, without=()):
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]
    return {(row["strategy"], row.get("seed"), row.get("trial")): row for row in rows}


def names(name, said):
    """Whether what was said names a file, or the folder of the run that it is of."""
    return any(part in said for part in (name, *(str(parent) for parent in Path(name).parents)) if part != ".")


def check_report(whole, other, name, damage, tmp_path):
    """The report of a damaged study: the scores of before, or words that name the file."""
    directory = damaged(whole, other, name, damage, tmp_path)
    if directory is None:
        return
    for written in ("scores.csv", "report.html"):
        if written != name:
            (directory / written).unlink()
    code, said = command("report", directory)
    assert (directory.parent / "victim").read_text() == SECRET
    if code and not (directory / "report.html").is_file():
        assert names(name, said), said
        return
    if code and name in ("scores.csv", "report.html"):
        assert names(name, said), said
        return
    before, after = table_of(whole / "scores.csv"), table_of(directory / "scores.csv")
    page = html.unescape((directory / "report.html").read_text(encoding="utf-8"))
    assert SECRET.strip() not in page
    assert before.keys() == after.keys()
    whole_runs = all(row["status"] == "finished" for row in after.values())
    for key, row in after.items():
        differ = {column for column in row if row[column] != before[key][column]}
        if row["status"] == "finished" and differ:
            assert not whole_runs, f"silently changed: {differ}"
            assert all(column.startswith(("relative_", "time_to_target_")) for column in differ)  # to runs not counted
    if before != after:
        statuses = {row["status"] for row in after.values()} - {"finished"}
        assert statuses <= {"damaged", "missing", "running"}
        assert "damaged" not in statuses or names(name, said + page), said


def check_tuning(whole, other, name, damage, tmp_path):
    """A tuning that goes on from damaged files: the trials of before, or words that name the file."""
    directory = damaged(whole, other, name, damage, tmp_path)
    if directory is None:
        return
    code, said = command("tune", whole.with_suffix(".toml"), "--out", directory)
    assert (directory.parent / "victim").read_text() == SECRET
    if code:
        assert names(name, said), said
        return
    again = ("number", "seconds")  # of trials that were repeated, as their storage was lost
    assert table_of(directory / "trials.csv", again) == table_of(whole / "trials.csv", again)
    assert (directory / "best.toml").read_text() == (whole / "best.toml").read_text()


def all_checked(check, whole, other, chosen, tmp_path):
    assert chosen
    failed = []
    for number, (name, damage) in enumerate(chosen):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            check(whole, other, name, damage, folder)
        except Exception as error:
            cause = error.__cause__ or error
            failed.append(f"{name}, {damage}: {str(error)[-500:]} {cause!r:.300}")
        finally:
            for path in folder.rglob("*"):
                if not path.is_symlink() and path.exists():
                    path.chmod(0o700)
            shutil.rmtree(folder)
    assert not failed, f"{len(failed)} of {len(chosen)}:\n" + "\n".join(failed)


FAST = 29
"""One case in so many; it has no factor in common with the number of damages, so that kinds and damages mix."""


def test_some_damages_of_a_study_are_named_and_move_no_score(studies, tmp_path):
    all_checked(check_report, *studies, cases(studies[0])[::FAST], tmp_path)


def test_some_damages_of_a_tuning_are_named_and_move_no_trial(tunings, tmp_path):
    chosen = [case for case in cases(tunings[0])[::FAST] if case[0] != "tune.db"]  # seconds where trials are repeated
    all_checked(check_tuning, *tunings, chosen, tmp_path)


@pytest.mark.parametrize("change", [
    "UPDATE trial_user_attributes SET value_json = replace(value_json, '0.', '0.1') WHERE key = 'record'",
    "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'record'",
    "DELETE FROM trial_user_attributes WHERE key = 'record'",
    "UPDATE trial_params SET param_value = param_value * 1.01",
    "UPDATE trial_user_attributes SET value_json = 1 - value_json WHERE key = 'place'",
])  # fmt: skip
def test_a_value_changed_within_a_storage_is_noticed(tunings, tmp_path, change):
    directory = damaged(*tunings, "tune.toml", "empty", tmp_path)
    with contextlib.closing(sqlite3.connect(directory / "tune.db")) as database, database:
        assert database.execute(change).rowcount > 0
    before = {name: (directory / name).read_bytes() for name in ("best.toml", "trials.csv")}
    code, said = command("tune", tunings[0].with_suffix(".toml"), "--out", directory)
    assert code == 1
    assert f"the storage sqlite:///{directory / 'tune.db'} is damaged: the checksum of place" in said
    assert before == {name: (directory / name).read_bytes() for name in before}


def test_the_budget_of_another_study_does_not_come_in_with_its_file(studies, tmp_path):
    name = "runs/checkpoint-0001_hf_seed-0/run.json"
    directory = damaged(*studies, "study.toml", "unreadable", tmp_path) or tmp_path / "damaged" / "study"
    write_json(directory / name, read_json(directory / name) | {"budget": 4.0, "identity": "0" * 16})
    code, said = command("report", directory)
    assert code == 1
    assert name in said
    row = next(row for row in table_of(directory / "scores.csv").values() if row["strategy"] == "hf")
    assert row["status"] == "damaged"
    assert f"{name} cannot be read: it is not what the run ended with" in (directory / "report.html").read_text()


@pytest.mark.slow
def test_every_damage_of_a_study_is_named_and_moves_no_score(studies, tmp_path):
    all_checked(check_report, *studies, cases(studies[0]), tmp_path)


@pytest.mark.slow
def test_every_damage_of_a_tuning_is_named_and_moves_no_trial(tunings, tmp_path):
    all_checked(check_tuning, *tunings, cases(tunings[0]), tmp_path)


@pytest.mark.slow
def test_a_study_goes_on_from_every_damage_to_the_same_rows(studies, tmp_path, monkeypatch):
    """Several at once, as each going on starts processes; what is refused must say which file to mend."""
    whole, other = studies
    failed = []
    for number, (name, damage) in enumerate(cases(whole)[::7]):
        folder = tmp_path / str(number)
        folder.mkdir()
        directory = damaged(whole, other, name, damage, folder)
        if directory is None:
            continue
        try:
            assert performed(small_study(), directory, monkeypatch) == []
            assert rows_of(directory) == rows_of(whole)
            assert training_rows_of(directory) == training_rows_of(whole)
        except Exception as error:
            if not names(name, str(error)) or isinstance(error, AssertionError):
                failed.append(f"{name}, {damage}: {error!r:.500}")
        if (directory.parent / "victim").read_text() != SECRET:
            failed.append(f"{name}, {damage}: the victim outside was written")
    assert not failed, "\n".join(failed)
