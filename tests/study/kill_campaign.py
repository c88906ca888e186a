"""Kills studies and tunings with SIGKILL at random moments and compares what comes out with undisturbed ones.

    python tests/study/kill_campaign.py --kills 100 --tuning-kills 30 --out runs/kill-campaign

Each command is killed, given again, killed again, until it ends; then its folder is compared with that of a command
that nobody killed, and the next one begins in a new folder, until there have been so many kills. What is looked at:
every run and every trial is there once, with equal rows but for clocks; what was finished at a kill is neither lost nor
repeated afterwards; nothing half written is left. Exit status 1 where something differs, with what.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import tomli_w
import torch
from small_studies import (
    DRIVER,
    custom,
    first_order,
    hessian_free,
    rows_of,
    statuses_of,
    table,
    times_of,
    training_rows_of,
)

from latephase.records.files import read_journal
from latephase.study.performing.checkpoint import load_checkpoint

QLR = {"kind": "adamqlr", "name": "qlr", "label": "qlr", "batch_size": 48, "options": {"lr_clip": 0.1}}
LBFGS = {"kind": "lbfgs", "name": "lbfgs", "label": "lbfgs", "batch_size": 48, "options": {"max_iter": 3}}
STRATEGIES = (first_order(), first_order("averaging"), hessian_free(), QLR, LBFGS, custom("Slow", "slow"))

COUNTED = ("finished", "stopped", "diverged", "failed")


@dataclass
class Subject:
    """A command that is killed, and how its folder is looked at.

    Attributes:
        name: "study" or "tune".
        toml: its file.
        finished: what a folder holds that no further kill may lose or repeat, by name.
        same: raises an AssertionError where a folder, the first, is not as an undisturbed one.
        environment: of the process.
    """

    name: str
    toml: Path
    finished: Callable[[Path], dict[Any, Any]]
    same: Callable[[Path, Path], None]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, directory: Path) -> subprocess.Popen:
        """The command in a process group of its own."""
        return subprocess.Popen(
            [*DRIVER, self.name, str(self.toml), "--out", str(directory)],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def finish(self, directory: Path) -> None:
        """Give the command and let it end."""
        process = self.start(directory)
        _, error = process.communicate()
        assert process.returncode == 0, error.decode()


def written(directory: Path) -> int:
    """Bytes in all files of a training and of runs."""
    total = 0
    for path in [*(directory / "training").rglob("*"), *(directory / "runs").rglob("*")]:
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed meanwhile
            continue
    return total


def kill_after_bytes(process: subprocess.Popen, directory: Path, draw: random.Random, most: float) -> bool:
    """Kill the whole group soon after some more of its files have been written; False where it ended before."""
    more = written(directory) + draw.uniform(0, most)
    while process.poll() is None and written(directory) < more:
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.05))
    return _kill(process, os.killpg)


def kill_after_seconds(process: subprocess.Popen, draw: random.Random, most: float) -> bool:
    """Kill the group, or its first process alone, at a moment when anything may be under way, starting and drawing."""
    ends = time.monotonic() + draw.uniform(0, most)
    while process.poll() is None and time.monotonic() < ends:
        time.sleep(0.005)
    return _kill(process, os.kill if draw.random() < 0.25 else os.killpg)


def _kill(process: subprocess.Popen, with_: Callable[[int, int], None]) -> bool:
    hit = process.poll() is None
    if hit:
        with_(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    return hit


def killed_until_finished(
    subject: Subject, directory: Path, kills: int, size: float, draw: random.Random, seconds: float = 0.0
) -> int:
    """Give the command and kill it, at most so many times, then let it end; how many kills there were.

    Args:
        subject: the command.
        directory: its folder.
        kills: how many at most.
        size: kill after at most so many more bytes.
        draw: where random numbers come from.
        seconds: kill every second time after at most so many seconds instead. Default: never.
    """
    hits, kept = 0, {}
    for _ in range(kills):
        process = subject.start(directory)
        if seconds and draw.random() < 0.5:
            hit = kill_after_seconds(process, draw, seconds)
        else:
            hit = kill_after_bytes(process, directory, draw, size)
        hits += hit
        now = subject.finished(directory)
        assert kept.items() <= now.items(), f"lost or repeated: {kept.items() - now.items()}"
        kept = now
        if not hit:
            break
    subject.finish(directory)
    assert kept.items() <= subject.finished(directory).items()
    return hits


def same_study(directory: Path, other: Path) -> None:
    """Raise an AssertionError where a study is not as another one, clocks aside."""
    assert rows_of(directory) == rows_of(other)
    assert statuses_of(directory).keys() == statuses_of(other).keys()
    assert {status["status"] for status in statuses_of(directory).values()} == {"finished"}
    assert training_rows_of(directory) == training_rows_of(other)
    for path in (other / "training" / "checkpoints").glob("*.pt"):
        ours = load_checkpoint(directory / "training" / "checkpoints" / path.name)["model"]
        assert all(torch.equal(ours[name], tensor) for name, tensor in load_checkpoint(path)["model"].items())
    assert names_of(directory) == names_of(other)


def names_of(directory: Path) -> list[str]:
    """All files of a folder but for locks: nothing half written and nothing set aside is left by the kills."""
    names = (str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith((".lock", "workers/")))


def finished_runs(directory: Path) -> dict[str, int]:
    """The runs that are finished, and when their rows were last written."""
    times = times_of(directory)
    return {name: times[name] for name, status in statuses_of(directory).items() if status["status"] == "finished"}


def study_subject(folder: Path, *strategies: dict[str, Any], report: bool = False, **changes: Any) -> Subject:
    """A small study, whose file is written into a folder."""
    toml = folder / f"small-{'report' if report else 'bare'}.toml"
    toml.write_text(tomli_w.dumps(table(*(strategies or STRATEGIES), **changes)), encoding="utf-8")
    return Subject("study", toml, finished_runs, same_study, {"REPORT": "yes" if report else "no"})


def trials_of(directory: Path) -> list[tuple[str, int, int, str | None]]:
    """Every trial that the storage has seen: strategy, place, number, outcome."""
    found: list[tuple[str, int, int, str | None]] = []
    url = f"sqlite:///{directory / 'tune.db'}"
    if not (directory / "tune.db").exists():
        return found
    try:
        names = optuna.get_all_study_names(url)
    except Exception:  # killed while the tables were made: drivers raise what they like
        return found
    for name in names:
        for trial in optuna.load_study(study_name=name, storage=url).get_trials():
            attributes = trial.user_attrs
            found.append((name, attributes["place"], trial.number, attributes.get("outcome")))
    return found


def concluded_trials(directory: Path) -> dict[tuple[str, int], int]:
    """The number of the trial that has concluded for each place."""
    found = [(name, place, number) for name, place, number, outcome in trials_of(directory) if outcome in COUNTED]
    assert len({(name, place) for name, place, _ in found}) == len(found), "a place has two trials"
    return {(name, place): number for name, place, number in found}


def tuned_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of `trials.csv` and of each trial's journal, without clocks and numbers."""
    with (directory / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        folder = directory / "runs" / f"{row['strategy']}_trial-{int(row.pop('number')):04d}"
        row["rows"], _ = read_journal(folder / "rows.jsonl"), row.pop("seconds")
    return rows


def same_tuning(directory: Path, other: Path) -> None:
    """Raise an AssertionError where a tuning has not come to the same as another one."""
    assert tuned_rows(directory) == tuned_rows(other)
    assert concluded_trials(directory).keys() == concluded_trials(other).keys()
    assert (directory / "best.toml").read_text() == (other / "best.toml").read_text()
    assert not [name for name in names_of(directory) if Path(name).name.startswith(".") or "damaged" in name]


def tuning_subject(folder: Path, **changes: Any) -> Subject:
    """A small tuning, one trial at a time: with more, who is stopped at a rung depends on who comes first."""
    own = {"search": {"options.lr": {"low": 0.01, "high": 0.5, "log": True}}}
    qlr = {"kind": "adamqlr", "name": "qlr", "label": "QLR", "batch_size": 24}
    strategies = [
        custom("Slow", "slow") | own,
        qlr | {"search": {"options.damping": {"low": 1e-8, "high": 1.0, "log": True}}},
    ]
    settings = {"trials": 5, "budget": {"unit": "steps", "amount": 12}, "halving": {"factor": 2, "rungs": 2}}
    toml = folder / "tuning.toml"
    content = {"name": "small", "problem": "small_problems:noisy", "seeds": [0, 1], "jobs": 1}
    toml.write_text(tomli_w.dumps(content | {"tune": settings, "strategies": strategies} | changes), encoding="utf-8")
    return Subject("tune", toml, concluded_trials, same_tuning)


def campaign(subjects: list[Subject], kills: int, out: Path, seed: int) -> Counter[str]:
    """Kill commands by turns until there have been so many kills; what happened, by name.

    Raises:
        AssertionError: something differs; the folder stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    draw, wholes, counts = random.Random(seed), [], Counter[str]()
    for number, subject in enumerate(subjects):
        whole, started = out / f"{subject.name}-{number}-whole", time.monotonic()
        shutil.rmtree(whole, ignore_errors=True)
        subject.finish(whole)
        wholes.append((subject, whole, time.monotonic() - started))
    while counts["kills"] < kills:
        subject, whole, seconds = wholes[counts["commands"] % len(wholes)]
        directory = out / f"{subject.name}-{counts['commands']:03d}"
        shutil.rmtree(directory, ignore_errors=True)
        left = kills - counts["kills"]
        # A part of the way at most, so that most commands are killed more than once.
        counts["kills"] += killed_until_finished(subject, directory, left, written(whole) / 3, draw, 0.7 * seconds)
        subject.same(directory, whole)
        counts["commands"] += 1
        counts["finished"] += len(subject.finished(directory))
        print(f"{subject.name}: {dict(counts)}", flush=True)  # noqa: T201
        shutil.rmtree(directory)
    return counts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of studies")
    parser.add_argument("--tuning-kills", type=int, default=30, help="of tunings")
    parser.add_argument("--out", type=Path, required=True, help="folder for what they write")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    plans = {"seeds": [0], "jobs": 2 if (os.cpu_count() or 1) > 1 else 1}
    studies = [study_subject(given.out, **plans), study_subject(given.out, report=True, **plans)]
    try:
        campaign(studies, given.kills, given.out, given.seed)
        campaign([tuning_subject(given.out)], given.tuning_kills, given.out, given.seed)
    except AssertionError as error:
        print(f"differs: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
