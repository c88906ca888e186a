"""What the folders of runs and of the training hold, read and compared with what their end records say.

One judgement for all: a study that goes on repeats the runs that are damaged by it, the report leaves them out.
Imports no torch.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...records import DamagedFile, Journaled, checksum, read_attempt, read_record

CONCLUDED = ("finished", "failed")
"""The statuses of a run that will not go on: only these enter means and figures."""

RECORDS = ("run.json", "status.json")
JOURNALS = ("rows.jsonl", "clocks.jsonl")
FILES = (*RECORDS, *JOURNALS)
"""Of a run; what else lies in its folder is for readers."""

OLD = "it has no checksum: written by an earlier version of latephase, or damaged"


@dataclass(frozen=True)
class Damage:
    """A file that cannot be read, or not trusted, and why."""

    path: Path
    problem: str


@dataclass
class RunFiles:
    """What a run's folder holds, as far as it is right.

    Attributes:
        status: "finished", "failed", "running", "missing" or "damaged".
        record: the status file.
        run: what was run.
        rows: of the last attempt.
        clocks: of the last attempt.
        damage: what is wrong; empty where nothing is.
    """

    status: str = "missing"
    record: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    clocks: list[dict[str, Any]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)


def finite(value: object) -> float | None:
    """Return ``value`` as a float where it is a finite number, else None (null in a journal is a non-finite metric)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def is_number(value: object, least: float = -math.inf) -> bool:
    """Whether a value is a finite number, no boolean, and not below another."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= least


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_run_files(folder: Path, evaluations: int | None, sealed: bool) -> RunFiles:
    """Read a run's folder and judge it.

    Args:
        folder: The run's; its name is that of the run.
        evaluations: How many of them a finished run has, beside that of its start; None: not known.
        sealed: Whether its files carry checksums, as those of all studies do that were begun by this version.

    Raises:
        OSError: A file cannot be read although it may be whole, above all for want of permission.
    """
    found = RunFiles()
    if wrong := wrong_folder(folder):
        return RunFiles(status="damaged", damage=[Damage(folder, wrong)])
    records = [_record(folder / name, sealed, found.damage) for name in RECORDS]
    journals = [_attempt(folder / name, sealed, found.damage) for name in JOURNALS]
    found.run, found.record = (record or {} for record in records)
    found.rows, found.clocks = (journal.rows for journal in journals)
    found.status = found.record.get("status", "running" if found.rows else "missing")
    if not found.damage:
        _judge(folder, found, journals, sealed, records[1] is not None)
    if not found.damage and found.status == "finished":
        _judge_finished(folder, found, evaluations)
    if found.damage:
        found.status = "damaged"
    return found


def wrong_folder(folder: Path) -> str:
    """Why a folder cannot be trusted to be the study's own; nothing where it can, or is not there."""
    if folder.is_symlink():
        return "a symbolic link, and links are not followed"
    return "not a folder" if os.path.lexists(folder) and not folder.is_dir() else ""


def _record(path: Path, sealed: bool, damage: list[Damage]) -> dict[str, Any] | None:
    try:
        return read_sealed(path, sealed)
    except DamagedFile as error:
        damage.append(Damage(path, error.problem))
        return None


def read_sealed(path: Path, sealed: bool) -> dict[str, Any] | None:
    """Read a record that has a checksum, or is of a study whose files have none; None where there is no such file.

    Raises:
        DamagedFile: It is not as it was written.
    """
    record = read_record(path)
    if record is None:
        return None
    if record.sealed != sealed:
        raise DamagedFile(path, OLD if sealed else "it has a checksum, unlike study.toml, which has lost its last line")
    return record.table


def read_sealed_attempt(path: Path, sealed: bool) -> Journaled:
    """Read the last attempt of a journal likewise.

    Raises:
        DamagedFile: It is not as it was written.
    """
    journal = read_attempt(path)
    if journal.lines and bool(journal.check) != sealed:
        raise DamagedFile(path, OLD if sealed else "it has checksums, unlike study.toml, which has lost its last line")
    return journal


def _attempt(path: Path, sealed: bool, damage: list[Damage]) -> Journaled:
    try:
        journal = read_sealed_attempt(path, sealed)
        check_rows(path, journal.rows)
    except DamagedFile as error:
        damage.append(Damage(path, error.problem))
        return Journaled()
    return journal


def _judge(folder: Path, found: RunFiles, journals: Sequence[Journaled], sealed: bool, has_status: bool) -> None:
    """Compare the files of a run with each other."""
    status, run = found.status, found.run
    known = ("running", *CONCLUDED) if has_status else ("running", "missing")
    if not isinstance(status, str) or status not in known:
        found.damage.append(Damage(folder / "status.json", f"unknown status {status!r}"))
        return
    never_began = status == "failed" and not any(journal.lines for journal in journals)
    if (run or has_status) and not never_began:
        if not run:
            found.damage.append(Damage(folder / "run.json", "it is missing or empty"))
        elif sealed and run.get("run_id") != folder.name:
            found.damage.append(Damage(folder / "run.json", f"it is of another run, {run.get('run_id')!r}"))
        elif not is_number(run.get("budget"), 0.0):
            found.damage.append(Damage(folder / "run.json", f"its budget is {run.get('budget')!r}"))
        elif found.record.get("run", checksum(run)) != checksum(run):
            found.damage.append(Damage(folder / "run.json", "it is not what the run ended with, but of another study"))
    if status in CONCLUDED and sealed:
        found.damage += lost_rows(folder, dict(zip(JOURNALS, journals, strict=True)), found.record)


def lost_rows(folder: Path, journals: dict[str, Journaled], record: dict[str, Any]) -> list[Damage]:
    """Which journals are not those whose ends an end record tells."""
    said = record.get("journals")
    if not isinstance(said, dict):
        return [Damage(folder / "status.json", "it does not say how many rows there are")]
    return [
        Damage(folder / name, _difference(journal, said.get(name)))
        for name, journal in journals.items()
        if journal.end != said.get(name)
    ]


def _difference(journal: Journaled, said: Any) -> str:
    rows = said.get("rows") if isinstance(said, dict) else None
    if not journal.lines:
        return f"it is missing or empty, where the run ended with {rows} rows"
    if rows == journal.lines:
        return "its rows are not those that the run ended with"
    return f"it has {journal.lines} rows, where the run ended with {rows}"


def _judge_finished(folder: Path, found: RunFiles, evaluations: int | None) -> None:
    """Whether a finished run has all of its evaluations; those of earlier versions have no other sign of it."""
    there = sum(row.get("event") == "evaluation" for row in found.rows)
    path = folder / "rows.jsonl"
    if not there:
        found.damage.append(Damage(path, "the run is finished, but has no evaluation"))
    elif evaluations is not None and there != evaluations + 1:
        found.damage.append(Damage(path, f"the run is finished, but has {there} of {evaluations + 1} evaluations"))
    elif len(found.clocks) != there:
        problem = f"the run is finished, but has {len(found.clocks)} of {there} wall-clock rows"
        found.damage.append(Damage(folder / "clocks.jsonl", problem))


def check_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Check the rows of a run's journal: what was spent rises, evaluations and clocks hold numbers.

    Raises:
        DamagedFile: They are not of that kind.
    """
    last: dict[str, float] = {}
    for row in rows:
        event, spent = row.get("event"), row.get("spent")
        if event not in ("evaluation", "step", "clock"):
            continue
        before = last.get(event, 0.0)
        if not is_number(spent, before) or (event != "step" and event in last and spent == before):
            raise DamagedFile(path, f"rows out of order or without what was spent, at {event} {spent}")
        last[event] = float(spent)  # pyright: ignore[reportArgumentType]
        if event != "step":
            _check_numbers(path, row, ("event",))


def _check_numbers(path: Path, row: dict[str, Any], but: Sequence[str]) -> None:
    """Check that all values of an evaluation are numbers, or lists of them, or null where they were not finite."""
    for key, value in row.items():
        numbers = value if isinstance(value, list) else [value]
        if key not in but and not all(number is None or is_number(number) for number in numbers):
            raise DamagedFile(path, f"{key} is no number at {row.get('spent', row.get('epoch'))}, but {value!r:.40}")
    if not is_count(row.get("step", 0)):
        raise DamagedFile(path, f"step is {row['step']!r:.40}")


def read_training_rows(path: Path, sealed: bool) -> tuple[list[dict[str, Any]], Journaled]:
    """Read the training's evaluation rows, and their journal.

    Raises:
        DamagedFile: They are not as they were written, or not of that kind.
    """
    journal = read_sealed_attempt(path, sealed)
    rows = [row for row in journal.rows if row.get("event") == "evaluation"]
    for row in rows:
        if not is_count(row.get("epoch")):
            raise DamagedFile(path, f"an evaluation of epoch {row.get('epoch')!r:.40}")
        _check_numbers(path, row, ("event",))
    return rows, journal


def read_training_status(path: Path, sealed: bool) -> dict[str, Any]:
    """Read the training's status file; empty where there is none.

    Raises:
        DamagedFile: It is not as it was written, or of a finished training without what that took.
    """
    status = read_sealed(path, sealed) or {}
    if status.get("status") == "finished":
        for key in ("seconds", "steps", "gradients"):
            if not is_number(status.get(key), 0.0):
                raise DamagedFile(path, f"{key} is {status.get(key)!r:.40}")
    return status


def checked(table: dict[str, Any], rules: dict[str, Callable[[Any], bool]], path: Path) -> dict[str, Any]:
    """Return a table whose values are of the kinds that readers rely on.

    Raises:
        DamagedFile: A key is missing or a value of another kind; names them.
    """
    missing = [key for key in rules if key not in table]
    if missing:
        raise DamagedFile(path, f"it does not hold {', '.join(missing)}")
    wrong = next((key for key, rule in rules.items() if not rule(table[key])), None)
    if wrong is not None:
        raise DamagedFile(path, f"{wrong} is {table[wrong]!r:.60}")
    return table
